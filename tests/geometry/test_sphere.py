"""Tests of the law of the angle between random directions; mpmath, scipy and closed forms in low dimension are the oracles."""

import math

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.geometry.sphere import (
    angle_cdf,
    angle_cumulant,
    angle_logpdf,
    angle_std,
    coherence_quantile,
    cosine_logpdf,
    cosine_logsf,
    random_cosine,
    random_unit,
)

mpmath.mp.dps = 40
DIMENSIONS = [2, 2.5, 3, 4, 7.3, 50, 1e4, 1e9]
REFUSED = r"n must be a finite dimension >= 2, got"


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def log_constant(n: float) -> mpmath.mpf:
    n = mpmath.mpf(n)
    return mpmath.loggamma(n / 2) - mpmath.loggamma((n - 1) / 2) - mpmath.log(mpmath.pi) / 2


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- densities --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", DIMENSIONS)
@pytest.mark.parametrize("theta", [1e-8, 0.3, 1.0, 1.04, 1.05, 1.5, math.pi / 2, math.pi / 2 + 3e-5, 2.8])
def test_angle_logpdf_matches_mpmath(n, theta):
    exact = log_constant(n) + (mpmath.mpf(n) - 2) * mpmath.log(mpmath.sin(theta))
    assert abs(angle_logpdf(f64(theta), n).item() - exact) < 1e-15 * max(10, abs(exact))


@pytest.mark.parametrize("n", DIMENSIONS)
@pytest.mark.parametrize("t", [-1 + 1e-9, -0.7, -0.501, -0.499, 0.0, 2e-5, 0.3, 0.99])
def test_cosine_logpdf_matches_mpmath(n, t):
    exact = log_constant(n) + (mpmath.mpf(n) - 3) / 2 * mpmath.log((1 - mpmath.mpf(t)) * (1 + mpmath.mpf(t)))
    assert abs(cosine_logpdf(f64(t), n).item() - exact) < 1e-15 * max(10, abs(exact))


def test_densities_in_low_dimension_are_the_elementary_ones():
    theta = torch.linspace(0.1, 3.0, 30, dtype=torch.float64)
    s = torch.sin(theta)
    pi = math.pi
    elementary = {2: 1 / pi + 0 * s, 3: s / 2, 4: 2 * s**2 / pi, 5: 3 * s**3 / 4, 6: 8 * s**4 / (3 * pi), 7: 15 * s**5 / 16}
    for n, density in elementary.items():
        torch.testing.assert_close(angle_logpdf(theta, n).exp(), density, rtol=1e-14, atol=0)


@pytest.mark.parametrize("n", [2.5, 3.0, 6.0, 40.0, 999.0])
def test_cosine_logpdf_matches_scipy_beta(n):
    t = np.linspace(-0.99, 0.99, 41)
    peer = scipy.stats.beta.logpdf((1 + t) / 2, (n - 1) / 2, (n - 1) / 2) - math.log(2)
    np.testing.assert_allclose(cosine_logpdf(torch.from_numpy(t), n).numpy(), peer, rtol=1e-11, atol=1e-11)


@settings(max_examples=80, deadline=None)
@given(st.floats(0.01, 3.13), st.floats(2, 1e5))
def test_densities_agree_under_the_change_of_variable(theta, n):
    theta = f64(theta)
    # the slope of log sin is cot, so one rounding of the cosine is magnified by n cot(theta)
    difference = angle_logpdf(theta, n) - cosine_logpdf(torch.cos(theta), n) - torch.log(torch.sin(theta))
    assert abs(difference.item()) < 4e-16 * (20 + n / torch.sin(theta).item() ** 2)


@pytest.mark.parametrize("n", [2, 2.2, 3, 10, 1000])
def test_densities_integrate_to_one(n):
    total, _ = scipy.integrate.quad(lambda theta: angle_logpdf(f64(theta), n).exp().item(), 0, math.pi, points=[math.pi / 2], epsabs=1e-11)
    assert total == pytest.approx(1, abs=1e-10)


