"""Tests of kexue.regularization.mask_averages: enumeration by plain loops, normal equations, scikit-learn, rates, bounds, refusals."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.regularization import mask_averages as room
from kexue.regularization.mask_averages import (
    deletion_penalty,
    dropout_expectation,
    dropout_ridge,
    dropout_variance,
    enumerate_masks,
    glm_penalty,
    relu_bias_bound,
)
from sklearn.linear_model import Ridge

RATES = (0.1, 0.5, 0.9)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def softplus(z):
    return torch.logaddexp(z, torch.zeros_like(z))


@pytest.mark.parametrize("d", [0, 1, 3, 8])
def test_enumerate_masks_is_every_mask_once(d):
    masks = enumerate_masks(d)
    assert masks.shape == (2**d, d) and len({tuple(row) for row in masks.tolist()}) == 2**d
    assert torch.equal((masks.long() * 2 ** torch.arange(d)).sum(1), torch.arange(2**d))


@pytest.mark.parametrize("d", [-1, 21])
def test_enumerate_masks_refuses(d):
    with pytest.raises(ValueError, match=f"d must be from 0 to 20 .*, got {d}"):
        enumerate_masks(d)


@pytest.mark.parametrize("p", [0.0, *RATES])
def test_dropout_expectation_matches_a_plain_loop(p, monkeypatch):
    monkeypatch.setattr(room, "CHUNK_MASKS", 5)  # chunks that do not divide the number of masks
    x, w = normal(4), normal(4, 3, seed=1)
    expected = torch.zeros(3, dtype=torch.float64)
    for mask in itertools.product([0, 1], repeat=4):
        chance = math.prod((1 - p) if m else p for m in mask)
        expected += chance * torch.tanh((x * torch.tensor(mask) / (1 - p)) @ w)
    assert torch.allclose(dropout_expectation(lambda rows: torch.tanh(rows @ w), x, p), expected, rtol=1e-13, atol=1e-14)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9), st.floats(0, 0.95), st.integers(0, 1000))
def test_dropout_expectation_law_first_and_second_moment(d, p, seed):
    x = normal(d, seed=seed)
    assert torch.allclose(dropout_expectation(lambda rows: rows, x, p), x, atol=1e-12)
    second = dropout_expectation(lambda rows: rows[:, :, None] * rows[:, None, :], x, p)
    covariance = second - torch.outer(x, x)
    assert torch.allclose(covariance, p / (1 - p) * torch.diag(x.square()), atol=1e-10)


def test_dropout_expectation_is_differentiable_and_exact_for_affine_logits():
    x, w = normal(6).requires_grad_(), normal(6, 4, seed=1)
    assert torch.autograd.gradcheck(lambda x: dropout_expectation(lambda rows: (rows @ w).log_softmax(1), x, 0.3), x)
    for p in RATES:
        geometric = dropout_expectation(lambda rows: (rows @ w + 1).log_softmax(1), x, p).softmax(0)
        assert torch.allclose(geometric, (x @ w + 1).softmax(0), rtol=1e-12)


def test_dropout_expectation_drops_infinities():
    x = torch.tensor([math.inf, 1.0], dtype=torch.float64)
    assert torch.allclose(dropout_expectation(lambda rows: torch.exp(-rows[:, 0]), x, 0.3), torch.tensor(0.3, dtype=torch.float64))


@pytest.mark.parametrize("p", RATES)
def test_dropout_ridge_solves_its_normal_equations(p):
    x, y = normal(30, 7), normal(30, seed=1)
    gram = x.T @ x
    expected = torch.linalg.solve(gram + p / (1 - p) * torch.diag(gram.diagonal()), x.T @ y)
    assert torch.allclose(dropout_ridge(x, y, p), expected, rtol=1e-11)
    both = dropout_ridge(x, torch.stack([y, 2 * y], 1), p)
    assert torch.allclose(both, torch.stack([expected, 2 * expected], 1), rtol=1e-11)


@pytest.mark.parametrize("p", RATES)
def test_dropout_ridge_agrees_with_sklearn_on_columns_of_unit_length(p):
    x, y = normal(40, 5) * torch.tensor([1.0, 100, 0.01, 3, 7]), normal(40, seed=1)
    length = x.norm(dim=0)
    peer = Ridge(alpha=p / (1 - p), fit_intercept=False, solver="cholesky").fit((x / length).numpy(), y.numpy())
    assert torch.allclose(dropout_ridge(x, y, p) * length, torch.from_numpy(peer.coef_), rtol=1e-8)


@pytest.mark.parametrize("p", RATES)
def test_dropout_ridge_minimizes_the_enumerated_loss(p):
    x, y, w = normal(6, 4), normal(6, seed=1), normal(4, seed=2).requires_grad_()

    def risk(w):
        return sum((dropout_expectation(lambda rows, k=k: (y[k] - rows @ w).square(), x[k], p)) for k in range(6))

    direct = (y - x @ w).square().sum() + p / (1 - p) * (w.square() * x.square().sum(0)).sum()
    assert torch.allclose(risk(w), direct, rtol=1e-12)
    best = dropout_ridge(x, y, p).requires_grad_()
    (gradient,) = torch.autograd.grad(risk(best), best)
    assert gradient.abs().max() < 1e-10


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 6), st.floats(0.05, 0.95), st.integers(0, 1000))
def test_dropout_ridge_law_predictions_ignore_units(n, d, p, seed):
    x, y = normal(n, d, seed=seed), normal(n, seed=seed + 1)
    units = torch.exp(3 * normal(d, seed=seed + 2))
    assert torch.allclose(x @ dropout_ridge(x, y, p), (x * units) @ dropout_ridge(x * units, y, p), atol=1e-9)


def test_dropout_ridge_extremes_no_dropout_zero_column_and_wide():
    x, y = normal(20, 4), normal(20, seed=1)
    assert torch.allclose(dropout_ridge(x, y, 0.0), torch.linalg.lstsq(x, y[:, None]).solution[:, 0], rtol=1e-10)
    x[:, 2] = 0
    for p in (0.0, 0.5):
        w = dropout_ridge(x, y, p)
        assert w[2] == 0 and torch.isfinite(w).all()
    wide = normal(3, 8)
    assert torch.allclose(wide @ dropout_ridge(wide, y[:3], 0.0), y[:3], rtol=1e-10)  # interpolates
    twin = x[:, :1].repeat(1, 2)
    assert torch.allclose(*dropout_ridge(twin, y, 0.0), rtol=1e-10)  # the shortest solution shares equally
    near = dropout_ridge(x, y, 1 - 1e-9) * 1e9  # p to 1: the marginal regressions, times q / p
    assert torch.allclose(near[:2], (x.T @ y)[:2] / x.square().sum(0)[:2], rtol=1e-6)


def exact_price(x, w, p, log_partition, bias=0.0):
    return torch.stack([dropout_expectation(lambda r: log_partition(r @ w + bias), row, p) - log_partition(row @ w + bias) for row in x])


@pytest.mark.parametrize("p", RATES)
def test_glm_penalty_is_exact_for_the_gaussian_model(p):
    x, w = normal(5, 6), normal(6, seed=1)
    assert torch.allclose(glm_penalty(x, w, p, lambda z: z**2 / 2), exact_price(x, w, p, lambda z: z**2 / 2), rtol=1e-12)


def test_glm_penalty_is_the_logistic_formula_with_its_bias():
    x, w, p = normal(5, 6), normal(6, seed=1), 0.4
    hat = torch.sigmoid(x @ w + 0.7)
    expected = p / (2 * (1 - p)) * hat * (1 - hat) * (w**2 * x**2).sum(1)
    assert torch.allclose(glm_penalty(x, w, p, softplus, bias=0.7), expected, rtol=1e-12)


@pytest.mark.parametrize(("p", "order"), [(0.3, 1), (0.5, 2)])
def test_glm_penalty_rate_in_the_size_of_the_weights(p, order):
    """Relative error of the Taylor expansion: the third moment of the noise stands in the next term, and vanishes at p = 1/2."""
    x, w = normal(3, 6), normal(6, seed=1)
    errors = []
    for scale in (2**-6, 2**-7):
        price = exact_price(x, scale * w, p, softplus, bias=0.8)
        errors.append((glm_penalty(x, scale * w, p, softplus, bias=0.8) / price - 1).abs())
    slope = torch.log2(errors[0] / errors[1])
    assert ((slope - order).abs() < 0.15).all()


def test_deletion_penalty_matches_a_loop_and_is_first_order_exact():
    x, w, b = 2 * normal(3, 6), normal(6, seed=1), -0.4
    for k, p in ((0, 1e-3), (1, 1e-3)):
        z = (x[k] @ w + b).item()
        slope = torch.sigmoid(torch.tensor(z, dtype=torch.float64)).item()
        parts = [math.log1p(math.exp(z - a)) - math.log1p(math.exp(z)) + a * slope for a in (x[k] * w).tolist()]
        assert math.isclose(deletion_penalty(x, w, p, softplus, bias=b)[k].item(), p * sum(parts), rel_tol=1e-12)
    errors = [(exact_price(x, w, p, softplus, b) - deletion_penalty(x, w, p, softplus, bias=b)).abs() for p in (2e-4, 1e-4)]
    assert torch.allclose(errors[0] / errors[1], torch.full((3,), 4.0, dtype=torch.float64), atol=0.05)  # error O(p^2)
    quadratic = [(exact_price(x, w, p, softplus, b) - glm_penalty(x, w, p, softplus, bias=b)).abs() for p in (2e-4, 1e-4)]
    assert torch.allclose(quadratic[0] / quadratic[1], torch.full((3,), 2.0, dtype=torch.float64), atol=0.05)  # only O(p)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.floats(0, 0.9), st.floats(-3, 3), st.integers(0, 1000))
def test_penalties_law_are_never_negative(d, p, bias, seed):
    x, w = normal(2, d, seed=seed), 3 * normal(d, seed=seed + 1)
    assert (glm_penalty(x, w, p, softplus, bias=bias) >= 0).all() and (deletion_penalty(x, w, p, softplus, bias=bias) >= -1e-12).all()


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5])
def test_rates_out_of_range_are_refused_everywhere(p):
    x, w = normal(2, 3), normal(3)
    message = r"p, the probability to drop, must lie in \[0, 1\), got"
    for call in (
        lambda: dropout_expectation(lambda rows: rows, w, p),
        lambda: dropout_ridge(x, x[:, 0], p),
        lambda: glm_penalty(x, w, p, softplus),
        lambda: deletion_penalty(x, w, p, softplus),
        lambda: dropout_variance(w, w.square(), p),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("p", [0.0, *RATES])
def test_dropout_variance_matches_the_two_point_law(p):
    values, q = torch.tensor([1.0, 2, 6], dtype=torch.float64), 1 - p
    expected = values.square().mean() / q - values.mean() ** 2
    assert torch.allclose(dropout_variance(values.mean(), values.var(correction=0), p), expected, rtol=1e-13)
    centered = dropout_variance(torch.zeros(3, dtype=torch.float64), values, p)
    assert torch.allclose(centered, values / q)  # mean zero: exactly 1 / q
    large = dropout_variance(torch.tensor(1e9, dtype=torch.float64), torch.tensor(1e-3, dtype=torch.float64), 0.0)
    assert large == 1e-3  # no difference of squares


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.floats(0.01, 0.95), st.integers(0, 1000))
def test_relu_bias_bound_law_encloses_the_enumerated_bias(d, p, seed):
    x, b = normal(d, seed=seed), normal(1, seed=seed + 1)[0]
    z, s = x.sum() + b, math.sqrt(p / (1 - p)) * x.norm()
    bias = dropout_expectation(lambda rows: torch.relu(rows.sum(1) + b), x, p) - torch.relu(z)
    bound = relu_bias_bound(z, s)
    assert -1e-12 <= bias <= bound * (1 + 1e-9) + 1e-12
    assert bound <= s / 2 * (1 + 1e-12) and bound <= s**2 / (4 * z.abs()) * (1 + 1e-12)


def test_relu_bias_bound_is_attained_by_two_points_and_stable():
    for z, s in ((0.0, 2.0), (3.0, 1.0), (-3.0, 1.0), (0.2, 5.0)):
        size = math.hypot(z, s)
        up = (1 + z / size) / 2  # probability of +size; mean z, variance s^2
        attained = up * size - max(z, 0)
        found = relu_bias_bound(torch.tensor(z, dtype=torch.float64), torch.tensor(s, dtype=torch.float64))
        assert math.isclose(found.item(), attained, rel_tol=1e-12)
    wide = torch.tensor([1e8, 0.0, 1e200, 0.0], dtype=torch.float64), torch.tensor([1e-2, 0.0, 1e200, 1e-200], dtype=torch.float64)
    expected = torch.tensor([2.5e-13, 0.0, 1e200 * (math.sqrt(2) - 1) / 2, 5e-201], dtype=torch.float64)
    assert torch.allclose(relu_bias_bound(*wide), expected, rtol=1e-9, atol=0)
    z = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(relu_bias_bound(z, torch.ones(1, dtype=torch.float64)).sum(), z)
    assert torch.isfinite(gradient).all()
