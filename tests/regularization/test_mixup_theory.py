"""Tests of kexue.regularization.mixup_theory: quadrature, enumeration of pairs, closed forms, limits, refusals."""

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.regularization.mixup import mixing_weights
from kexue.regularization.mixup_theory import MixupInference, affinity_gap, entropy_floor, line_minimizer, mixup_moments
from torch import nn

double = {"dtype": torch.float64}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def expectation(alpha, g, other=None):
    """E g(lambda) under Beta(alpha, other) by mpmath, split at 1/2."""
    other = alpha if other is None else other
    density = lambda t: t ** (mpmath.mpf(alpha) - 1) * (1 - t) ** (mpmath.mpf(other) - 1)  # noqa: E731
    return float(mpmath.quad(lambda t: g(t) * density(t), [0, 0.3, 0.4, 0.5, 0.6, 0.7, 1]) / mpmath.beta(alpha, other))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.5, 4.0, 10.0])
def test_moments_match_quadrature(alpha):
    m = mixup_moments(alpha)
    assert m.own == pytest.approx(expectation(alpha, lambda t: t**2 + (1 - t) ** 2), rel=1e-9)
    assert m.own == pytest.approx(expectation(alpha + 1, lambda t: t, alpha), rel=1e-9)
    assert m.other == pytest.approx(expectation(alpha + 1, lambda t: 1 - t, alpha), rel=1e-9)
    assert m.other_sq == pytest.approx(expectation(alpha + 1, lambda t: (1 - t) ** 2, alpha), rel=1e-9)
    assert m.folded == pytest.approx(expectation(alpha, lambda t: max(t, 1 - t)), rel=1e-9)


def test_moments_match_samples():
    lam = mixing_weights(0.3, 200_000, generator=seeded(1))
    own = mixing_weights(0.3, 200_000, size_biased=True, generator=seeded(2))
    m = mixup_moments(0.3)
    for sample, value in [
        (lam**2 + (1 - lam) ** 2, m.own),
        (own, m.own),
        (1 - own, m.other),
        ((1 - own) ** 2, m.other_sq),
        (torch.maximum(lam, 1 - lam), m.folded),
    ]:
        assert abs(sample.mean().item() - value) < 5 * sample.std().item() / math.sqrt(200_000)


@given(st.floats(1e-3, 1e3))
@settings(deadline=None)
def test_moments_are_ordered_and_add_up(alpha):
    own, other, other_sq, folded = mixup_moments(alpha)
    assert own + other == pytest.approx(1, abs=1e-15) and other_sq == pytest.approx(other / 2)
    assert 0.5 < own <= folded <= 1  # the folded weight is the largest of all that represent the same loss


def test_moments_at_the_ends():
    assert mixup_moments(0) == (1, 0, 0, 1) and mixup_moments(math.inf) == (0.5, 0.5, 0.25, 0.5)
    assert mixup_moments(1e-12) == pytest.approx((1, 1e-12, 5e-13, 1), rel=1e-11)
    assert mixup_moments(1e9) == pytest.approx((0.5, 0.5, 0.25, 0.5 + 1 / math.sqrt(4e9 * math.pi)), rel=1e-9)  # B by Stirling
    assert mixup_moments(1).folded == pytest.approx(3 / 4, rel=1e-15)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 4.0])
def test_entropy_floor_matches_enumeration_and_quadrature(alpha):
    y = torch.tensor([0, 0, 1, 2, 2, 2])

    def entropy(t):
        return -sum(p * mpmath.log(p) for p in (t, 1 - t) if p > 0)

    pairs = [(i, j) for i in range(6) for j in range(6)]
    expected = sum(expectation(alpha, entropy) for i, j in pairs if y[i] != y[j]) / 36
    frequencies = torch.bincount(y).double() / 6
    assert entropy_floor(alpha, frequencies).item() == pytest.approx(expected, rel=1e-9)


