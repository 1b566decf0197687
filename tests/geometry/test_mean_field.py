"""Tests of kexue.geometry.mean_field: drift of norms, Lyapunov spectra, effective rank, angle maps, propagation through models."""

import inspect
import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kexue.geometry.mean_field import angle_map, lyapunov, lyapunov_gaussian, norm_drift, participation_gaussian, propagate
from torch import nn

angles = st.floats(0, math.pi)


def one(theta):
    return torch.tensor(theta, dtype=torch.float64)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("n", [1, 2, 7, 64, 199, 201, 10**4, 10**9])
def test_norm_drift_matches_mpmath(n):
    with mpmath.workdps(40):
        mean = float(mpmath.digamma(mpmath.mpf(n) / 2) - mpmath.log(mpmath.mpf(n) / 2))
        variance = float(mpmath.psi(1, mpmath.mpf(n) / 2))
    assert norm_drift(n, 3) == pytest.approx((3 * mean, 3 * variance), rel=1e-12, abs=0)


def test_norm_drift_of_the_text_and_at_depth_zero():
    assert norm_drift(64, 64) == pytest.approx((-1.0052, 2.0316), abs=5e-5)
    assert norm_drift(5, 0) == (0, 0) and norm_drift(5, 0, "relu") == (0, 0)


def test_norm_drift_relu_by_enumeration_for_small_width():
    for n in (1, 2, 5):
        with mpmath.workdps(40):
            p = [mpmath.binomial(n, k) / mpmath.mpf(2) ** n for k in range(n + 1)]
            alive = 1 - p[0]
            m = {k: mpmath.digamma(mpmath.mpf(k) / 2) + mpmath.log(2) + mpmath.log(mpmath.mpf(2) / n) for k in range(1, n + 1)}
            mean = sum(p[k] * m[k] for k in m) / alive
            var = sum(p[k] * (mpmath.psi(1, mpmath.mpf(k) / 2) + m[k] ** 2) for k in m) / alive - mean**2
        assert norm_drift(n, 1, "relu") == pytest.approx((float(mean), float(var)), rel=1e-12, abs=0)


@pytest.mark.parametrize(("activation", "gain", "n", "depth"), [("identity", 1, 16, 8), ("relu", 2, 32, 6)])
def test_norm_drift_matches_explicit_layers(activation, gain, n, depth, rng):
    runs = 4000
    x = torch.randn(runs, n, 1, dtype=torch.float64, generator=rng)
    start = x.square().sum((1, 2))
    for _ in range(depth):
        x = torch.randn(runs, n, n, dtype=torch.float64, generator=rng) @ x * math.sqrt(gain / n)
        x = x.relu() if activation == "relu" else x
    log = (x.square().sum((1, 2)) / start).log()
    mean, var = norm_drift(n, depth, activation)
    assert abs(log.mean().item() - mean) < 4 * math.sqrt(var / runs)
    assert abs(log.var().item() - var) < 4 * var * math.sqrt(3 / runs)  # kurtosis of the sum a little above 3


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_norm_drift_rate_in_the_width(activation):
    drift, spread = {"identity": (1, 2), "relu": (2.5, 5)}[activation]
    mean, var = norm_drift(1000, 1, activation)
    assert (-mean * 1000, var * 1000) == pytest.approx((drift, spread), rel=0.02)
    assert norm_drift(1000, 7, activation) == pytest.approx((7 * mean, 7 * var))


def test_lyapunov_gaussian_of_the_text():
    expected = [-0.065, -0.142, -0.232, -0.342, -0.482, -0.675, -0.982, -1.675]
    assert lyapunov_gaussian(8).tolist() == pytest.approx(expected, abs=6e-4)
    assert lyapunov_gaussian(8).dtype == torch.float64


@pytest.mark.parametrize("n", [1, 3, 10])
def test_lyapunov_gaussian_largest_is_half_the_drift_and_sum_is_log_determinant(n, rng):
    spectrum = lyapunov_gaussian(n)
    assert spectrum[0].item() == pytest.approx(norm_drift(n, 1)[0] / 2, rel=1e-12)
    w = torch.randn(20000, n, n, dtype=torch.float64, generator=rng) / math.sqrt(n)
    log_determinant = torch.linalg.slogdet(w)[1]
    assert abs(log_determinant.mean() - spectrum.sum()).item() < 4 * log_determinant.std().item() / math.sqrt(20000)


def test_lyapunov_of_gaussian_matrices_matches_the_formula(rng):
    n, depth = 6, 3000
    w = torch.randn(depth, n, n, generator=rng) / math.sqrt(n)
    measured = lyapunov(w)
    assert measured.dtype == torch.float64
    # The increments of the i-th exponent are independent, half a log chi^2 with n-i+1 degrees: variance trigamma/4.
    se = torch.sqrt(torch.special.polygamma(1, torch.arange(n, 0, -1, dtype=torch.float64) / 2) / 4 / depth)
    assert ((measured - lyapunov_gaussian(n)).abs() < 4 * se).all()
    torch.testing.assert_close(lyapunov(iter(w), every=7), measured, atol=1e-6, rtol=0)


