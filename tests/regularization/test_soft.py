"""Tests of kexue.regularization.soft: smooth maximum, its position, and the scores built on it."""

import inspect
import math

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.regularization.soft import (
    RunningFBeta,
    optimal_fbeta_threshold,
    soft_accuracy,
    soft_argmax,
    soft_fbeta,
    soft_max,
    soft_onehot,
)
from sklearn.metrics import fbeta_score

float64 = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=float64)


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=float64)


def raw(function):
    """The function without run-time type checks, which would refuse before the function does."""
    return inspect.unwrap(function)


rows = st.lists(st.floats(-50, 50), min_size=1, max_size=12).map(lambda v: torch.tensor(v, dtype=float64))
temperatures = st.floats(0.01, 50)


# --- soft_max


def test_soft_max_oracle():
    x = normal(5, 7)
    expected = 0.3 * scipy.special.logsumexp(x.numpy() / 0.3, axis=0)
    torch.testing.assert_close(soft_max(x, 0, temperature=0.3), torch.from_numpy(expected), rtol=1e-13, atol=0)
    mellow = torch.from_numpy(expected) - 0.3 * math.log(5)
    torch.testing.assert_close(soft_max(x, 0, temperature=0.3, kind="mellow"), mellow, rtol=1e-12, atol=1e-14)


@settings(max_examples=60, deadline=None)
@given(rows, temperatures)
def test_soft_max_laws(x, t):
    n, top = len(x), x.max()
    value = soft_max(x, temperature=t)
    assert top <= value <= top + t * math.log(n) + 1e-12 * abs(value)
    assert soft_max(torch.full_like(x, 3.0), temperature=t) == pytest.approx(3 + t * math.log(n), rel=1e-13)
    assert soft_max(torch.full_like(x, 3.0), temperature=t, kind="mellow") == pytest.approx(3, rel=1e-12, abs=t * 1e-14)
    assert soft_max(x + 11, temperature=t) == pytest.approx(value.item() + 11, rel=1e-12, abs=1e-12)
    assert soft_max(x.repeat(3), temperature=t, kind="mellow") == pytest.approx(
        soft_max(x, temperature=t, kind="mellow").item(), abs=1e-12 * (1 + t + abs(float(top)))
    )
    y = x.flip(0) * 0.5
    assert 2 * soft_max((x + y) / 2, temperature=t) <= value + soft_max(y, temperature=t) + 1e-11  # convex


def test_soft_max_extremes():
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        x = torch.tensor([1e4, -1e4, 1e4], dtype=dtype)
        assert soft_max(x, temperature=1e-30) == 1e4 and soft_max(x).dtype == dtype
    masked = torch.tensor([[0.0, -math.inf], [1.0, 3.0]], dtype=float64, requires_grad=True)
    value = soft_max(masked)
    (gradient,) = torch.autograd.grad(value.sum(), masked)
    assert value[0] == 0 and gradient[0].tolist() == [1.0, 0.0] and soft_max(masked, kind="mellow")[0] == 0
    assert soft_max(torch.ones(1, 4, 1), 1).shape == (1, 1)


def test_soft_max_gradient_is_soft_onehot_and_hessian_is_bounded():
    x = normal(6).requires_grad_()
    for kind in ("lse", "mellow"):
        assert torch.autograd.gradcheck(lambda v, kind=kind: soft_max(v, temperature=0.4, kind=kind), x)
        (gradient,) = torch.autograd.grad(soft_max(x, temperature=0.4, kind=kind), x)
        torch.testing.assert_close(gradient, soft_onehot(x, temperature=0.4), rtol=1e-13, atol=0)
    tight = torch.tensor([1.0, 1.0, -500.0], dtype=float64)
    hessian = torch.autograd.functional.hessian(lambda v: soft_max(v, temperature=0.4), tight)
    assert torch.linalg.matrix_norm(hessian, 2).item() == pytest.approx(1 / 0.8, rel=1e-13)


# --- soft_onehot, soft_argmax


def test_soft_onehot_oracle_and_extremes():
    x = normal(3, 4)
    torch.testing.assert_close(soft_onehot(x, 0, temperature=2.0), torch.from_numpy(scipy.special.softmax(x.numpy() / 2, 0)))
    assert soft_onehot(torch.tensor([1e4, 1e4 - 1, -math.inf])).dtype == torch.float32
    assert soft_onehot(torch.tensor([2.0, 1.0, 2.0]), temperature=1e-38).tolist() == [0.5, 0.0, 0.5]
    assert soft_onehot(torch.tensor([2.0, 1.0], dtype=torch.bfloat16), temperature=1e-38).tolist() == [1.0, 0.0]


