"""True values: quadrature and closed forms against mpmath, scipy, torch.distributions and enumeration."""

import math
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kexue.generative.divergence_values import discrete, exact, gauss_legendre, gaussian, log_power_integral
from kexue.generative.divergences import DIVERGENCES, alpha
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr
from torch.distributions import MultivariateNormal, kl_divergence

NAMES = ["kl", "reverse_kl", "pearson", "neyman", "hellinger", "jeffreys", "js", "tv", "srkl"]
# Integrands typed from the definitions of the divergences, not from f.
INTEGRANDS = {
    "kl": lambda p, q: p * mpmath.log(p / q),
    "reverse_kl": lambda p, q: q * mpmath.log(q / p),
    "pearson": lambda p, q: (p - q) ** 2 / q,
    "neyman": lambda p, q: (p - q) ** 2 / p,
    "hellinger": lambda p, q: (mpmath.sqrt(p) - mpmath.sqrt(q)) ** 2,
    "jeffreys": lambda p, q: (p - q) * mpmath.log(p / q),
    "js": lambda p, q: (p * mpmath.log(2 * p / (p + q)) + q * mpmath.log(2 * q / (p + q))) / 2,
    "tv": lambda p, q: abs(p - q) / 2,
    "srkl": lambda p, q: (p + q) / 2 * mpmath.log((p + q) / (2 * p)),
}
CROSSINGS = (-5.210650687586, 0.665196142132)  # where the two densities of the reference pair are equal


def normal(mean, *cov):
    mean = torch.as_tensor(mean, dtype=torch.float64).reshape(-1)
    return mean, torch.tensor(cov, dtype=torch.float64).reshape(len(mean), len(mean))


def log_density(x, mean, std):
    return -0.5 * ((x - mean) / std) ** 2 - math.log(std) - 0.5 * math.log(2 * math.pi)


def reference_pair(low=-12.0, high=14.0, std=1.2, **rule):
    x, log_w = gauss_legendre(low, high, **rule)
    return log_density(x, 0.0, 1.0), log_density(x, 1.0, std), log_w


@pytest.mark.parametrize("name", NAMES)
def test_exact_matches_mpmath_quadrature_of_the_definition(name):
    def integrand(x):
        p = mpmath.npdf(x, 0, 1)
        return INTEGRANDS[name](p, mpmath.npdf(x, 1, mpmath.mpf("1.2")))

    expected = float(mpmath.quad(integrand, [-30, -12, CROSSINGS[0], -3, 0, CROSSINGS[1], 2, 6, 14, 30]))
    # kinks of tv at the crossings: panels end there
    if name == "tv":
        pieces = [reference_pair(low, high) for low, high in zip((-12.0, *CROSSINGS), (*CROSSINGS, 14.0), strict=True)]
        got = sum(exact(DIVERGENCES[name], *piece).item() for piece in pieces)
    else:
        got = exact(DIVERGENCES[name], *reference_pair()).item()
    assert got == pytest.approx(expected, abs=1e-8 if name == "neyman" else 1e-9)


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "pearson", "neyman", "hellinger", "jeffreys"])
def test_gaussian_closed_form_matches_quadrature(name):
    got = gaussian(DIVERGENCES[name], normal(0.0, 1.0), normal(1.0, 1.44)).item()
    assert got == pytest.approx(exact(DIVERGENCES[name], *reference_pair(-25, 27, panels=30)).item(), abs=1e-10)


@pytest.mark.parametrize("a", [-0.8, 0.2, 0.5, 1.3, 2.5])
def test_gaussian_alpha_matches_quadrature(a):
    got = gaussian(alpha(a), normal(0.0, 1.0), normal(1.0, 1.44)).item()
    assert got == pytest.approx(exact(alpha(a), *reference_pair(-30, 32, panels=40)).item(), abs=1e-10)


def test_neyman_is_infinite_where_quadrature_on_an_interval_looks_finite():
    p, q = normal(0.0, 1.0), normal(1.0, 2.25)
    assert gaussian(DIVERGENCES["neyman"], p, q).item() == math.inf
    assert gaussian(DIVERGENCES["pearson"], q, p).item() == math.inf
    assert math.isfinite(gaussian(DIVERGENCES["pearson"], p, q).item())
    assert math.isfinite(exact(DIVERGENCES["neyman"], *reference_pair(std=1.5)).item())


@pytest.mark.parametrize(("variance", "finite"), [(1.999, True), (2.0, False), (2.001, False)])
def test_pearson_turns_infinite_at_twice_the_variance(variance, finite):
    value = gaussian(DIVERGENCES["pearson"], normal(0.0, variance), normal(0.0, 1.0)).item()
    assert math.isfinite(value) == finite
    if finite:
        assert value == pytest.approx(1 / math.sqrt(variance * (2 - variance)) - 1, rel=1e-10)