def test_densities_at_the_ends_and_outside():
    ends = f64(0.0, -0.1, 3.2)
    assert angle_logpdf(ends, 5).tolist() == [-math.inf] * 3
    assert angle_logpdf(f64(0.0, math.pi), 2).tolist() == pytest.approx([-math.log(math.pi)] * 2)
    assert angle_logpdf(torch.tensor(math.pi), 2.0).item() == pytest.approx(-math.log(math.pi))  # the float32 pi is larger than pi
    assert cosine_logpdf(f64(-1.0, 1.0, 1.01, -2.0), 5).tolist() == [-math.inf] * 4
    assert cosine_logpdf(f64(-1.0, 1.0), 3).tolist() == pytest.approx([-math.log(2)] * 2)
    assert cosine_logpdf(f64(-1.0, 1.0), 2.9).tolist() == [math.inf] * 2


@pytest.mark.parametrize("n", [2, 3, 5])
def test_densities_pass_a_nan_on(n):
    for law in (angle_logpdf, cosine_logpdf):
        value = law(f64(math.nan, 0.5), n)
        assert math.isnan(value[0]) and torch.isfinite(value[1])


@pytest.mark.parametrize(("law", "name"), [(angle_cdf, "theta"), (cosine_logsf, "t")])
def test_distribution_functions_refuse_a_nan_by_name(law, name):
    with pytest.raises(ValueError, match=f"^{name} must not contain NaN"):
        law(f64(0.3, math.nan), 4)


def test_densities_broadcast_and_keep_the_type():
    theta, n = torch.linspace(0.1, 3, 5), torch.tensor([[2.0], [3.0], [9.0]])
    for law in (angle_logpdf, cosine_logpdf, angle_cdf, cosine_logsf):
        value = law(theta / 4, n)
        assert value.shape == (3, 5) and value.dtype == torch.float32
        torch.testing.assert_close(value, law(theta.double() / 4, n.double()).float(), rtol=1e-6, atol=1e-6)


def test_densities_have_gradients_in_both_arguments():
    theta = f64(0.2, 1.0, 1.5, 1.6, 2.9).requires_grad_()
    t = f64(-0.9, -0.4, 0.0, 0.49, 0.95).requires_grad_()
    n = f64(2.0, 3.0, 4.5, 60.0, 3.0).requires_grad_()
    with torch.no_grad():
        n.add_(1e-3)  # central differences must not step below 2
    assert torch.autograd.gradcheck(angle_logpdf, (theta, n))
    assert torch.autograd.gradcheck(cosine_logpdf, (t, n))


def test_gradient_in_n_is_right_where_the_constant_is_huge():
    n = f64(1e8).requires_grad_()
    angle_logpdf(f64(math.pi / 2), n).sum().backward()
    exact = (mpmath.digamma(mpmath.mpf(10) ** 8 / 2) - mpmath.digamma((mpmath.mpf(10) ** 8 - 1) / 2)) / 2
    assert n.grad.item() == pytest.approx(float(exact), rel=1e-7)


def test_gradient_outside_the_support_is_zero_not_nan():
    for law, value in ((angle_logpdf, 4.0), (cosine_logpdf, 1.5)):
        x = f64(value, 0.5).requires_grad_()
        law(x, 6.0)[1].backward()
        assert x.grad[0] == 0 and torch.isfinite(x.grad[1])


@pytest.mark.parametrize("n", [1.99, -3, math.nan, math.inf])
def test_dimensions_below_two_are_refused(n):
    for law in (angle_logpdf, cosine_logpdf, angle_cdf, cosine_logsf):
        with pytest.raises(ValueError, match=REFUSED):
            law(f64(0.5), n)
    with pytest.raises(ValueError, match=REFUSED):
        angle_cumulant(n, 2)
    with pytest.raises(ValueError, match=REFUSED):
        random_cosine(n, 3)
    with pytest.raises(ValueError, match=REFUSED):
        coherence_quantile(n, 3, 0.5)
    with pytest.raises(ValueError, match=REFUSED):
        angle_logpdf(f64(0.5, 0.5), f64(3.0, float(n)))


# --- distribution functions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("t", "n", "expected"),
    [(0.9, 1000, "-833.109530480707339"), (0.5, 10_000, "-1442.40461032618557"), (0.99, 4096, "-8024.50485101860173")],
)
def test_two_sided_tail_is_finite_where_probabilities_underflow(t, n, expected):
    assert math.log(2) + cosine_logsf(f64(t), n).item() == pytest.approx(float(expected), rel=1e-14)
    assert scipy.stats.beta.logsf((1 + t) / 2, (n - 1) / 2, (n - 1) / 2) == -math.inf  # why this function exists