def test_lyapunov_sum_is_the_mean_log_determinant_of_the_very_matrices(rng):
    w = torch.randn(11, 4, 4, dtype=torch.float64, generator=rng)
    expected = torch.linalg.slogdet(w)[1].mean()
    for every in (1, 3, 11, 50):
        torch.testing.assert_close(lyapunov(w, every=every).sum(), expected, atol=1e-10, rtol=0)


def test_lyapunov_of_known_products():
    d = torch.diag(torch.tensor([2.0, 1.0, 0.25], dtype=torch.float64))
    torch.testing.assert_close(lyapunov([d] * 5000), d.diagonal().log())  # the product underflows in its last entry
    shear = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    assert lyapunov([shear.mT] * 4000).abs().max() < 3e-3  # grows like log(L)/L
    order = [torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.diag(torch.tensor([3.0, 1.0]))]
    assert lyapunov(order).tolist() == pytest.approx([0.0, math.log(3) / 2])  # acts first: e_1 -> e_2, then scaled by 1


def test_lyapunov_of_a_singular_matrix_is_minus_infinity():
    assert lyapunov([torch.diag(torch.tensor([1.0, 0.0]))]).tolist() == [0.0, -math.inf]


@pytest.mark.parametrize(
    ("matrices", "options", "message"),
    [
        ([], {}, "at least one matrix"),
        ([torch.eye(2)], {"every": 0}, "every must be at least 1, got 0"),
        ([torch.ones(2, 3)], {}, r"square, got shape \(2, 3\)"),
        ([torch.ones(4)], {}, "square"),
        ([torch.eye(2), torch.eye(3)], {}, r"all have shape \(2, 2\), got \(3, 3\) at position 1"),
    ],
)
def test_lyapunov_refuses(matrices, options, message):
    with pytest.raises(ValueError, match=message):
        lyapunov(matrices, **options)


@pytest.mark.parametrize(("n", "depth"), [(2, 1), (2, 5), (5, 3), (64, 40)])
def test_participation_solves_its_recursion_in_exact_arithmetic(n, depth):
    # (E tr A^2, E (tr A)^2) of A = P^T P, one Gaussian factor at a time, from Wick's theorem.
    p, q = mpmath.mpf(n), mpmath.mpf(n) ** 2
    for _ in range(depth):
        p, q = p + p / n + q / n, q + 2 * p / n
    assert participation_gaussian(n, depth) == pytest.approx(float(q / p), rel=1e-12)


def test_participation_matches_explicit_products(rng):
    n, depth, runs = 6, 3, 40000
    product = torch.eye(n, dtype=torch.float64)
    for _ in range(depth):
        product = torch.randn(runs, n, n, dtype=torch.float64, generator=rng) @ product / math.sqrt(n)
    gram = product.mT @ product
    trace, square = gram.diagonal(dim1=1, dim2=2).sum(1), gram.square().sum((1, 2))
    assert (trace.square().mean() / square.mean()).item() == pytest.approx(participation_gaussian(n, depth), rel=0.03)


def test_participation_limits():
    assert participation_gaussian(50, 0) == pytest.approx(50) and participation_gaussian(1, 9) == 1
    assert participation_gaussian(10**7, 9) == pytest.approx(10**6, rel=1e-5)
    assert participation_gaussian(10**6, 10**6) == pytest.approx(1 + 3 / math.expm1(3), rel=1e-5)
    assert participation_gaussian(8, 10**6) == 1


@pytest.mark.parametrize("function", [norm_drift, participation_gaussian])
def test_sizes_are_checked(function):
    for n, depth in ((0, 1), (4, -1)):
        with pytest.raises(ValueError, match=f"n must be at least 1 and depth at least 0, got n={n}, depth={depth}"):
            function(n, depth)
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        lyapunov_gaussian(0)


def exact_relu(theta, a=0.0):
    with mpmath.workdps(140):
        t, a = mpmath.mpf(theta), mpmath.mpf(a)
        cosine = mpmath.cos(t) + (1 - a) ** 2 / (1 + a**2) * (mpmath.sin(t) - t * mpmath.cos(t)) / mpmath.pi
        return float(mpmath.acos(cosine))