def test_infinite_along_one_direction_of_the_plane_is_enough():
    q = normal([0.0, 0.0], 1.0, 0.0, 0.0, 1.0)
    assert gaussian(DIVERGENCES["pearson"], normal([0.0, 0.0], 1.0, 0.0, 0.0, 2.5), q).item() == math.inf
    assert math.isfinite(gaussian(DIVERGENCES["pearson"], normal([0.0, 0.0], 1.0, 0.0, 0.0, 1.5), q).item())


def random_gaussian(generator, dim):
    a = torch.randn(dim, dim, dtype=torch.float64, generator=generator)
    return torch.randn(dim, dtype=torch.float64, generator=generator), a @ a.T + torch.eye(dim, dtype=torch.float64)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_gaussian_kl_matches_torch_distributions(seed, dim):
    generator = torch.Generator().manual_seed(seed)
    p, q = random_gaussian(generator, dim), random_gaussian(generator, dim)
    forward, backward = (kl_divergence(MultivariateNormal(*a), MultivariateNormal(*b)).item() for a, b in ((p, q), (q, p)))
    assert gaussian(DIVERGENCES["kl"], p, q).item() == pytest.approx(forward, rel=1e-10)
    assert gaussian(DIVERGENCES["reverse_kl"], p, q).item() == pytest.approx(backward, rel=1e-10)
    assert gaussian(DIVERGENCES["jeffreys"], p, q).item() == pytest.approx(forward + backward, rel=1e-10)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["kl", "reverse_kl", "pearson", "neyman", "hellinger", "jeffreys"]))
def test_gaussian_values_do_not_depend_on_the_coordinates(seed, name):
    """Every f-divergence is invariant under invertible affine maps, here of R^3."""
    generator = torch.Generator().manual_seed(seed)
    p, q = random_gaussian(generator, 3), random_gaussian(generator, 3)
    matrix = torch.randn(3, 3, dtype=torch.float64, generator=generator) + 3 * torch.eye(3, dtype=torch.float64)
    assume(torch.linalg.cond(matrix) < 50)
    p2, q2 = ((matrix @ mean + 1.0, matrix @ cov @ matrix.T) for mean, cov in (p, q))
    before, after = gaussian(DIVERGENCES[name], p, q).item(), gaussian(DIVERGENCES[name], (p2[0], _sym(p2[1])), (q2[0], _sym(q2[1]))).item()
    assert after == pytest.approx(before, rel=1e-6)


def _sym(a):
    return 0.5 * (a + a.T)


def test_gaussian_tv_for_equal_covariances_matches_quadrature():
    x, log_w = gauss_legendre(-12.0, 0.5, panels=10)
    y, log_v = gauss_legendre(0.5, 13.0, panels=10)
    x, log_w = torch.cat([x, y]), torch.cat([log_w, log_v])
    got = gaussian(DIVERGENCES["tv"], normal(0.0, 1.44), normal(1.0, 1.44)).item()
    assert got == pytest.approx(exact(DIVERGENCES["tv"], log_density(x, 0.0, 1.2), log_density(x, 1.0, 1.2), log_w).item(), abs=1e-12)
    assert got == pytest.approx(math.erf(1 / 1.2 / math.sqrt(8)), rel=1e-14)
    plane = gaussian(DIVERGENCES["tv"], normal([0.0, 0.0], 2.0, 0.5, 0.5, 1.0), normal([1.0, -1.0], 2.0, 0.5, 0.5, 1.0)).item()
    mahalanobis = np.array([1.0, -1.0]) @ np.linalg.inv([[2.0, 0.5], [0.5, 1.0]]) @ np.array([1.0, -1.0])
    assert plane == pytest.approx(math.erf(math.sqrt(mahalanobis / 8)), rel=1e-13)


@pytest.mark.parametrize("name", ["js", "tv", "srkl"])
def test_gaussian_refuses_where_no_closed_form_is_known(name):
    with pytest.raises(NotImplementedError, match=f"no closed form of {name}"):
        gaussian(DIVERGENCES[name], normal(0.0, 1.0), normal(1.0, 1.44))


@pytest.mark.parametrize("bad", [(0.0,), (-1.0,)])
def test_gaussian_refuses_a_covariance_that_is_not_positive_definite(bad):
    with pytest.raises(ValueError, match="the covariance of q must be symmetric positive definite"):
        gaussian(DIVERGENCES["kl"], normal(0.0, 1.0), normal(0.0, *bad))
    with pytest.raises(ValueError, match="the covariance of p must be symmetric"):
        gaussian(DIVERGENCES["kl"], normal([0.0, 0.0], 1.0, 0.5, 0.0, 1.0), normal([0.0, 0.0], 1.0, 0.0, 0.0, 1.0))


