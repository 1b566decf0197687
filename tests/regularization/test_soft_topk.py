"""Tests of kexue.regularization.soft_topk: smooth selection of k entries, and the smooth sum whose gradient it is."""

import inspect
import itertools
import math

import pytest
import scipy.optimize
import torch
from entmax import sparsemax
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.regularization._counted_draws import given_count
from kexue.regularization.soft_topk import soft_topk, soft_topk_sum

METHODS = ("subset", "fermi", "sparse")
POST = torch.tensor([2.0, 1, 4, 5, 3], dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def raw(function):
    """The function without run-time type checks, which would refuse before the function does."""
    return inspect.unwrap(function)


def enumeration(x, k, temperature):
    """Marginals and T log e_k from all subsets of size k."""
    subsets = list(itertools.combinations(range(len(x)), k))
    scores = torch.stack([x[list(s)].sum() for s in subsets]) / temperature
    marginals = torch.zeros_like(x)
    for subset, weight in zip(subsets, scores.softmax(0), strict=True):
        marginals[list(subset)] += weight
    return marginals, temperature * scores.logsumexp(0)


# --- values


def test_subset_matches_enumeration():
    for n in range(1, 10):
        for k in range(n + 1):
            x = 3 * normal(n, seed=10 * n + k)
            marginals, value = enumeration(x, k, 0.7)
            torch.testing.assert_close(soft_topk(x, k, temperature=0.7), marginals, rtol=1e-13, atol=1e-14)  # a few dozen ulps
            torch.testing.assert_close(soft_topk_sum(x, k, temperature=0.7), value, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("k", [1, 3, 40, 64, 97, 120, 127])
def test_subset_matches_log_space_recursion_on_longer_rows(k):
    x = 2 * normal(128, seed=k)
    prefix = torch.full((129, k + 1), -math.inf, dtype=torch.float64)
    suffix = prefix.clone()
    prefix[0, 0] = suffix[128, 0] = 0
    for i in range(128):
        prefix[i + 1] = torch.logaddexp(prefix[i], torch.cat([torch.tensor([-math.inf]), prefix[i, :-1] + x[i]]))
        j = 127 - i
        suffix[j] = torch.logaddexp(suffix[j + 1], torch.cat([torch.tensor([-math.inf]), suffix[j + 1, :-1] + x[j]]))
    marginals = torch.stack([(x[i] + prefix[i, :k] + suffix[i + 1, :k].flip(0)).logsumexp(0) - prefix[128, k] for i in range(128)]).exp()
    torch.testing.assert_close(soft_topk(x, k), marginals, rtol=1e-11, atol=0)  # logs of size 200 lose two digits
    torch.testing.assert_close(soft_topk_sum(x, k), prefix[128, k], rtol=1e-13, atol=0)


def test_subset_at_one_is_softmax_and_its_sum_logsumexp():
    x = 5 * normal(4, 33)
    torch.testing.assert_close(soft_topk(x, 1, temperature=0.3), (x / 0.3).softmax(-1), rtol=1e-12, atol=0)
    torch.testing.assert_close(soft_topk_sum(x, 1, temperature=0.3), 0.3 * (x / 0.3).logsumexp(-1), rtol=1e-13, atol=0)


def test_sparse_at_one_is_sparsemax():
    x = normal(50, 12)
    torch.testing.assert_close(soft_topk(x, 1, temperature=0.5, method="sparse"), sparsemax(x / 0.5, dim=-1), rtol=0, atol=1e-14)


@pytest.mark.parametrize("k", [0.05, 1, 1.5, 3, 6.999, 7])
def test_fermi_threshold_matches_a_root_finder(k):
    x = 2 * normal(8, seed=3)
    tau = scipy.optimize.brentq(lambda t: float(torch.sigmoid((x - t) / 0.4).sum()) - k, -30, 30, xtol=1e-14)
    torch.testing.assert_close(soft_topk(x, k, temperature=0.4, method="fermi"), torch.sigmoid((x - tau) / 0.4), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("k", [0.3, 1, 2.5, 4, 7.9])
def test_sparse_is_the_nearest_point_of_the_hypersimplex(k):
    x = 2 * normal(8, seed=4)
    p = soft_topk(x, k, temperature=0.6, method="sparse")
    assert p.sum() == pytest.approx(k, abs=1e-14) and p.min() >= 0 and p.max() <= 1
    gap = p - x / 0.6  # optimality: the gradient is smallest on the entries that could still grow
    assert gap[p < 1].min() >= gap[p > 0].max() - 1e-12


def test_marginals_of_the_post():
    expected = [0.1154260, 0.0433412, 0.6745834, 0.8705303, 0.2961192]
    torch.testing.assert_close(soft_topk(POST, 2), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=6e-8)


def test_drawn_subsets_given_their_number_have_the_marginals():
    q = torch.sigmoid(POST - 3.5)
    draws = torch.rand(200_000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) < q
    kept = draws[draws.sum(1) == 2].double()
    error = (kept.mean(0) - soft_topk(POST, 2)).abs().max()
    assert error < 5 * 0.5 / len(kept) ** 0.5  # five standard errors
    marginals, probability = given_count(POST - 3.5, 2)
    torch.testing.assert_close(marginals, soft_topk(POST, 2), rtol=1e-13, atol=0)
    assert abs(probability - len(kept) / 200_000) < 5 * 0.5 / 200_000**0.5


# --- laws


rows = st.lists(st.floats(-30, 30), min_size=1, max_size=17).map(lambda v: torch.tensor(v, dtype=torch.float64))


@settings(max_examples=60, deadline=None)
@given(rows, st.data(), st.sampled_from(METHODS), st.floats(0.05, 20))
def test_law_selection_lies_in_the_hypersimplex_and_keeps_the_order(x, data, method, temperature):
    k = data.draw(st.integers(0, len(x)))
    p = soft_topk(x, k, temperature=temperature, method=method)
    assert p.sum() == pytest.approx(k, abs=1e-12) and p.min() >= 0 and p.max() <= 1 + 1e-14
    assert (p[x.argsort()].diff() >= -1e-13).all()
    torch.testing.assert_close(soft_topk(x + 7, k, temperature=temperature, method=method), p, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(soft_topk(x.flip(0), k, temperature=temperature, method=method).flip(0), p, rtol=1e-9, atol=1e-12)
    other = soft_topk(-x, len(x) - k, temperature=temperature, method=method)
    torch.testing.assert_close(1 - other, p, rtol=1e-9, atol=1e-12)  # what is not chosen is a smooth selection from -x


@settings(max_examples=60, deadline=None)
@given(rows, st.data(), st.floats(0.05, 20))
def test_law_smooth_sum_brackets_the_hard_sum(x, data, t):
    n = len(x)
    k = data.draw(st.integers(0, n))
    hard = x.sort(descending=True).values[:k].sum()
    entropy = {0.0: 0.0, 1.0: 0.0}.get(k / n) if k in (0, n) else -(k * math.log(k / n) + (n - k) * math.log(1 - k / n))
    most = {"subset": math.log(math.comb(n, k)), "fermi": entropy, "sparse": k * (1 - k / n) / 2}
    for method, limit in most.items():
        excess = soft_topk_sum(x, k, temperature=t, method=method) - hard
        assert -1e-11 <= excess <= t * limit + 1e-11
        equal = soft_topk_sum(torch.full_like(x, 2.5), k, temperature=t, method=method)
        assert equal == pytest.approx(2.5 * k + t * limit, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_law_temperature_scales(method):
    x = normal(9)
    torch.testing.assert_close(soft_topk(x, 4, temperature=0.2, method=method), soft_topk(5 * x, 4, method=method), rtol=1e-11, atol=0)
    torch.testing.assert_close(
        soft_topk_sum(x, 4, temperature=0.2, method=method), 0.2 * soft_topk_sum(5 * x, 4, method=method), rtol=1e-12, atol=0
    )


def test_rate_fermi_approaches_subset_with_the_variance():
    gaps = []
    for n in (100, 200, 400, 800):
        x = torch.linspace(-2, 2, n, dtype=torch.float64)
        gaps.append((soft_topk(x, n // 2) - soft_topk(x, n // 2, method="fermi")).abs().max().log().item())
    slopes = [(b - a) / math.log(2) for a, b in itertools.pairwise(gaps)]
    assert slopes == pytest.approx([-1, -1, -1], abs=0.02)  # the variance of the count grows like n


# --- extremes


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e4, 1e30])
def test_extremes_no_nan_and_exact_sum(method, dtype, scale):
    x = (scale * normal(3, 1001)).to(dtype).requires_grad_()
    for k in (0, 1, 10, 500, 1000, 1001):
        p = soft_topk(x, k, method=method)
        assert p.dtype == dtype and p.isfinite().all()
        if dtype != torch.bfloat16:
            torch.testing.assert_close(p.double().sum(-1), torch.full((3,), float(k), dtype=torch.float64), rtol=1e-6, atol=1e-9)
        (gradient,) = torch.autograd.grad((p * normal(3, 1001, seed=1)).sum(), x)
        assert gradient.isfinite().all()
        value = soft_topk_sum(x, k, method=method)
        assert value.isfinite().all() and value.dtype == dtype


def test_no_nan_where_autograd_through_the_recursion_has_some():
    x = normal(12, seed=11).requires_grad_()
    log_e = torch.tensor([0.0, -math.inf, -math.inf, -math.inf], dtype=torch.float64)
    for value in x:
        log_e = torch.cat([log_e[:1], torch.logaddexp(log_e[1:], log_e[:-1] + value)])
    (weights,) = torch.autograd.grad(log_e[3], x)
    assert weights[:2].isnan().all() and soft_topk(x, 3).isfinite().all()  # two entries reach e_3 only through log 0
    torch.testing.assert_close(soft_topk(x, 3)[2:], weights[2:], rtol=1e-12, atol=0)
    torch.testing.assert_close(soft_topk_sum(x, 3), log_e[3], rtol=1e-13, atol=0)


def test_extremes_wide_gap_keeps_the_threshold_in_its_middle():
    x = torch.tensor([5e3, 4e3, -2e3, -9e3], dtype=torch.float64)
    assert soft_topk(x, 2, method="fermi").tolist() == [1.0, 1.0, 0.0, 0.0]
    assert soft_topk_sum(x, 2, method="fermi") == 9e3 and soft_topk_sum(x, 2) == 9e3
    close = soft_topk(torch.tensor([60.0, 0.0], dtype=torch.float64), 1, method="fermi")
    assert close[1].item() == pytest.approx(math.exp(-30) / (1 + math.exp(-30)), rel=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_extremes_ties_share(method):
    x = torch.tensor([1e4, 0.0, 0.0, 0.0, -1e4], dtype=torch.float64)
    torch.testing.assert_close(
        soft_topk(x, 2, method=method), torch.tensor([1, 1 / 3, 1 / 3, 1 / 3, 0], dtype=torch.float64), rtol=1e-13, atol=0
    )


@pytest.mark.parametrize("method", METHODS)
def test_extremes_masked_entries(method):
    x = torch.tensor([[2.0, -math.inf, 4, 5, 3], [1, 2, -math.inf, -math.inf, 7]], dtype=torch.float64, requires_grad=True)
    for k in (0, 1, 2, 3):
        p = soft_topk(x, k, method=method)
        free = torch.tensor([0, 2, 3, 4])
        torch.testing.assert_close(p[0, free], soft_topk(x[0, free], k, method=method), rtol=1e-12, atol=1e-300)
        assert (p[x == -math.inf] == 0).all()
        (gradient,) = torch.autograd.grad((p * normal(2, 5)).sum(), x)
        assert gradient.isfinite().all() and (gradient[x == -math.inf] == 0).all()
        value = soft_topk_sum(x, k, method=method)
        torch.testing.assert_close(value[0], soft_topk_sum(x[0, free], k, method=method))
        (gradient,) = torch.autograd.grad(value.sum(), x)
        torch.testing.assert_close(gradient, p)
    assert (p[1] == torch.tensor([1.0, 1, 0, 0, 1])).all() and (gradient[1] == p[1]).all()
    masked = torch.full((2, 3), -math.inf, dtype=torch.float64)
    assert (soft_topk(masked, 0, method=method) == 0).all() and (soft_topk_sum(masked, 0, method=method) == 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_extremes_ends_have_zero_gradient(method):
    x = normal(6).requires_grad_()
    for k, value in ((0, 0.0), (6, 1.0)):
        p = soft_topk(x, k, method=method)
        (gradient,) = torch.autograd.grad((p * normal(6, seed=2)).sum(), x)
        assert (p == value).all() and (gradient == 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_extremes_shapes(method):
    x = normal(3, 7, 5)
    p = soft_topk(x, 2, 1, method=method)
    assert p.shape == x.shape and soft_topk_sum(x, 2, 1, method=method).shape == (3, 5)
    torch.testing.assert_close(p[1, :, 3], soft_topk(x[1, :, 3], 2, method=method))
    assert soft_topk(normal(1), 1, method=method).tolist() == [1.0]
    assert soft_topk(torch.zeros(2, 0), 0, method=method).shape == (2, 0)
    assert soft_topk_sum(torch.zeros(2, 0), 0, method=method).tolist() == [0.0, 0.0]
    assert soft_topk(torch.zeros(0, 4), 2, method=method).shape == (0, 4)


# --- gradients


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("k", [1, 2, 5])
def test_gradients_of_every_method(method, k):
    x = 2 * normal(2, 7, seed=5).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: soft_topk(v, k, temperature=0.8, method=method), x)
    assert torch.autograd.gradcheck(lambda v: soft_topk_sum(v, k, temperature=0.8, method=method), x)
    assert torch.autograd.gradgradcheck(lambda v: soft_topk(v, k, temperature=0.8, method=method), x)
    assert torch.autograd.gradgradcheck(lambda v: soft_topk_sum(v, k, temperature=0.8, method=method), x)


@pytest.mark.parametrize("method", ["fermi", "sparse"])
def test_gradients_at_real_k(method):
    x = 2 * normal(7, seed=6).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: soft_topk(v, 2.25, method=method), x)
    assert torch.autograd.gradcheck(lambda v: soft_topk_sum(v, 2.25, method=method), x)


@pytest.mark.parametrize("method", METHODS)
def test_gradient_of_the_sum_is_the_selection(method):
    x = normal(4, 30, seed=7).requires_grad_()
    (gradient,) = torch.autograd.grad(soft_topk_sum(x, 6, temperature=0.4, method=method).sum(), x)
    torch.testing.assert_close(gradient, soft_topk(x, 6, temperature=0.4, method=method), rtol=1e-13, atol=0)


def test_fermi_jacobian_formula():
    x = normal(6, seed=8)
    jacobian = torch.autograd.functional.jacobian(lambda v: soft_topk(v, 2, temperature=0.5, method="fermi"), x)
    p = soft_topk(x, 2, temperature=0.5, method="fermi")
    s = p * (1 - p) / 0.5
    torch.testing.assert_close(jacobian, s.diag() - torch.outer(s, s) / s.sum(), rtol=1e-12, atol=1e-15)


def test_subset_jacobian_is_the_covariance():
    x = normal(6, seed=9)
    jacobian = torch.autograd.functional.jacobian(lambda v: soft_topk(v, 3, temperature=0.5), x)
    subsets = torch.tensor([[float(i in s) for i in range(6)] for s in itertools.combinations(range(6), 3)], dtype=torch.float64)
    weight = (subsets @ x / 0.5).softmax(0)
    mean = weight @ subsets
    torch.testing.assert_close(jacobian, ((subsets - mean).T * weight) @ (subsets - mean) / 0.5, rtol=1e-11, atol=1e-14)


# --- refusals


@pytest.mark.parametrize("function", [soft_topk, soft_topk_sum])
@pytest.mark.parametrize(
    ("x", "k", "options", "message"),
    [
        (POST, 6, {}, "k must lie between 0 and 5, the smallest number of entries that are not masked, got 6"),
        (POST, -1, {}, "k must lie between 0 and 5"),
        (POST, math.nan, {"method": "fermi"}, "k must lie between 0 and 5"),
        (torch.tensor([1.0, -math.inf]), 2, {}, "k must lie between 0 and 1"),
        (torch.full((3,), -math.inf), 1, {}, "k must lie between 0 and 0"),
        (POST, 1.5, {}, "k must be an integer for the method 'subset', which counts subsets, got 1.5"),
        (POST, 1, {"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
        (POST, 1, {"temperature": math.inf}, "temperature must be positive and finite, got inf"),
        (POST, 1, {"method": "hard"}, "method must be one of subset, fermi, sparse, got 'hard'"),
        (torch.tensor([1.0, math.nan]), 1, {}, r"x must be finite or -inf \(masked\), got nan or inf"),
        (torch.tensor([1.0, math.inf]), 1, {}, r"x must be finite or -inf \(masked\), got nan or inf"),
        (torch.tensor(1.0), 1, {}, "x must have at least one axis, got a number"),
    ],
)
def test_refusals(function, x, k, options, message):
    with pytest.raises(ValueError, match=message):
        raw(function)(x, k, **options)