@pytest.mark.parametrize("n", [2, 2.5, 3, 8, 100, 4000.5])
@pytest.mark.parametrize("t", [-0.99, -0.3, -1e-6, 0.0, 1e-6, 0.1, 0.45, 0.8, 1 - 1e-9])
def test_cosine_logsf_matches_mpmath(t, n):
    a, t_ = (mpmath.mpf(n) - 1) / 2, mpmath.mpf(t)
    half = mpmath.betainc(a, mpmath.mpf(1) / 2, 0, (1 - t_) * (1 + t_), regularized=True) / 2
    exact = mpmath.log(half if t >= 0 else 1 - half)
    assert abs(cosine_logsf(f64(t), n).item() - exact) <= 4e-14 * abs(exact) + 4e-16


def test_cosine_logsf_in_low_dimension_is_elementary():
    t = torch.linspace(-0.999, 0.999, 41, dtype=torch.float64)
    torch.testing.assert_close(cosine_logsf(t, 2).exp(), torch.acos(t) / math.pi, rtol=1e-13, atol=0)
    torch.testing.assert_close(cosine_logsf(t, 3).exp(), (1 - t) / 2, rtol=1e-13, atol=0)


def test_cosine_logsf_approaches_the_normal_tail():
    n = 1e9
    z = f64(-3.0, -1.0, 0.0, 0.5, 1.0, 1.25, 2.0, 5.0, 12.0)
    normal = torch.special.log_ndtr(-z)
    # (n-3)/2 log(1 - t^2) differs from the normal exponent by z^4 / (4 n) + O(z^2 / n)
    assert bool(((cosine_logsf(z / math.sqrt(n), n) - normal).abs() < (z**4 / 3 + 2 * z**2 + 1) / n).all())


def test_cosine_logsf_at_the_ends():
    assert cosine_logsf(f64(-1.0, -3.0), 4).tolist() == [0.0, 0.0]
    assert cosine_logsf(f64(1.0, 1.2), 4).tolist() == [-math.inf, -math.inf]
    assert cosine_logsf(f64(0.0), 1e9).item() == pytest.approx(-math.log(2), rel=1e-15)


def test_slope_of_cosine_logsf_is_the_hazard():
    t = f64(-0.8, -0.2, 0.05, 0.3, 0.7).requires_grad_()
    n = 20.0
    cosine_logsf(t, n).sum().backward()
    hazard = torch.exp(cosine_logpdf(t, n) - cosine_logsf(t, n))
    torch.testing.assert_close(t.grad, -hazard.detach(), rtol=1e-11, atol=0)
    assert torch.autograd.gradcheck(lambda m: cosine_logsf(t.detach(), m), (f64(20.0).requires_grad_(),))


@settings(max_examples=60, deadline=None)
@given(st.floats(0.01, 3.13), st.floats(2, 1e6))
def test_angle_cdf_is_symmetric_and_the_tail_of_the_cosine(theta, n):
    theta = f64(theta)
    assert abs(angle_cdf(theta, n) + angle_cdf(math.pi - theta, n) - 1).item() < 1e-12 * math.sqrt(n)
    assert torch.allclose(angle_cdf(theta, n), cosine_logsf(torch.cos(theta), n).exp(), rtol=1e-9, atol=1e-12)


def test_angle_cdf_is_precise_for_small_angles_and_clamped_outside():
    theta = f64(1e-7)
    exact = mpmath.betainc(mpmath.mpf(9) / 2, mpmath.mpf(1) / 2, 0, mpmath.sin(mpmath.mpf(1e-7)) ** 2, regularized=True) / 2
    assert angle_cdf(theta, 10).item() == pytest.approx(float(exact), rel=1e-13)
    assert angle_cdf(f64(-1.0, 0.0, math.pi / 2, math.pi, 4.0), 6).tolist() == pytest.approx([0, 0, 0.5, 1, 1], abs=1e-15)