def test_gaussian_value_has_a_gradient():
    mean = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    root = torch.tensor([[1.0, 0.2], [0.1, 0.9]], dtype=torch.float64, requires_grad=True)
    q = normal([1.0, 0.0], 2.0, 0.3, 0.3, 1.5)
    for name in ("kl", "hellinger", "pearson", "jeffreys"):
        assert torch.autograd.gradcheck(lambda m, r, name=name: gaussian(DIVERGENCES[name], (m, r @ r.mT), q), (mean, root))


def test_log_power_integral_is_zero_at_the_two_ends_and_for_equal_arguments():
    p, q = normal([0.0, 1.0], 1.0, 0.2, 0.2, 1.0), normal([1.0, 0.0], 2.0, 0.3, 0.3, 1.5)
    for a in (0.0, 1.0):
        assert log_power_integral(p, q, a).item() == pytest.approx(0.0, abs=1e-14)
    assert log_power_integral(p, p, 1.7).item() == pytest.approx(0.0, abs=1e-14)


probabilities = st.integers(2, 7).flatmap(
    lambda n: st.tuples(*(st.lists(st.integers(0, 5), min_size=n, max_size=n).filter(any) for _ in range(2)))
)


def vectors(pair):
    return [torch.tensor(x, dtype=torch.float64) / sum(x) for x in pair]


@settings(max_examples=100, deadline=None)
@given(probabilities)
def test_discrete_matches_scipy_zeros_included(pair):
    p, q = vectors(pair)
    assert discrete(DIVERGENCES["kl"], p, q).item() == pytest.approx(rel_entr(p.numpy(), q.numpy()).sum(), abs=1e-12)
    assert discrete(DIVERGENCES["reverse_kl"], p, q).item() == pytest.approx(rel_entr(q.numpy(), p.numpy()).sum(), abs=1e-12)
    assert discrete(DIVERGENCES["js"], p, q).item() == pytest.approx(np.nan_to_num(jensenshannon(p, q) ** 2), abs=1e-12)
    assert discrete(DIVERGENCES["tv"], p, q).item() == pytest.approx(0.5 * (p - q).abs().sum().item(), abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(probabilities, st.sampled_from(NAMES))
def test_discrete_obeys_range_reversal_and_separation(pair, name):
    """P1 to P3: 0 <= D <= f(0) + f'(inf), zero only for equal arguments, reverse() exchanges them."""
    p, q = vectors(pair)
    div = DIVERGENCES[name]
    value = discrete(div, p, q).item()
    assert -1e-12 <= value <= div.f0 + div.fprime_inf + 1e-12
    assert value == pytest.approx(discrete(div.reverse(), q, p).item(), rel=1e-12, abs=1e-12)
    assert (value < 1e-12) == bool(torch.allclose(p, q, rtol=1e-12))


@settings(max_examples=100, deadline=None)
@given(probabilities, st.sampled_from(NAMES))
def test_discrete_never_rises_when_outcomes_are_merged(pair, name):
    """Data processing: the last two outcomes become one."""
    p, q = vectors(pair)
    merged_p, merged_q = (torch.cat([x[:-2], x[-2:].sum(0, keepdim=True)]) for x in (p, q))
    before, after = discrete(DIVERGENCES[name], p, q), discrete(DIVERGENCES[name], merged_p, merged_q)
    assert after <= before + 1e-12


def test_disjoint_supports_attain_the_upper_end_of_the_range():
    p, q = torch.tensor([[0.25, 0.75, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]], dtype=torch.float64)
    expected = {"js": math.log(2), "hellinger": 2.0, "tv": 1.0}
    for name in NAMES:
        assert discrete(DIVERGENCES[name], p, q).item() == pytest.approx(expected.get(name, math.inf), rel=1e-15)


def test_discrete_takes_batches_and_one_outcome():
    p = torch.tensor([[0.5, 0.5], [0.1, 0.9]], dtype=torch.float64)
    q = torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.float64)
    values = discrete(DIVERGENCES["kl"], p, q)
    assert values.shape == (2,)
    assert values[1].item() == pytest.approx(discrete(DIVERGENCES["kl"], p[1], q[1]).item())
    assert discrete(DIVERGENCES["kl"], torch.ones(1), torch.ones(1)).item() == 0.0


def test_discrete_refuses_what_is_no_distribution():
    good = torch.tensor([0.5, 0.5])
    with pytest.raises(ValueError, match=r"p must have non-negative entries, got minimum -0\.5"):
        discrete(DIVERGENCES["kl"], torch.tensor([1.5, -0.5]), good)
    with pytest.raises(ValueError, match=r"q must sum to 1, got 0\.5"):
        discrete(DIVERGENCES["kl"], good, torch.tensor([0.25, 0.25]))
    with pytest.raises(ValueError, match="p must have non-negative entries"):
        discrete(DIVERGENCES["kl"], torch.tensor([math.nan, 1.0]), good)