@pytest.mark.parametrize("theta", [0.0, 1e-30, 1e-12, 1e-4, 0.05, 0.2999999, 0.3000001, 1.0, math.pi / 2, 3.0, math.pi])
@pytest.mark.parametrize("slope", [0.0, 0.25, 1.0, -1.0])
def test_relu_map_matches_mpmath_with_relative_accuracy(theta, slope):
    folds_up = slope == -1 and theta > 2  # |z| maps pi to 0: absolute accuracy is all there is
    expected = pytest.approx(exact_relu(theta, slope), rel=1e-14, abs=1e-14 if folds_up else 0)
    assert angle_map(one(theta), "relu", slope=slope).item() == expected


def test_relu_map_of_the_text():
    theta, seen = one(math.pi / 2), []
    for _ in range(10):
        theta = angle_map(theta, "relu")
        seen.append(math.degrees(theta.item()))
    assert [seen[i] for i in (0, 1, 4, 9)] == pytest.approx([71.44, 60.41, 42.61, 29.36], abs=5e-3)


def test_relu_map_decays_like_three_pi_over_depth():
    theta = one(math.pi / 2)
    for depth in range(1, 1001):
        theta = angle_map(theta, "relu")
        if depth == 100:
            early = theta.item()
    assert theta.item() * 1000 / (3 * math.pi) == pytest.approx(0.985, abs=1e-3)
    assert early * 100 / (3 * math.pi) == pytest.approx(0.898, abs=1e-3)


def test_relu_map_matches_wide_layers(rng):
    width = 200000
    u, g = torch.randn(2, width, dtype=torch.float64, generator=rng)
    for theta in (0.3, 1.2, 2.8):
        v = math.cos(theta) * u + math.sin(theta) * g
        for slope in (0.0, 0.25):
            a, b = (nn.functional.leaky_relu(t, slope) for t in (u, v))
            measured = torch.acos(a @ b / (a.norm() * b.norm())).item()
            assert measured == pytest.approx(angle_map(one(theta), "relu", slope=slope).item(), abs=0.015)


def test_leaky_relu_gain_keeps_the_mean_square(rng):
    z = torch.randn(400000, dtype=torch.float64, generator=rng)
    for slope in (0.0, 0.3, -1.0):
        gain = math.sqrt(2 / (1 + slope**2))
        assert nn.functional.leaky_relu(gain * z, slope).square().mean().item() == pytest.approx(1, abs=0.02)


@settings(max_examples=50, deadline=None)
@given(theta=angles, variance=st.floats(0.05, 4))
@example(theta=3.0, variance=4.0)
def test_erf_map_agrees_with_quadrature(theta, variance):
    closed, rule = (angle_map(one(theta), f, variance=variance).item() for f in ("erf", torch.erf))
    assert closed == pytest.approx(rule, abs=1e-14 if variance <= 1 else 2e-6)


@pytest.mark.parametrize("theta", [0.0, 1e-9, 1e-3, 1.0, math.pi / 2, 2.0, math.pi - 1e-6])
def test_erf_map_matches_mpmath(theta):
    with mpmath.workdps(60):
        a = mpmath.mpf(2) / 3
        exact = mpmath.acos(mpmath.asin(a * mpmath.cos(mpmath.mpf(theta))) / mpmath.asin(a))
    assert angle_map(one(theta), "erf", variance=1.0).item() == pytest.approx(float(exact), rel=1e-10, abs=0)


@settings(max_examples=40, deadline=None)
@given(theta=angles, activation=st.sampled_from(["identity", "erf", "tanh", torch.sin]))
def test_odd_activations_map_supplements_to_supplements(theta, activation):
    image, mirrored = angle_map(one(theta), activation), angle_map(math.pi - one(theta), activation)
    assert (image + mirrored).item() == pytest.approx(math.pi, abs=1e-12)
    if activation == "tanh":
        assert image.item() >= theta - 1e-12 if theta <= math.pi / 2 else image.item() <= theta + 1e-12


def test_scale_invariance_and_identity_of_the_quadrature():
    theta = torch.linspace(0, math.pi, 7, dtype=torch.float64)
    torch.testing.assert_close(angle_map(theta, lambda z: 3 * z), theta, atol=1e-13, rtol=0)
    torch.testing.assert_close(angle_map(theta, "identity"), theta)
    assert angle_map(theta, "identity") is not theta
    torch.testing.assert_close(angle_map(theta, torch.relu), angle_map(theta, "relu"), atol=3e-3, rtol=0)
    tiny = torch.tensor([1e-6], dtype=torch.float64)
    nodes = np.linspace(-12, 12, 200001)
    w = np.exp(-(nodes**2) / 2)
    ratio = math.sqrt((w / np.cosh(nodes) ** 4).sum() / (w * np.tanh(nodes) ** 2).sum())
    assert (angle_map(tiny, "tanh") / tiny).item() == pytest.approx(ratio, rel=1e-8)


def test_tanh_map_turns_angles_to_second_order_in_the_variance():
    q = 1e-3
    theta = one(0.8)
    turned = (angle_map(theta, "tanh", variance=q) - theta).item()
    assert turned == pytest.approx(q**2 * math.sin(1.6) / 3, rel=0.02)