def test_angle_cdf_differentiates_to_the_density():
    theta = f64(0.3, 1.2, 1.7, 2.5).requires_grad_()
    angle_cdf(theta, 9.0).sum().backward()
    torch.testing.assert_close(theta.grad, angle_logpdf(theta, 9.0).exp().detach(), rtol=1e-11, atol=0)


# --- cumulants --------------------------------------------------------------------------------------------------------

PUBLISHED = {3: 0.467401, 10: 0.110661, 20: 0.0525832, 50: 0.0204053, 100: 0.0101007, 200: 0.00502508, 1000: 0.001001}


@pytest.mark.parametrize(("n", "variance"), PUBLISHED.items())
def test_variance_agrees_with_the_published_table(n, variance):
    assert angle_cumulant(n, 2).item() == pytest.approx(variance, rel=5e-6)


@pytest.mark.parametrize("n", [2, 3, 5.5, 33, 200])
def test_cumulants_match_moments_by_quadrature(n):
    n_ = mpmath.mpf(n)
    weight = mpmath.exp(log_constant(n))
    m2, m4, m6 = (
        2 * weight * mpmath.quad(lambda u, k=k: u**k * mpmath.cos(u) ** (n_ - 2), [0, 0.2, 0.6, mpmath.pi / 2]) for k in (2, 4, 6)
    )
    exact = {2: m2, 4: m4 - 3 * m2**2, 6: m6 - 15 * m4 * m2 + 30 * m2**3}
    for order, value in exact.items():
        assert angle_cumulant(n, order).item() == pytest.approx(float(value), rel=1e-13)


def test_mean_is_a_right_angle_and_odd_cumulants_vanish():
    assert angle_cumulant(7, 1).item() == math.pi / 2
    assert [angle_cumulant(7, k).item() for k in (3, 5, 9)] == [0, 0, 0]


def test_variance_obeys_the_recursion_by_parts():
    m = torch.arange(2, 400, dtype=torch.float64)
    torch.testing.assert_close(angle_cumulant(m + 2, 2), angle_cumulant(m, 2) - 2 / m**2, rtol=1e-12, atol=1e-16)
    assert angle_cumulant(2, 2).item() == pytest.approx(math.pi**2 / 12, rel=1e-15)
    assert angle_cumulant(3, 2).item() == pytest.approx(math.pi**2 / 4 - 2, rel=1e-14)


def test_variance_expansion_has_the_stated_rate():
    n = f64(40.0, 80.0, 160.0)
    rest = angle_cumulant(n, 2) - (1 / n + 1 / n**2 + 2 / (3 * n**3))
    slope = torch.log2(rest[1:] / rest[:-1])
    torch.testing.assert_close(slope, f64(-5.0, -5.0), rtol=0, atol=0.01)
    torch.testing.assert_close(rest * n**5, f64(-8 / 15, -8 / 15, -8 / 15), rtol=0.01, atol=0)


def test_std_is_the_root_of_the_variance_with_type_and_gradient():
    n = torch.tensor([3.0, 40.0])
    assert angle_std(n).dtype == torch.float32 and angle_std(10).dtype == torch.float64
    assert angle_std(10).item() ** 2 == pytest.approx(PUBLISHED[10], rel=5e-6)
    assert torch.autograd.gradcheck(angle_std, (f64(3.0, 17.0, 300.0).requires_grad_(),))


def test_order_zero_is_refused():
    with pytest.raises(ValueError, match=r"order must be an integer >= 1, got 0"):
        angle_cumulant(5, 0)


# --- draws ------------------------------------------------------------------------------------------------------------


def kolmogorov_distance(sample: torch.Tensor, n: float) -> float:
    cdf = angle_cdf(torch.acos(sample), n)  # of the angle; the cosine falls with it
    ordered, size = cdf.sort().values, len(sample)
    grid = torch.arange(size + 1, dtype=torch.float64) / size
    return max((ordered - grid[:-1]).abs().max().item(), (ordered - grid[1:]).abs().max().item())


@pytest.mark.parametrize("n", [2, 2.5, 3, 50, 1e6])
def test_random_cosine_has_the_law(n):
    size = 40_000
    assert kolmogorov_distance(random_cosine(n, size, generator=generator(1)), n) < 1.95 / math.sqrt(size)  # passes with probability 0.999


