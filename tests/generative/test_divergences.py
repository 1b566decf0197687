"""The table of f-divergences: conjugates against brute force, links against Fenchel's identity, laws, extremes, refusals."""

import math

import mpmath
import numpy as np
import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.generative.divergences import DIVERGENCES, _at_least_float32, alpha

NAMES = ["kl", "reverse_kl", "pearson", "neyman", "hellinger", "jeffreys", "js", "tv", "srkl"]
ROWS = [
    *(DIVERGENCES[name] for name in NAMES),
    DIVERGENCES["srkl"].reverse(),
    *(alpha(a) for a in (-1.7, -1e-9, 0.0, 0.3, 0.9, 1.0, 1.1, 2.5)),
]
SMOOTH = [div for div in ROWS if div.name != "tv"]
by_name = pytest.mark.parametrize("div", ROWS, ids=lambda div: div.name)
smooth_rows = pytest.mark.parametrize("div", SMOOTH, ids=lambda div: div.name)

# The generators once more, as symbols in u, typed from their integrals and not from the module.
U = sympy.symbols("u", positive=True)
SYMBOLIC = {
    "kl": U * sympy.log(U),
    "reverse_kl": -sympy.log(U),
    "pearson": (U - 1) ** 2,
    "neyman": (1 - U) ** 2 / U,
    "hellinger": (sympy.sqrt(U) - 1) ** 2,
    "jeffreys": (U - 1) * sympy.log(U),
    "js": (U * sympy.log(2 * U / (1 + U)) + sympy.log(2 / (1 + U))) / 2,
    "srkl": (1 + U) / 2 * sympy.log((1 + U) / (2 * U)),
    "reverse_srkl": (1 + U) / 2 * sympy.log((1 + U) / 2),
}


def grid(low=-5.0, high=5.0, n=101):
    return torch.linspace(low, high, n, dtype=torch.float64)


@by_name
def test_conjugate_matches_brute_force_legendre_transform(div):
    u = torch.logspace(-9, 9, 400_001, dtype=torch.float64)
    values = div.f(u)
    for t in div.link(grid(-3, 3, 13), smooth=True):
        brute = max((t * u - values).max().item(), -div.f0)
        # a grid with ratio 1 + 1e-4 misses the maximum by at most u^2 f''(u) 1e-8 / 8
        assert div.conjugate(t).item() == pytest.approx(brute, rel=1e-8, abs=1e-7)