def test_soft_onehot_of_half_precision_is_computed_in_float32():
    x = (3 * normal(40)).bfloat16()
    exact = soft_onehot(x.double(), temperature=0.1)
    torch.testing.assert_close(soft_onehot(x, temperature=0.1).double(), exact, rtol=2**-8, atol=1e-30)  # one rounding, at the end


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-20, 20), min_size=2, max_size=9), st.floats(0.05, 3), st.floats(0.1, 5))
def test_soft_onehot_law_error_falls_with_the_gap(others, t, gap):
    x = torch.tensor([max(others) + gap, *others], dtype=float64)
    p = soft_onehot(x, temperature=t)
    hard = torch.zeros_like(p)
    hard[0] = 1
    n = len(x)
    assert (p - hard).abs().sum() <= 2 * (n - 1) * math.exp(-gap / t) + 1e-12
    assert abs(soft_argmax(x, temperature=t)) <= (n - 1) ** 2 * math.exp(-gap / t) + 1e-12


def test_soft_argmax_oracle():
    x = normal(4, 6)
    p = scipy.special.softmax(x.numpy() / 0.5, 1)
    torch.testing.assert_close(soft_argmax(x, temperature=0.5), torch.from_numpy(p @ np.arange(6.0)))
    values = normal(4, seed=1)
    expected = torch.from_numpy((scipy.special.softmax(x.numpy(), 0) * values.numpy()[:, None]).sum(0))
    torch.testing.assert_close(soft_argmax(x, 0, values=values), expected)
    assert torch.autograd.gradcheck(lambda v: soft_argmax(v, values=normal(6, seed=2), temperature=0.7), x.requires_grad_())


def test_soft_argmax_of_two_far_maxima_is_neither():
    assert soft_argmax(torch.tensor([9.0, 0, 0, 0, 9])).item() == pytest.approx(2, abs=1e-3)


# --- soft_accuracy


def test_soft_accuracy_oracle_and_limit():
    logits, y = normal(50, 4), torch.arange(50) % 4
    p = scipy.special.softmax(logits.numpy(), 1)
    assert soft_accuracy(logits, y).item() == pytest.approx(p[np.arange(50), y.numpy()].mean(), rel=1e-13)
    hard = (logits.argmax(1) == y).double().mean()
    assert soft_accuracy(1e4 * logits, y) == pytest.approx(hard.item(), abs=1e-12)
    onehot = torch.nn.functional.one_hot(y, 4)
    assert 1 - soft_accuracy(logits, y) == pytest.approx(np.abs(p - onehot.numpy()).sum(1).mean() / 2, rel=1e-12)
    assert soft_accuracy(logits.reshape(5, 10, 4), y.reshape(5, 10)) == soft_accuracy(logits, y)


def test_soft_accuracy_gradient():
    logits, y = normal(6, 3).requires_grad_(), torch.tensor([0, 1, 2, 0, 1, 2])
    (gradient,) = torch.autograd.grad(soft_accuracy(logits, y), logits)
    p = logits.softmax(1)
    right = p.gather(1, y[:, None])
    torch.testing.assert_close(gradient, right * (torch.nn.functional.one_hot(y, 3) - p) / 6)
    assert torch.autograd.gradcheck(lambda v: soft_accuracy(v, y), logits)


# --- soft_fbeta, RunningFBeta


@pytest.mark.parametrize("beta", [0.5, 1, 2.0])
def test_soft_fbeta_at_decisions_is_the_f_score(beta):
    h, t = (uniform(60, 3) < 0.4).double(), uniform(60, 3, seed=1) < 0.3
    for average in ("macro", "micro"):
        expected = fbeta_score(t.numpy(), h.numpy().astype(int), beta=beta, average=average)
        assert soft_fbeta(h, t, beta=beta, average=average).item() == pytest.approx(expected, rel=1e-13)
    expected = fbeta_score(t[:, 0].numpy(), h[:, 0].numpy(), beta=beta)
    assert soft_fbeta(h[:, 0], t[:, 0].long(), beta=beta).item() == pytest.approx(expected, rel=1e-13)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.2, 5))