def test_entropy_floor_at_special_values():
    half = torch.tensor([0.5, 0.5], **double)
    assert entropy_floor(0, half) == 0 and entropy_floor(1.0, half).item() == pytest.approx(0.25, rel=1e-15)
    assert entropy_floor(math.inf, half).item() == pytest.approx(math.log(2) / 2, rel=1e-15)
    assert entropy_floor(1e9, half).item() == pytest.approx(math.log(2) / 2, rel=1e-8)
    assert entropy_floor(1.0, torch.tensor([1.0, 0.0])) == 0
    assert entropy_floor(1e-6, half).item() == pytest.approx(0.5e-6 * math.pi**2 / 6, rel=1e-5)


def test_entropy_floor_is_reached_by_the_mixed_targets_and_not_undercut():
    """For one pair of classes, cross-entropy of prediction q against (lambda, 1 - lambda) is least at q = lambda."""
    lam = mixing_weights(0.7, 100_000, generator=seeded(3)).clamp(1e-12, 1 - 1e-12)
    loss = lambda q: -(lam * q.log() + (1 - lam) * (1 - q).log())  # noqa: E731
    best = loss(lam)
    floor = entropy_floor(0.7, torch.tensor([0.5, 0.5], **double)).item() * 2
    assert abs(best.mean().item() - floor) < 5 * best.std().item() / math.sqrt(100_000)
    assert loss(lam.clamp(0.1, 0.9)).mean() > best.mean()


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=25)
def test_affinity_gap_matches_its_definition(seed):
    g = seeded(seed)
    x, x2, lam = (
        torch.randn(5, 2, 3, generator=g, **double),
        torch.randn(5, 2, 3, generator=g, **double),
        torch.rand(5, generator=g, **double),
    )
    f = lambda z: torch.stack([z.sin().sum(-1), z.square().sum(-1)], 1)  # noqa: E731
    expected = [
        (f(t * a[None] + (1 - t) * b[None]) - t * f(a[None]) - (1 - t) * f(b[None])).square().sum()
        for a, b, t in zip(x, x2, lam, strict=True)
    ]
    assert torch.allclose(affinity_gap(f, x, x2, lam), torch.stack(expected), rtol=1e-12, atol=1e-14)


def test_affinity_gap_vanishes_for_affine_maps_only():
    g = seeded(2)
    x, x2, lam = torch.randn(50, 4, generator=g, **double), torch.randn(50, 4, generator=g, **double), torch.rand(50, generator=g, **double)
    affine = nn.Linear(4, 3).double()
    assert affinity_gap(affine, x, x2, lam).max() < 1e-28  # a few ulps, squared
    assert (affinity_gap(nn.Sequential(affine, nn.ReLU()), x, x2, lam) > 1e-6).any()


def test_affinity_gap_of_a_square_in_closed_form_and_symmetric():
    g = seeded(3)
    x, x2, lam = torch.randn(9, 1, generator=g, **double), torch.randn(9, 1, generator=g, **double), torch.rand(9, generator=g, **double)
    gap = affinity_gap(torch.square, x, x2, lam)
    assert torch.allclose(gap, (lam * (1 - lam) * (x - x2)[:, 0] ** 2).square(), rtol=1e-10)
    assert torch.allclose(gap, affinity_gap(torch.square, x2, x, 1 - lam), rtol=1e-10)
    assert torch.equal(affinity_gap(torch.square, x, x2, torch.ones(9, **double)), torch.zeros(9, **double))


def test_affinity_gap_takes_outputs_of_other_precision_and_gives_gradients():
    x, x2, lam = torch.rand(3, 2), torch.rand(3, 2), torch.tensor([0.0, 0.5, 1.0])
    assert affinity_gap(lambda z: z.double().square(), x, x2, lam).dtype == torch.float64
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    affinity_gap(net, x, x2, lam).sum().backward()
    assert net[0].weight.grad.isfinite().all() and net[0].weight.grad.abs().sum() > 0