@by_name
def test_conj_link_is_conjugate_at_link(div):
    v = grid()
    torch.testing.assert_close(div.conj_link(v, smooth=True), div.conjugate(div.link(v, smooth=True)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(div.conj_link(v), div.conjugate(div.link(v)), rtol=1e-12, atol=1e-12)


@by_name
def test_fenchel_equality_holds_on_the_link(div):
    v = grid()
    torch.testing.assert_close(v.exp() * div.link(v) - div.conj_link(v), div.f_log(v), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SYMBOLIC)
def test_row_matches_symbolic_generator(name):
    div = DIVERGENCES["srkl"].reverse() if name == "reverse_srkl" else DIVERGENCES[name]
    f = SYMBOLIC[name]
    assert div.name == name
    first, second = sympy.diff(f, U), sympy.diff(f, U, 2)
    for v in (-4.0, -0.7, -1e-3, 0.0, 1e-3, 0.9, 5.0):
        at = {U: sympy.exp(sympy.Float(v, 30))}
        x = torch.tensor(v, dtype=torch.float64)
        for got, expected in (
            (div.f_log(x), f),
            (div.f(x.exp()), f),
            (div.link(x), first),
            (div.fprime(x.exp()), first),
            (div.conj_link(x), U * first - f),
            (div.weight(x), U * second),
        ):
            assert got.item() == pytest.approx(float(expected.subs(at).evalf(30)), rel=1e-11, abs=1e-14)


@pytest.mark.parametrize("name", SYMBOLIC)
def test_ends_match_symbolic_limits(name):
    div = DIVERGENCES["srkl"].reverse() if name == "reverse_srkl" else DIVERGENCES[name]
    f = SYMBOLIC[name]
    assert div.f0 == pytest.approx(float(sympy.limit(f, U, 0, "+")), abs=1e-15)
    assert div.fprime_inf == pytest.approx(float(sympy.limit(sympy.expand_log(f / U), U, sympy.oo)), abs=1e-15)
    assert div.domain_t == (-math.inf, div.fprime_inf)


@smooth_rows
def test_weight_is_derivative_of_link_by_autograd(div):
    v = grid().requires_grad_()
    (slope,) = torch.autograd.grad(div.link(v).sum(), v)
    torch.testing.assert_close(slope, div.weight(v), rtol=1e-10, atol=1e-14)
    (slope,) = torch.autograd.grad(div.conj_link(v).sum(), v)
    torch.testing.assert_close(slope, (v.exp() * div.weight(v)).detach(), rtol=1e-10, atol=1e-14)


def test_smooth_tv_link_has_its_weight_and_the_hard_link_is_a_sign():
    tv = DIVERGENCES["tv"]
    v = grid().requires_grad_()
    (slope,) = torch.autograd.grad(tv.link(v, smooth=True).sum(), v)
    torch.testing.assert_close(slope, tv.weight(v, smooth=True).detach(), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(tv.link(v, smooth=True), 0.5 * torch.tanh(v / 2))
    assert tv.link(torch.tensor([-2.0, 0.0, 3.0])).tolist() == [-0.5, 0.0, 0.5]
    assert tv.conj_link(torch.tensor([-2.0, 0.0, 3.0])).tolist() == [-0.5, 0.0, 0.5]
    assert tv.weight(torch.tensor([-2.0, 3.0])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("div", SMOOTH, ids=lambda div: div.name)
def test_conjugate_has_the_density_ratio_as_gradient_and_passes_gradgradcheck(div):
    v = grid(-2.0, 2.0, 9)
    t = div.link(v).requires_grad_()
    (ratio,) = torch.autograd.grad(div.conjugate(t).sum(), t)
    torch.testing.assert_close(ratio, v.exp(), rtol=1e-9, atol=0)
    assert torch.autograd.gradgradcheck(div.conjugate, (t,), atol=1e-4)


@by_name
def test_links_pass_gradcheck_also_at_zero(div):
    v = torch.tensor([-3.0, -1e-3, 0.0, 1e-3, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: div.link(v, smooth=True), (v,))
    assert torch.autograd.gradcheck(lambda v: div.conj_link(v, smooth=True), (v,))
    if div.name != "tv":  # a kink at v = 0
        assert torch.autograd.gradcheck(div.f_log, (v,))
    for link in (div.link, div.conj_link):
        assert torch.autograd.gradgradcheck(lambda v, link=link: link(v, smooth=True), (v,))


@by_name
def test_links_agree_between_forward_mode_reverse_mode_and_vmap(div):
    v = torch.tensor([-3.0, -1e-3, 0.0, 1e-3, 2.0], dtype=torch.float64)
    for link in (div.link, div.conj_link):
        single = lambda x, link=link: link(x, smooth=True)  # noqa: E731
        reverse = torch.func.vmap(torch.func.grad(single))(v)
        forward = torch.func.jvp(single, (v,), (torch.ones_like(v),))[1]
        torch.testing.assert_close(forward, reverse, rtol=1e-14, atol=0)
        torch.testing.assert_close(torch.func.vmap(torch.func.jacfwd(single))(v), reverse, rtol=1e-14, atol=0)


@smooth_rows
def test_conj_link_has_no_nan_gradient_where_the_ratio_overflows(div):
    v = torch.tensor([-300.0, -110.0, 110.0, 300.0], requires_grad=True)  # e^110 is infinite in float32
    for link in (div.link, div.conj_link):
        (slope,) = torch.autograd.grad(link(v).sum(), v)
        assert not slope.isnan().any()


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(ROWS), st.floats(0, 50), st.floats(-30, 3))
def test_fenchel_young_inequality(div, u, t):
    """f(u) + f*(t) >= u t for every pair, also at u = 0 and outside the domain of f*."""
    value = div.f(torch.tensor(u, dtype=torch.float64)) + div.conjugate(torch.tensor(t, dtype=torch.float64))
    assert value.item() >= u * t - 1e-9 * (1 + abs(u * t))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(ROWS), st.floats(-20, 20), st.floats(-20, 20))
def test_generator_lies_above_each_of_its_tangents(div, v, xi):
    """P4 in numbers: the tangent at e^xi with slope T(xi) and intercept -C(xi) never rises above f."""
    v, xi = torch.tensor([v, xi], dtype=torch.float64)
    tangent = div.link(xi) * v.exp() - div.conj_link(xi)
    scale = 1 + (div.link(xi) * v.exp()).abs() + div.conj_link(xi).abs()
    assert div.f_log(v) >= tangent - 1e-12 * scale


@by_name
def test_reverse_exchanges_the_arguments(div):
    v, dual = grid(), div.reverse()
    u = v.exp()
    torch.testing.assert_close(dual.f(u), u * div.f(1 / u), rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(dual.link(v), -div.conj_link(-v), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(dual.conj_link(v), -div.link(-v), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(dual.weight(v), (-v).exp() * div.weight(-v), rtol=1e-11, atol=0)
    assert (dual.f0, dual.fprime_inf) == pytest.approx((div.fprime_inf, div.f0), rel=1e-15)
    assert dual.reverse().name == div.name


@pytest.mark.parametrize("name", ["hellinger", "jeffreys", "js", "tv"])
def test_symmetric_rows_are_their_own_reverse(name):
    assert DIVERGENCES[name].reverse() is DIVERGENCES[name]


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "pearson", "neyman", "hellinger"])
def test_power_rows_are_multiples_of_the_alpha_family_up_to_an_affine_term(name):
    div, v = DIVERGENCES[name], grid()
    a, scale = div.power
    family = alpha(a)
    assert family.power == (a, 1.0)
    torch.testing.assert_close(div.weight(v), scale * family.weight(v), rtol=1e-12, atol=0)
    shift = div.link(torch.zeros(1, dtype=torch.float64))  # T(0) = 0 in the family
    torch.testing.assert_close(div.f_log(v), scale * family.f_log(v) + shift * v.expm1(), rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(div.link(v) - shift, scale * family.link(v), rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(div.conj_link(v) - shift, scale * family.conj_link(v), rtol=1e-11, atol=1e-13)


@settings(max_examples=60, deadline=None)
@given(st.floats(-3, 3), st.floats(-3, 3))
def test_alpha_generator_matches_its_formula_in_high_precision(a, v):
    with mpmath.workdps(700):  # a may be as small as 1e-308 and enters as a difference of order a
        x, u = mpmath.mpf(a), mpmath.exp(mpmath.mpf(v))
        if a == 0 or a == 1:
            expected = u * mpmath.log(u) - u + 1 if a else u - 1 - mpmath.log(u)
        else:
            expected = (u**x - x * u + x - 1) / (x * (x - 1))
    assert alpha(a).f_log(torch.tensor(v, dtype=torch.float64)).item() == pytest.approx(float(expected), rel=1e-12, abs=1e-13)


@pytest.mark.parametrize("a", [1 + 1e-12, 1 - 1e-12, 1e-12, -1e-12])
def test_alpha_is_continuous_at_its_two_limits(a):
    v, limit = grid(-30, 30), alpha(round(a))
    for got, expected in (
        (alpha(a).f_log(v), limit.f_log(v)),
        (alpha(a).link(v), limit.link(v)),
        (alpha(a).conj_link(v), limit.conj_link(v)),
    ):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_each_row_has_generator_zero_at_one():
    one = torch.ones((), dtype=torch.float64)
    for div in ROWS:
        assert div.f(one).item() == 0.0
        assert div.f_log(torch.zeros((), dtype=torch.float64)).item() == 0.0


def test_generator_at_zero_below_zero_and_nan():
    for div in ROWS:
        at_zero, below, nan = div.f(torch.tensor([0.0, -1e-3, math.nan], dtype=torch.float64)).tolist()
        assert at_zero == pytest.approx(div.f0)
        assert below == math.inf
        assert math.isnan(nan)


@pytest.mark.parametrize(
    ("name", "edge", "at_edge"),
    [
        ("reverse_kl", 0.0, math.inf),
        ("neyman", 1.0, 2.0),
        ("hellinger", 1.0, math.inf),
        ("js", 0.5 * math.log(2), math.inf),
        ("tv", 0.5, 0.5),
        ("srkl", -0.5 * math.log(2), 0.5 * (math.log(2) - 1)),
    ],
)
def test_conjugate_is_infinite_exactly_outside_its_domain(name, edge, at_edge):
    div = DIVERGENCES[name]
    assert div.domain_t[1] == pytest.approx(edge)
    inside, at, outside = div.conjugate(torch.tensor([edge - 0.25, edge, edge + 1e-9], dtype=torch.float64)).tolist()
    assert math.isfinite(inside)
    assert at == pytest.approx(at_edge, abs=1e-7)
    assert outside == math.inf


@pytest.mark.parametrize(
    "div", [DIVERGENCES["pearson"], DIVERGENCES["tv"], DIVERGENCES["srkl"].reverse(), alpha(2.5)], ids=lambda d: d.name
)
def test_conjugate_is_flat_below_the_slope_at_zero(div):
    slope = div.link(torch.tensor(-60.0, dtype=torch.float64)).item()  # f'(0) to rounding
    t = torch.tensor([-50.0, -7.0, 1.2 * min(slope, -0.1)], dtype=torch.float64)
    assert div.conjugate(t).tolist() == pytest.approx([-div.f0] * 3)


@pytest.mark.parametrize(("a", "edge", "value"), [(-0.5, 2 / 3, 2.0), (0.25, 4 / 3, math.inf)])
def test_alpha_conjugate_at_and_beyond_its_edge(a, edge, value):
    div = alpha(a)
    assert div.fprime_inf == pytest.approx(edge)
    inner = torch.tensor([-1.0, -1.5], dtype=torch.float64) / (a - 1.0)
    at, beyond = div.conjugate(inner).tolist()
    assert at == pytest.approx(value)
    assert beyond == math.inf


@by_name
def test_conjugate_hands_nan_through(div):
    assert div.conjugate(torch.tensor(math.nan)).isnan()


def test_jeffreys_conjugate_survives_arguments_whose_exponential_overflows():
    div = DIVERGENCES["jeffreys"]
    got = div.conjugate(torch.tensor([-1e4, -800.0, 0.0, 300.0], dtype=torch.float64))
    for t, value in zip([-1e4, -800.0, 0.0, 300.0], got.tolist(), strict=True):
        with mpmath.workdps(40):
            y = mpmath.findroot(lambda y, t=t: mpmath.exp(y) + y - (1 - mpmath.mpf(t)), mpmath.log(1 - t) if t < 0 else 1 - mpmath.mpf(t))
            omega = mpmath.exp(y)
            expected = float(omega + 1 / omega + mpmath.mpf(t) - 2)
        assert value == pytest.approx(expected, rel=1e-12, abs=1e-14)


@by_name
def test_float32_links_are_accurate_to_relative_1e_6(div):
    magnitude = torch.logspace(-6, math.log10(20.0), 400, dtype=torch.float32)
    v = torch.cat([-magnitude, magnitude])
    for got, expected in ((div.link(v), div.link(v.double())), (div.conj_link(v), div.conj_link(v.double()))):
        assert got.dtype == torch.float32
        # T = v + 1 and its kin have a zero away from v = 0, where only the absolute error can be small
        allowed = 1e-6 * expected.abs() + (2e-7 if abs(div.link(torch.zeros(1)).item()) > 0 else 0.0)
        # e^(k v) itself moves by k |v| ulp when the product k v is rounded
        rounding = 1.2e-7 * v.double().abs() * (2 if div.power else 1) * expected.abs()
        assert ((got.double() - expected).abs() <= allowed + rounding).all()


@by_name
def test_no_nan_in_float32_up_to_80_and_overflow_only_where_due(div):
    v = torch.linspace(-80, 80, 321, dtype=torch.float32)
    for function in (div.f_log, div.link, div.conj_link, div.weight):
        got, exact, largest = function(v), function(v.double()).abs(), torch.finfo(torch.float32).max
        assert not got.isnan().any()
        assert not (got.isinf() & (exact < largest / 8)).any()  # e^(kv) / k may overflow a factor |k| early


@by_name
def test_gradients_finite_up_to_40_in_float32(div):
    v = torch.linspace(-40, 40, 161, dtype=torch.float32, requires_grad=True)
    for function in (div.link, div.conj_link):
        (slope,) = torch.autograd.grad(function(v, smooth=True).sum(), v)
        exact = div.weight(v.double(), smooth=True) * (v.double().exp() if function == div.conj_link else 1.0)
        assert (slope.isfinite() | (exact > torch.finfo(torch.float32).max / 8)).all()
        assert (slope.double() >= -1e-6 * (1 + exact)).all()


@by_name
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_the_rounded_float32_value(div, dtype):
    v = torch.linspace(-4, 4, 33, dtype=dtype)
    for function in (div.link, div.conj_link, div.weight, div.f_log):
        got = function(v)
        assert got.dtype == dtype
        assert torch.equal(got, function(v.float()).to(dtype))


@by_name
def test_shapes_strides_and_empty_tensors_are_kept(div):
    v = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).T
    assert div.link(v).shape == (6, 4)
    assert torch.equal(div.link(v), div.link(v.contiguous()))
    assert div.conj_link(torch.empty(0)).shape == (0,)
    assert div.f(torch.ones(2, 1, 3)).shape == (2, 1, 3)


def test_links_increase_and_are_ordered_as_realness():
    for div in ROWS:
        v = grid(-20, 20)
        assert (div.link(v).diff() >= 0).all()
        assert (div.conj_link(v).diff() >= 0).all()


def test_nonsaturating_partners_satisfy_g_second_is_f_second_over_u():
    """w_g(v) = e^-v w_f(v) for the five pairs of the ladder, and T_f = C_g up to a constant."""
    v = grid()
    for high, low, factor in (("pearson", "kl", 2.0), ("kl", "reverse_kl", 1.0), ("reverse_kl", "neyman", 0.5), ("js", "srkl", 1.0)):
        f, g = DIVERGENCES[high], DIVERGENCES[low]
        torch.testing.assert_close(factor * g.weight(v), (-v).exp() * f.weight(v), rtol=1e-12, atol=0)
        gap = f.link(v) - factor * g.conj_link(v)
        torch.testing.assert_close(gap, gap[50].expand_as(gap), rtol=0, atol=2e-11)


def test_known_ends_of_the_table():
    ends = {name: (DIVERGENCES[name].f0, DIVERGENCES[name].fprime_inf) for name in NAMES}
    half_log_2 = 0.5 * math.log(2)
    assert ends["tv"] == (0.5, 0.5)
    assert ends["js"] == (half_log_2, half_log_2)
    assert ends["srkl"] == (math.inf, -half_log_2)
    assert set(DIVERGENCES) == set(NAMES)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(KeyError, match="unknown divergence 'wasserstein', known are hellinger, jeffreys, js, kl"):
        DIVERGENCES["wasserstein"]


def test_integer_tensors_are_refused():
    with pytest.raises(TypeError, match=r"expected a floating point tensor, got torch\.int64"):
        _at_least_float32(torch.exp, torch.tensor([1, 2]))  # the methods' own shape annotations catch it first in this suite


@pytest.mark.parametrize("a", [math.inf, math.nan])
def test_alpha_refuses_non_finite_orders(a):
    with pytest.raises(ValueError, match="a must be a finite real number"):
        alpha(a)


def test_link_compiles_to_the_same_function_under_vmap():
    v = torch.from_numpy(np.linspace(-3, 3, 12)).reshape(3, 4)
    for div in ROWS:
        torch.testing.assert_close(torch.func.vmap(div.conj_link)(v), div.conj_link(v))