def test_soft_fbeta_law_the_target_is_its_own_best_prediction(seed, beta):
    t = (uniform(12, seed=seed) < 0.5).double()
    t[0] = 1
    p = uniform(12, seed=seed + 1)
    assert soft_fbeta(p, t, beta=beta) < soft_fbeta(t, t, beta=beta) == pytest.approx(1, rel=1e-14)
    both = (1 + beta**2) * (p * t).sum()
    precision, recall = (p * t).sum() / p.sum(), (p * t).sum() / t.sum()
    assert soft_fbeta(p, t, beta=beta).item() == pytest.approx(both.item() / (beta**2 * t.sum() + p.sum()).item(), rel=1e-12)
    assert soft_fbeta(p, t, beta=beta).item() == pytest.approx(
        ((1 + beta**2) * precision * recall / (beta**2 * precision + recall)).item(), rel=1e-12
    )


def test_soft_fbeta_extremes_and_gradient():
    empty = torch.zeros(4, requires_grad=True)
    score = soft_fbeta(empty, torch.zeros(4))
    score.backward()
    assert score == 0 and empty.grad.isfinite().all()
    assert soft_fbeta(torch.ones(1, dtype=torch.bfloat16), torch.ones(1, dtype=torch.bool)).dtype == torch.bfloat16
    assert soft_fbeta(torch.full((70_000,), 0.5, dtype=torch.float16), torch.ones(70_000)) == pytest.approx(2 / 3, rel=1e-3)
    p, t = (0.1 + 0.8 * uniform(9, 2)).requires_grad_(), uniform(9, 2, seed=1).round()
    assert torch.autograd.gradcheck(lambda v: soft_fbeta(v, t, beta=0.7), p)
    assert torch.autograd.gradcheck(lambda v: soft_fbeta(v, t, average="micro"), p)


def test_running_fbeta_without_memory_is_the_score_of_the_batch():
    running = RunningFBeta(3, beta=2.0, decay=0)
    for seed in range(3):
        p, t = uniform(8, 3, seed=seed), uniform(8, 3, seed=seed + 9).round()
        torch.testing.assert_close(running(p, t), soft_fbeta(p, t, beta=2.0), rtol=1e-14, atol=0)


def test_running_fbeta_remembers_with_decay_and_only_in_training():
    running = RunningFBeta(decay=0.5).double()
    batches = [(uniform(8, seed=s), uniform(8, seed=s + 9).round()) for s in range(3)]
    for p, t in batches:
        score = running(p, t)
    weights = [0.25, 0.5, 1.0]
    both = sum(w * 2 * (p * t).sum() for w, (p, t) in zip(weights, batches, strict=True))
    size = sum(w * (p.sum() + t.sum()) for w, (p, t) in zip(weights, batches, strict=True))
    assert score.item() == pytest.approx((both / size).item(), rel=1e-13)
    before = running.sums.clone()
    running.eval()
    running(*batches[0])
    assert torch.equal(running.sums, before)
    fresh = RunningFBeta(decay=0.5).double()
    fresh.load_state_dict(running.state_dict())
    assert torch.equal(fresh.sums, before)


def test_running_fbeta_gradient_goes_through_the_last_batch_only():
    running = RunningFBeta(decay=0.9).double()
    t = torch.tensor([1.0, 0, 1], dtype=float64)
    first, second = uniform(3).requires_grad_(), uniform(3, seed=1).requires_grad_()
    running(first, t).backward()
    memory = running.sums.clone()
    before = first.grad.clone()
    running(second, t).backward()  # would fail if the buffer kept the first graph
    assert torch.equal(first.grad, before) and not running.sums.requires_grad
    n, d = 2 * (second * t).sum() + 0.9 * memory[0], second.sum() + t.sum() + 0.9 * memory[1]
    torch.testing.assert_close(second.grad, ((2 * t * d - n) / d**2).detach())


def test_rate_batch_bias_is_one_over_the_batch():
    generator = torch.Generator().manual_seed(0)
    t = (torch.rand(2**21, generator=generator) < 0.3).double()
    p = torch.rand(2**21, generator=generator, dtype=float64) * 0.5 + 0.4 * t
    full = soft_fbeta(p, t)
    bias = []
    for size in (16, 32, 64):
        both, total = (2 * p * t).view(-1, size).sum(1), (p + t).view(-1, size).sum(1)
        bias.append((both / total).mean() - full)
    assert torch.tensor(bias).diff(dim=0).lt(0).all() or torch.tensor(bias).diff(dim=0).gt(0).all()
    assert (bias[0] / bias[1]).item() == pytest.approx(2, abs=0.3) and (bias[1] / bias[2]).item() == pytest.approx(2, abs=0.5)


