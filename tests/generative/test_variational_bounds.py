"""Variational bounds and game losses: attained at the log ratio, below the divergence elsewhere, and known special games."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.generative.divergence_values import exact, gauss_legendre
from kexue.generative.divergences import DIVERGENCES, FDivergence, alpha
from kexue.generative.variational_bounds import RatioNetwork, critic_loss, fit_ratio, generator_loss, variational_bound
from torch.nn.functional import binary_cross_entropy_with_logits

NAMES = ["kl", "reverse_kl", "pearson", "neyman", "hellinger", "jeffreys", "js", "tv", "srkl"]
by_name = pytest.mark.parametrize("div", [*(DIVERGENCES[name] for name in NAMES), alpha(0.3)], ids=lambda div: div.name)
smooth_rows = pytest.mark.parametrize("div", [DIVERGENCES[name] for name in NAMES if name != "tv"], ids=lambda div: div.name)

X, LOG_W = gauss_legendre(-12.0, 14.0, panels=20)
LOG_P = -0.5 * X**2 - 0.5 * math.log(2 * math.pi)
LOG_Q = -0.5 * ((X - 1) / 1.2) ** 2 - math.log(1.2) - 0.5 * math.log(2 * math.pi)
RATIO = LOG_P - LOG_Q


def bound(div: FDivergence, v, **options):
    return variational_bound(div, v, v, log_w_p=LOG_P + LOG_W, log_w_q=LOG_Q + LOG_W, **options).item()


@by_name
def test_bound_is_attained_at_the_log_ratio(div):
    assert bound(div, RATIO) == pytest.approx(exact(div, LOG_P, LOG_Q, LOG_W).item(), rel=1e-11)


@pytest.mark.parametrize(
    ("name", "value"),  # J_f(log p/q + 0.3 sin x) by adaptive quadrature in 30 digits
    [
        ("kl", 0.357207), ("reverse_kl", 0.515909), ("pearson", 0.725289), ("neyman", 5.315921),
        ("hellinger", 0.200193), ("jeffreys", 0.873116), ("js", 0.093995), ("tv", 0.347788),
    ],
)  # fmt: skip
def test_perturbed_bound_matches_adaptive_quadrature(name, value):
    # the sign of tv jumps inside two panels, which costs the fixed rule a few 1e-4
    assert bound(DIVERGENCES[name], RATIO + 0.3 * X.sin()) == pytest.approx(value, abs=2e-3 if name == "tv" else 6e-7)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(NAMES), st.floats(-3, 3), st.floats(-3, 3), st.floats(0.1, 4))
def test_bound_never_exceeds_the_divergence(name, amplitude, shift, frequency):
    div = DIVERGENCES[name]
    assert bound(div, RATIO + amplitude * (frequency * X + shift).sin()) <= exact(div, LOG_P, LOG_Q, LOG_W).item() * (1 + 1e-12)


@smooth_rows
def test_gap_is_the_bregman_divergence_and_to_second_order_the_weight(div):
    """P7, exactly and at the rate: the gap divided by eps^2 tends to half the weighted square with an O(eps) error."""
    total, wave = exact(div, LOG_P, LOG_Q, LOG_W).item(), X.sin()
    u, errors = RATIO.exp(), []
    limit = 0.5 * ((LOG_P + LOG_W).exp() * div.weight(RATIO) * wave**2).sum().item()
    for eps in (0.2, 0.1, 0.05):
        v = RATIO + eps * wave
        bregman = div.f(u) - div.f(v.exp()) - div.fprime(v.exp()) * (u - v.exp())
        gap = total - bound(div, v)
        assert gap == pytest.approx(((LOG_Q + LOG_W).exp() * bregman).sum().item(), rel=1e-8)
        errors.append(abs(gap / eps**2 - limit))
    assert math.log2(errors[0] / errors[2]) / 2 > 0.8


@smooth_rows
def test_gradient_vanishes_at_the_log_ratio_and_not_elsewhere(div):
    v = RATIO.clone().requires_grad_()
    value = variational_bound(div, v, v, log_w_p=LOG_P + LOG_W, log_w_q=LOG_Q + LOG_W)
    (slope,) = torch.autograd.grad(value, v)
    scale = ((LOG_P + LOG_W).exp() * div.weight(RATIO)).abs().max()
    assert slope.abs().max() <= 1e-12 * scale
    v = (RATIO + 0.1).requires_grad_()
    (slope,) = torch.autograd.grad(variational_bound(div, v, v, log_w_p=LOG_P + LOG_W, log_w_q=LOG_Q + LOG_W), v)
    torch.testing.assert_close(slope, (div.weight(v) * (LOG_P.exp() - v.exp() * LOG_Q.exp()) * LOG_W.exp()).detach(), rtol=1e-8, atol=1e-12)


def test_sample_bound_is_a_difference_of_means():
    v_p, v_q = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([-1.0, 0.5])
    got = variational_bound(DIVERGENCES["kl"], v_p, v_q).item()
    assert got == pytest.approx((1 + 2 + 3) / 3 - (math.exp(-1) + math.exp(0.5)) / 2, rel=1e-6)
    uniform = {"log_w_p": torch.full((3,), -math.log(3.0)), "log_w_q": torch.full((2,), -math.log(2.0))}
    assert variational_bound(DIVERGENCES["kl"], v_p, v_q, **uniform).item() == pytest.approx(got, rel=1e-6)


def test_points_of_weight_zero_do_not_count_even_with_infinite_terms():
    v_p, v_q = torch.tensor([0.0, -math.inf]), torch.tensor([0.0, math.inf])
    log_w = torch.tensor([0.0, -math.inf])
    assert variational_bound(DIVERGENCES["kl"], v_p, v_q, log_w_p=log_w, log_w_q=log_w).item() == 0.0


def test_batches_of_fits_are_evaluated_row_by_row():
    generator = torch.Generator().manual_seed(3)
    v_p, v_q = torch.randn(4, 5, generator=generator), torch.randn(4, 7, generator=generator)
    for name in NAMES:
        rows = [variational_bound(DIVERGENCES[name], v_p[i], v_q[i]) for i in range(4)]
        torch.testing.assert_close(variational_bound(DIVERGENCES[name], v_p, v_q), torch.stack(rows))


def test_bound_refuses_empty_samples_and_nan():
    good = torch.zeros(2)
    with pytest.raises(ValueError, match="v_p must hold at least one value"):
        variational_bound(DIVERGENCES["js"], torch.empty(0), good)
    with pytest.raises(ValueError, match="v_q must not contain NaN, got 1 of 2"):
        variational_bound(DIVERGENCES["js"], good, torch.tensor([0.0, math.nan]))
    for name in NAMES:  # the check looks at the mean first, so every link has to hand NaN on
        with pytest.raises(ValueError, match="v_p must not contain NaN, got 2 of 3"):
            variational_bound(DIVERGENCES[name], torch.tensor([math.nan, 0.0, math.nan]), good)
        with pytest.raises(ValueError, match="v_q must not contain NaN"):
            critic_loss(DIVERGENCES[name], good, torch.tensor([[0.0, 1.0], [math.nan, 0.0]])[1])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 40), st.integers(1, 40))
def test_js_critic_loss_is_half_the_sum_of_cross_entropies_less_log_2(seed, n, m):
    generator = torch.Generator().manual_seed(seed)
    v_p, v_q = 5 * torch.randn(n, generator=generator, dtype=torch.float64), 5 * torch.randn(m, generator=generator, dtype=torch.float64)
    entropies = binary_cross_entropy_with_logits(v_p, torch.ones_like(v_p)) + binary_cross_entropy_with_logits(v_q, torch.zeros_like(v_q))
    assert critic_loss(DIVERGENCES["js"], v_p, v_q).item() == pytest.approx(0.5 * entropies.item() - math.log(2), abs=1e-12)


def test_tv_losses_train_through_the_smooth_link():
    v = torch.tensor([-1.0, 0.3], requires_grad=True)
    critic_loss(DIVERGENCES["tv"], v, -v).backward()
    assert (v.grad < 0).all()
    assert bound(DIVERGENCES["tv"], RATIO, smooth=True) < bound(DIVERGENCES["tv"], RATIO) - 1e-3


@by_name
def test_generator_losses_have_the_stated_forces(div):
    v = torch.linspace(-3, 3, 13, dtype=torch.float64, requires_grad=True)
    weight = div.weight(v.detach(), smooth=True)
    # tv's surrogate has C = T, so its two games coincide
    factor = torch.ones_like(weight) if div.name == "tv" else v.detach().exp()
    (minimax,) = torch.autograd.grad(generator_loss(div, v), v)
    (nonsaturating,) = torch.autograd.grad(generator_loss(div, v, "nonsaturating"), v)
    torch.testing.assert_close(minimax, -factor * weight / 13, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(nonsaturating, -weight / 13, rtol=1e-9, atol=1e-14)
    assert generator_loss(div, v.detach()).item() == pytest.approx(-div.conj_link(v.detach(), smooth=True).mean().item())


def test_generator_loss_refuses_other_kinds_and_empty_samples():
    with pytest.raises(ValueError, match="kind must be 'minimax' or 'nonsaturating', got 'saturating'"):
        generator_loss(DIVERGENCES["kl"], torch.zeros(2), "saturating")
    with pytest.raises(ValueError, match="v_fake must hold at least one value"):
        generator_loss(DIVERGENCES["kl"], torch.empty(0))


def test_ratio_network_is_a_stack_of_independent_networks():
    net = RatioNetwork(3, 2, width=5, depth=2, generator=torch.Generator().manual_seed(0))
    x = torch.randn(3, 7, 2, generator=torch.Generator().manual_seed(1))
    out = net(x)
    assert out.shape == (3, 7)
    for i in range(3):
        h = x[i]
        for weight, bias in zip(list(net.weights)[:-1], list(net.biases)[:-1], strict=True):
            h = torch.nn.functional.silu(h @ weight[i] + bias[i])
        torch.testing.assert_close(out[i], (h @ net.weights[-1][i] + net.biases[-1][i])[:, 0])
    (slope,) = torch.autograd.grad(net(x)[1].sum(), net.weights[0])
    assert slope[0].abs().sum() == 0
    assert slope[1].abs().sum() > 0


def test_ratio_network_starts_within_the_fan_in_bounds_and_repeats_its_seed():
    a, b = (RatioNetwork(2, 3, width=50, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    for weight, other in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(weight, other)
    for weight, fan_in in zip(a.weights, (3, 50, 50), strict=True):
        assert 0.9 * fan_in**-0.5 < weight.abs().max().item() <= fan_in**-0.5
    assert [tuple(w.shape) for w in a.weights] == [(2, 3, 50), (2, 50, 50), (2, 50, 1)]
    with pytest.raises(ValueError, match="fits, dim, width and depth must be at least 1, got 0, 1, 64, 2"):
        RatioNetwork(0, 1)


class Affine(torch.nn.Module):
    """v(x) = a x + b for every fit: contains the log ratio of two Gaussians of equal variance."""

    def __init__(self, fits):
        super().__init__()
        self.a, self.b = (torch.nn.Parameter(torch.zeros(fits, 1)) for _ in range(2))

    def forward(self, x):
        return self.a * x[..., 0] + self.b


def gaussian_samples(fits, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(fits, n, 1, generator=generator), 1 + torch.randn(fits, n, 1, generator=generator)


@pytest.mark.parametrize("batch_size", [None, 256])
def test_fit_recovers_the_log_ratio_for_several_divergences_at_once(batch_size):
    """N(0,1) against N(1,1): v = 1/2 - x. With 4000 points the estimates scatter by about 0.05."""
    divs = [DIVERGENCES[name] for name in ("js", "kl", "hellinger", "js")]
    x_p, x_q = gaussian_samples(4, 4000)
    model = Affine(4)
    value = fit_ratio(divs, x_p, x_q, model, steps=250, lr=0.03, batch_size=batch_size, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model.a.detach(), torch.full((4, 1), -1.0), atol=0.2, rtol=0)
    torch.testing.assert_close(model.b.detach(), torch.full((4, 1), 0.5), atol=0.2, rtol=0)
    with torch.no_grad():
        v_p, v_q = model(x_p), model(x_q)
    torch.testing.assert_close(value, torch.stack([variational_bound(d, v_p[i], v_q[i]) for i, d in enumerate(divs)]))


def test_fits_of_a_stack_equal_fits_one_by_one():
    x_p, x_q = gaussian_samples(2, 50)
    together = RatioNetwork(2, 1, width=4, generator=torch.Generator().manual_seed(2))
    alone = RatioNetwork(1, 1, width=4)
    with torch.no_grad():
        for single, stacked in zip(alone.parameters(), together.parameters(), strict=True):
            single.copy_(stacked[1:])
    both = fit_ratio([DIVERGENCES["kl"], DIVERGENCES["js"]], x_p, x_q, together, steps=30, batch_size=None)
    one = fit_ratio(DIVERGENCES["js"], x_p[1:], x_q[1:], alone, steps=30, batch_size=None)
    torch.testing.assert_close(both[1:], one, rtol=1e-4, atol=1e-6)


def test_fit_repeats_with_the_same_generator():
    x_p, x_q = gaussian_samples(1, 60)
    values = [
        fit_ratio(DIVERGENCES["js"], x_p, x_q, Affine(1), steps=5, batch_size=16, generator=torch.Generator().manual_seed(s))
        for s in (7, 7, 8)
    ]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_fit_refuses_disagreeing_numbers_of_fits_and_empty_schedules():
    x_p, x_q = gaussian_samples(2, 10)
    with pytest.raises(ValueError, match="must agree on the number of fits, got 1, 2 and 2"):
        fit_ratio([DIVERGENCES["js"]], x_p, x_q, Affine(2))
    for options in ({"steps": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="steps and batch_size must be at least 1"):
            fit_ratio(DIVERGENCES["js"], x_p, x_q, Affine(2), **options)