def test_inference_matches_its_formula():
    net, g = nn.Linear(3, 4).double(), seeded(1)
    x, mean, classes = torch.randn(6, 3, generator=g, **double), torch.randn(3, generator=g, **double), torch.full((4,), 0.25, **double)
    p = net(mean + 0.8 * (x - mean)).softmax(1)
    wide = ((p - 0.2 * classes) / 0.8).clamp(min=0)
    got = MixupInference(net, mean, classes, 0.8)(x)
    assert torch.allclose(got, wide / wide.sum(1, keepdim=True), rtol=1e-12)
    assert torch.allclose(got.sum(1), torch.ones(6, **double)) and (got >= 0).all()


def test_inference_with_factor_one_is_the_model():
    net, x = nn.Linear(2, 3).double(), torch.randn(5, 2, generator=seeded(), **double)
    assert torch.allclose(MixupInference(net, x.mean(0), torch.full((3,), 1 / 3, **double), 1)(x), net(x).softmax(1), rtol=1e-14)


def test_inference_leaves_affine_probabilities_alone():
    """p = y_mean + A (x - x_mean) with small A: shrinking the input and widening the output cancel."""
    g = seeded(4)
    slope, mean, classes = (
        torch.randn(3, 2, generator=g, **double) / 50,
        torch.randn(2, generator=g, **double),
        torch.tensor([0.2, 0.3, 0.5], **double),
    )
    slope = slope - slope.mean(0)
    model = nn.Module()
    model.forward = lambda x: (classes + (x - mean) @ slope.T).log()
    x = torch.randn(7, 2, generator=g, **double)
    assert torch.allclose(MixupInference(model, mean, classes, 0.6)(x), classes + (x - mean) @ slope.T, rtol=1e-12)


def test_inference_keeps_its_means_in_the_state_and_clips():
    model = MixupInference(nn.Linear(2, 2), torch.zeros(2), torch.tensor([0.5, 0.5]), 0.5)
    assert {"x_mean", "y_mean"} <= set(model.state_dict())
    nn.init.constant_(model.model.bias, 0)
    model.model.weight.data = torch.tensor([[10.0, 0.0], [0.0, 10.0]])
    assert torch.equal(model(torch.tensor([[9.0, -9.0]])), torch.tensor([[1.0, 0.0]]))


def example(alpha, z):
    """Labels 0, 1, 0 at -1, 0, 1, by hand: pairs (0, 1) and (-1, 1) reach z in (0, 1)."""
    b = lambda t: (t * (1 - t)) ** (alpha - 1)  # noqa: E731
    return b(z) * (1 - z) / (b(z) + b((1 + z) / 2) / 2)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_line_minimizer_matches_the_three_point_example(alpha):
    z = torch.tensor([0.05, 0.5, 0.9], **double)
    points, targets = torch.tensor([-1.0, 0.0, 1.0], **double), torch.tensor([0.0, 1.0, 0.0], **double)
    got = line_minimizer(z, points, targets, alpha)
    assert torch.allclose(got, torch.tensor([example(alpha, t) for t in z.tolist()], **double), rtol=1e-12)
    assert torch.allclose(got, line_minimizer(-z, points, targets, alpha), rtol=1e-12)
    if alpha == 1.0:
        assert torch.allclose(got, 2 / 3 * (1 - z), rtol=1e-13)


def test_line_minimizer_matches_sampled_conditional_means():
    points, targets = torch.tensor([2.0, -1.0, 0.5, 3.5], **double), torch.tensor([0.0, 1.0, 0.3, 2.0], **double)
    weights, alpha, count = torch.tensor([0.1, 0.4, 0.3, 0.2], **double), 1.7, 400_000
    g = seeded(6)
    i, j = torch.multinomial(weights, 2 * count, replacement=True, generator=g).view(2, -1)
    lam = mixing_weights(alpha, count, generator=g)
    x, y = torch.lerp(points[j], points[i], lam), torch.lerp(targets[j], targets[i], lam)
    for z in (-0.3, 0.9, 1.6, 2.9):
        near = ((x - z).abs() < 0.01) & (i != j)
        expected = line_minimizer(torch.tensor([z], **double), points, targets, alpha, weights=weights).item()
        assert abs(y[near].mean().item() - expected) < 5 * y[near].std().item() / math.sqrt(near.sum().item()) + 0.01