def test_random_cosine_is_symmetric_and_has_the_even_moments():
    size, n = 200_000, 12
    t = random_cosine(n, size, generator=generator(2))
    assert t.dtype == torch.float64 and t.abs().max() <= 1
    moments = {1: 0, 2: 1 / n, 3: 0, 4: 3 / (n * (n + 2)), 6: 15 / (n * (n + 2) * (n + 4))}
    for k, exact in moments.items():
        error = (t**k).std().item() / math.sqrt(size)
        assert abs((t**k).mean().item() - exact) < 5 * error


def test_random_unit_has_unit_rows_and_the_law_of_scipy():
    points = random_unit(6, 30_000, generator=generator(3), dtype=torch.float64)
    assert torch.allclose(points.norm(dim=1), torch.ones(1, dtype=torch.float64), rtol=1e-14)
    torch.testing.assert_close(points.T @ points / 30_000, torch.eye(6, dtype=torch.float64) / 6, rtol=0, atol=5 * 0.2 / math.sqrt(30_000))
    assert points.mean(0).abs().max() < 5 / math.sqrt(6 * 30_000)
    peer = scipy.stats.uniform_direction(6, seed=4).rvs(30_000)
    assert scipy.stats.ks_2samp(points[:, 2].numpy(), peer[:, 0]).pvalue > 1e-3


def test_draws_repeat_with_the_generator_and_only_then():
    for draw in (lambda g: random_unit(5, 7, generator=g), lambda g: random_cosine(5, 7, generator=g)):
        assert draw(generator(5)).equal(draw(generator(5)))
        assert not draw(generator(5)).equal(draw(generator(6)))
    assert random_unit(5, 7).dtype == torch.float32
    assert random_unit(3, 0).shape == (0, 3) and random_cosine(3, 0).shape == (0,)


def test_negative_sizes_and_a_line_are_refused():
    with pytest.raises(ValueError, match=r"size must be >= 0, got -1"):
        random_unit(3, -1)
    with pytest.raises(ValueError, match=r"size must be >= 0, got -1"):
        random_cosine(3, -1)
    with pytest.raises(ValueError, match=REFUSED):
        random_unit(1, 4)


# --- coherence --------------------------------------------------------------------------------------------------------


def test_coherence_quantile_in_three_dimensions_is_elementary():
    # there |cos| is uniform, so that M (1 - e) = -log q
    for count, q in [(10, 0.5), (300, 0.01), (300, 0.999)]:
        pairs = count * (count - 1) / 2
        assert coherence_quantile(3, count, q) == pytest.approx(1 + math.log(q) / pairs, rel=1e-14)


def test_coherence_quantile_is_zero_when_the_equation_has_no_root():
    assert coherence_quantile(5, 2, 1e-6) == 0  # one pair, -log q = 13.8 > 1


def test_coherence_quantile_matches_simulation_within_the_bound():
    n, count, runs = 24, 60, 400
    g = generator(7)
    largest = torch.stack([torch.triu((U @ U.T).abs(), 1).max() for U in (random_unit(n, count, generator=g) for _ in range(runs))])
    for q in (0.1, 0.5, 0.9):
        share = (largest <= coherence_quantile(n, count, q)).double().mean().item()
        bound = 8 * math.log(1 / q) * (1 - q) / (count - 1)
        assert abs(share - q) < bound + 3.5 * math.sqrt(q * (1 - q) / runs)


@settings(max_examples=20, deadline=None)
@given(st.floats(3, 2000), st.integers(3, 10**6), st.floats(0.01, 0.9))
def test_coherence_quantile_grows_with_count_and_level_and_falls_with_dimension(n, count, q):
    level = coherence_quantile(n, count, q)
    assert 0 <= level < 1
    assert coherence_quantile(n, 2 * count, q) >= level
    assert coherence_quantile(n, count, q + 0.05) >= level
    assert coherence_quantile(n + 1, count, q) <= level


@pytest.mark.parametrize(
    ("count", "q", "message"), [(1, 0.5, "count must be at least 2"), (5, 0.0, "q must lie strictly"), (5, 1.0, "q must lie strictly")]
)
def test_coherence_quantile_refuses_what_has_no_pairs_or_no_level(count, q, message):
    with pytest.raises(ValueError, match=message):
        coherence_quantile(5, count, q)