# --- optimal_fbeta_threshold


@pytest.mark.parametrize("beta", [0.5, 1, 2.0])
def test_optimal_threshold_matches_all_decisions(beta):
    for seed in range(20):
        q = uniform(8, seed=seed) ** 2
        h = (torch.arange(256)[:, None] >> torch.arange(8)) & 1
        scores = (1 + beta**2) * (h * q).sum(1) / (beta**2 * q.sum() + h.sum(1))
        best, threshold = optimal_fbeta_threshold(q, beta=beta)
        assert best.item() == pytest.approx(scores.max().item(), rel=1e-13)
        assert threshold.item() == pytest.approx(best.item() / (1 + beta**2), rel=1e-13)
        assert torch.equal(h[scores.argmax()].bool(), q > threshold)


def test_optimal_threshold_extremes():
    assert optimal_fbeta_threshold(torch.zeros(5)) == (0, 0)
    assert optimal_fbeta_threshold(torch.ones(5)) == (1, 0.5)
    best, threshold = optimal_fbeta_threshold(torch.tensor([0.2]))
    assert best.item() == pytest.approx(1 / 3) and threshold.item() == pytest.approx(1 / 6) and best.dtype == torch.float32


# --- refusals


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: raw(soft_max)(torch.ones(2), kind="max"), "kind must be 'lse' or 'mellow', got 'max'"),
        (lambda: soft_max(torch.ones(2), temperature=0), "temperature must be positive and finite, got 0"),
        (lambda: soft_onehot(torch.ones(2), temperature=math.inf), "temperature must be positive and finite, got inf"),
        (lambda: soft_max(torch.tensor([1.0, math.nan])), r"x must be finite or -inf \(masked\), got nan or inf"),
        (lambda: soft_max(torch.tensor([1.0, math.inf])), r"x must be finite or -inf \(masked\), got nan or inf"),
        (lambda: soft_onehot(torch.full((2, 2), -math.inf)), "x must have an entry that is not masked in every slice"),
        (lambda: soft_max(torch.ones(3, 0)), r"x must have at least one entry along dim -1, got shape \(3, 0\)"),
        (lambda: soft_max(torch.tensor(1.0)), r"x must have at least one entry along dim -1, got shape \(\)"),
        (lambda: soft_argmax(torch.ones(2, 3), values=torch.ones(2)), r"values must have one number for each of the 3 entries"),
        (lambda: soft_accuracy(torch.ones(2, 3), torch.tensor([0, 3])), r"target must lie in 0\.\.2, got 0\.\.3"),
        (lambda: soft_accuracy(torch.ones(2, 3), torch.tensor([-1, 0])), r"target must lie in 0\.\.2, got -1\.\.0"),
        (lambda: soft_accuracy(torch.ones(0, 3), torch.ones(0, dtype=torch.long)), "target must hold at least one example"),
        (lambda: soft_fbeta(torch.ones(2) * 1.5, torch.ones(2)), r"probability must lie in \[0, 1\], got values from 1.5 to 1.5"),
        (lambda: soft_fbeta(torch.ones(2), -torch.ones(2)), r"target must lie in \[0, 1\], got values from -1 to -1"),
        (lambda: soft_fbeta(torch.ones(2), torch.ones(2), beta=0), "beta must be positive and finite, got 0"),
        (lambda: soft_fbeta(torch.ones(0), torch.ones(0)), "probability must hold at least one example"),
        (lambda: raw(soft_fbeta)(torch.ones(2), torch.ones(2), average="mean"), "average must be 'macro' or 'micro', got 'mean'"),
        (lambda: RunningFBeta(decay=1.0), r"decay must lie in \[0, 1\), got 1.0"),
        (lambda: RunningFBeta(beta=-1), "beta must be positive and finite, got -1"),
        (lambda: RunningFBeta(2)(torch.ones(3), torch.ones(3)), r"probability must have label axes \(2,\), got \(\)"),
        (lambda: optimal_fbeta_threshold(torch.ones(0)), "posterior must hold at least one example"),
        (lambda: optimal_fbeta_threshold(torch.tensor([2.0])), r"posterior must lie in \[0, 1\], got values from 2 to 2"),
        (lambda: optimal_fbeta_threshold(torch.ones(2), beta=0.0), "beta must be positive and finite, got 0.0"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