@given(st.permutations([-2.0, 0.1, 1.0, 5.0]), st.floats(0.05, 50))
@settings(deadline=None, max_examples=30)
def test_line_minimizer_does_not_depend_on_the_order_or_scale(points, alpha):
    p = torch.tensor(points, **double)
    z = torch.tensor([-1.9, 0.5, 4.0], **double)
    got = line_minimizer(z, p, p.sin(), alpha)
    first = torch.tensor([-2.0, 0.1, 1.0, 5.0], **double)
    assert torch.allclose(got, line_minimizer(z, first, first.sin(), alpha), rtol=1e-9)
    assert torch.allclose(got, line_minimizer(3 * z + 1, 3 * p + 1, p.sin(), alpha, weights=7 * torch.ones(4, **double)), rtol=1e-9)
    assert torch.allclose(line_minimizer(z, p, 2 - 3 * p, alpha), 2 - 3 * z, rtol=1e-9, atol=1e-12)  # affine targets: z itself


def test_line_minimizer_gives_a_point_its_own_target_and_survives_extremes():
    points, targets = torch.tensor([-1.0, 0.0, 1.0], **double), torch.tensor([0.0, 1.0, 0.0], **double)
    assert torch.equal(line_minimizer(points, points, targets, 4.0), targets)
    z = torch.tensor([1e-12, 0.5, 1 - 1e-12], **double)
    for alpha in (1e-9, 1e-2, 1e3, 1e6):
        got = line_minimizer(z, points, targets, alpha)
        assert got.isfinite().all() and (got >= 0).all() and (got <= 1).all()
    assert line_minimizer(z[:1], points, targets, 1e3).item() < 1e-300 and line_minimizer(z[:1], points, targets, 0.01).item() > 0.999
    assert line_minimizer(z[:0], points, targets, 1.0).shape == (0,)
    assert line_minimizer(torch.zeros(1), torch.zeros(1), torch.tensor([0.7]), 1.0).item() == pytest.approx(0.7)


three, labels, middle = torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.5])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mixup_moments(-1.0), "alpha must be at least 0, got -1.0"),
        (lambda: mixup_moments(math.nan), "alpha must be at least 0, got nan"),
        (lambda: entropy_floor(-0.5, torch.tensor([1.0])), "alpha must be at least 0, got -0.5"),
        (lambda: entropy_floor(1.0, torch.tensor([0.5, 0.6])), "non-negative and sum to 1"),
        (lambda: entropy_floor(1.0, torch.tensor([1.5, -0.5])), "non-negative and sum to 1"),
        (lambda: affinity_gap(torch.sin, torch.ones(1, 1), torch.ones(1, 1), torch.tensor([1.1])), r"lam must lie in \[0, 1\]"),
        (lambda: affinity_gap(torch.sin, torch.ones(1, 1), torch.ones(1, 1), torch.tensor([-0.1])), r"lam must lie in \[0, 1\]"),
        (lambda: MixupInference(nn.Identity(), torch.ones(1), torch.ones(1), 0.0), r"factor must lie in \(0, 1\], got 0.0"),
        (lambda: MixupInference(nn.Identity(), torch.ones(1), torch.ones(1), 1.1), r"factor must lie in \(0, 1\], got 1.1"),
        (lambda: line_minimizer(middle, three, labels, 0.0), "alpha must be positive and finite, got 0.0"),
        (lambda: line_minimizer(middle, three, labels, math.inf), "alpha must be positive and finite, got inf"),
        (lambda: line_minimizer(middle, three, labels, 1.0, weights=labels), "weights must be positive"),
        (lambda: line_minimizer(middle, three * 0, labels, 1.0), "different from each other"),
        (lambda: line_minimizer(middle, three[:0], labels[:0], 1.0), "points must be at least one"),
        (lambda: line_minimizer(middle + 1, three, labels, 1.0), "z must lie between the smallest and the largest point, got 1.5"),
        (lambda: line_minimizer(middle - 2, three, labels, 1.0), "z must lie between"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