def test_exact_survives_densities_that_underflow_on_one_side():
    """p of order 1 where log q = -900: p log(p / q) counts, and q f(p / q) would be 0 * inf."""
    log_p = torch.tensor([-1.0, -900.0], dtype=torch.float64)
    log_q = torch.tensor([-900.0, -1.0], dtype=torch.float64)
    got = exact(DIVERGENCES["kl"], log_p, log_q, torch.zeros(2, dtype=torch.float64)).item()
    assert got == pytest.approx(899 * math.exp(-1), rel=1e-14)
    assert exact(DIVERGENCES["hellinger"], log_p, log_q, torch.zeros(2, dtype=torch.float64)).item() == pytest.approx(2 * math.exp(-1))


def test_exact_counts_singular_parts_by_the_two_ends_of_f():
    log_p = torch.tensor([-math.inf, math.log(0.5), -math.inf, math.log(0.5)], dtype=torch.float64)
    log_q = torch.tensor([math.log(0.25), -math.inf, -math.inf, math.log(0.75)], dtype=torch.float64)
    zero = torch.zeros(4, dtype=torch.float64)
    assert exact(DIVERGENCES["hellinger"], log_p, log_q, zero).item() == pytest.approx(0.75 + (math.sqrt(0.5) - math.sqrt(0.75)) ** 2)
    assert exact(DIVERGENCES["kl"], log_p, log_q, zero).item() == math.inf
    assert exact(DIVERGENCES["reverse_kl"], log_p, log_q, zero).item() == math.inf
    assert math.isfinite(exact(DIVERGENCES["kl"], log_p[[0, 3]], log_q[[0, 3]], zero[:2]).item())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_exact_refuses_nan_and_positive_infinity(bad):
    log_p, log_q, log_w = reference_pair(panels=1, nodes=4)
    log_q[2] = bad
    with pytest.raises(ValueError, match="log_q must be finite or -inf"):
        exact(DIVERGENCES["kl"], log_p, log_q, log_w)
    with pytest.raises(ValueError, match="log_p must be finite or -inf"):
        exact(DIVERGENCES["kl"], log_q, log_p, log_w)


def test_exact_has_gradients_with_masked_nodes_and_batches():
    log_p, log_q, log_w = reference_pair(panels=2, nodes=5)
    log_p[0] = -math.inf
    log_q = log_q.expand(2, -1).clone().requires_grad_()
    for name in ("hellinger", "js", "kl"):
        value = exact(DIVERGENCES[name], log_p.expand(2, -1), log_q, log_w)
        assert value.shape == (2,)
        (slope,) = torch.autograd.grad(value.sum(), log_q)
        assert slope.isfinite().all()
        assert torch.autograd.gradcheck(
            lambda x, name=name: exact(DIVERGENCES[name], log_p, x, log_w), (log_q[0].detach().requires_grad_(),)
        )


def test_gauss_legendre_integrates_polynomials_up_to_its_degree():
    x, log_w = gauss_legendre(-1.0, 3.0, panels=3, nodes=4)
    assert x.shape == (12,)
    assert bool((x.diff() > 0).all())
    for degree in range(8):
        expected = (3.0 ** (degree + 1) - (-1.0) ** (degree + 1)) / (degree + 1)
        assert (log_w.exp() * x**degree).sum().item() == pytest.approx(expected, rel=1e-13)
    assert (log_w.exp() * x**8).sum().item() != pytest.approx((3.0**9 + 1) / 9, rel=1e-8)


def test_gauss_legendre_converges_at_order_two_n():
    """Error of the 2-node rule against the panel width: slope 4 on log axes."""
    errors = []
    for panels in (8, 16, 32):
        x, log_w = gauss_legendre(0.0, 2.0, panels=panels, nodes=2)
        errors.append(abs((log_w.exp() * x.exp()).sum().item() - math.expm1(2.0)))
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert slopes == pytest.approx([4, 4], abs=0.05)


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (-math.inf, 0.0), (0.0, math.nan)])
def test_gauss_legendre_refuses_empty_or_infinite_intervals(low, high):
    with pytest.raises(ValueError, match="low and high must be finite with low < high"):
        gauss_legendre(low, high)


def test_gauss_legendre_refuses_no_nodes():
    with pytest.raises(ValueError, match="panels and nodes must be at least 1"):
        gauss_legendre(0.0, 1.0, nodes=0)
    with pytest.raises(ValueError, match="panels and nodes must be at least 1"):
        gauss_legendre(0.0, 1.0, panels=0)