@pytest.mark.parametrize("slope", [0.0, 0.25])
def test_relu_map_gradient(slope):
    theta = torch.tensor([1e-3, 0.2, 0.31, 1.0, 2.0, 3.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: angle_map(t, "relu", slope=slope), theta)
    ends = torch.tensor([0.0, math.pi], dtype=torch.float64, requires_grad=True)
    gradient = torch.autograd.grad(angle_map(ends, "relu").sum(), ends)[0]
    assert gradient.tolist() == pytest.approx([1.0, 0.0], abs=1e-12)


def test_angle_map_keeps_dtype_and_shape():
    theta = torch.full((2, 1, 3), math.pi)  # float32 pi is above pi
    for activation in ("identity", "relu", "erf", "tanh"):
        image = angle_map(theta, activation)
        assert image.dtype == torch.float32 and image.shape == theta.shape
    assert angle_map(torch.empty(0), "relu").shape == (0,)


@pytest.mark.parametrize(
    ("theta", "activation", "options", "message"),
    [
        (-0.1, "relu", {}, r"theta must lie in \[0, pi\], got values from -0.1"),
        (3.2, "relu", {}, "theta must lie"),
        (math.nan, "relu", {}, "theta must lie"),
        (1.0, "tanh", {"variance": 0.0}, "variance must be positive and finite, got 0.0"),
        (1.0, "tanh", {"variance": math.inf}, "variance"),
        (1.0, "tanh", {"slope": 0.1}, "slope belongs to activation 'relu' alone, got slope=0.1 with 'tanh'"),
        (1.0, torch.zeros_like, {}, "positive, finite mean square under the normal law, got 0.0"),
        (1.0, lambda z: z * math.inf, {}, "positive, finite mean square"),
    ],
)
def test_angle_map_refuses(theta, activation, options, message):
    with pytest.raises(ValueError, match=message):
        angle_map(one(theta), activation, **options)


def test_propagate_reads_norms_and_angles_behind_every_layer(rng):
    first, last = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
        last.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    x = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [0.0, 3.0]])
    readings = propagate(nn.Sequential(first, nn.ReLU(), last), x)
    assert [reading.name for reading in readings] == ["input", "0", "1", "2"]
    assert readings[0].angle[0].rad2deg().tolist() == pytest.approx([0, 135, 90])
    assert readings[1].norm.tolist() == pytest.approx([2, 2 * math.sqrt(2), 6])
    assert readings[2].angle.rad2deg().tolist() == [pytest.approx(row, abs=1e-4) for row in ([0, 90, 90], [90, 0, 0], [90, 0, 0])]
    assert readings[3].angle.max() == 0 and not readings[3].norm.requires_grad


def test_propagate_is_exact_at_tiny_and_straight_angles():
    x = torch.tensor([[1.0, 0.0], [1.0, 1e-9], [-1.0, 1e-9]], dtype=torch.float64)
    angle = propagate(nn.Identity(), x)[0].angle
    assert angle[0, 1].item() == pytest.approx(1e-9, rel=1e-12, abs=0)
    assert math.pi - angle[0, 2].item() == pytest.approx(1e-9, rel=1e-6, abs=0)


def test_propagate_flattens_features_and_reports_repeated_calls_and_dead_vectors():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x):
            return self.act(self.act(x) * 2)

    readings = propagate(Twice(), torch.stack([torch.ones(2, 3), -torch.ones(2, 3)]))
    assert [reading.name for reading in readings] == ["input", "act", "act"]
    assert readings[2].norm.tolist() == pytest.approx([2 * math.sqrt(6), 0])
    assert readings[2].angle[0, 1].isnan() and readings[2].angle[0, 0] == 0


def test_propagate_follows_the_angle_map_in_a_wide_relu_layer(rng):
    layer = nn.Linear(2, 200000, bias=False)
    nn.init.normal_(layer.weight, generator=rng)
    readings = propagate(nn.Sequential(layer, nn.ReLU()), torch.eye(2))
    assert readings[2].angle[0, 1].item() == pytest.approx(angle_map(one(math.pi / 2), "relu").item(), abs=0.01)


def test_propagate_refuses_an_empty_batch():
    with pytest.raises(ValueError, match="at least one example"):
        propagate(nn.Identity(), torch.empty(0, 3))


def test_unknown_activations_are_refused_without_a_type_checker():
    with pytest.raises(ValueError, match="'identity' or 'relu', the two with a closed form, got 'tanh'"):
        inspect.unwrap(norm_drift)(3, 3, "tanh")
    with pytest.raises(ValueError, match="or a function of a tensor, got 'gelu'"):
        inspect.unwrap(angle_map)(torch.tensor(1.0), "gelu")
