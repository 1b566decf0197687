"""Tests of kexue.numerics.linear: exact spectral norms, power iteration on operators, the square root at zero."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.numerics import power_iteration, safe_sqrt, spectral_norm
from torch import nn


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- safe_sqrt


def test_safe_sqrt_oracle():
    x = torch.tensor([0.0, 1e-300, 0.25, 4.0, 1e300], dtype=torch.float64)
    assert torch.equal(safe_sqrt(x), x.sqrt())
    assert math.isnan(safe_sqrt(torch.tensor(-1.0)))


def test_safe_sqrt_gradient_is_zero_at_zero_and_exact_elsewhere():
    x = torch.tensor([0.0, 4.0, 0.25], dtype=torch.float64, requires_grad=True)
    safe_sqrt(x).sum().backward()
    assert torch.equal(x.grad, torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64))
    y = normal(5).square().add(0.1).requires_grad_()
    assert torch.autograd.gradcheck(safe_sqrt, y) and torch.autograd.gradgradcheck(safe_sqrt, y)


# --- spectral_norm


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10_000), st.floats(-150, 150))
def test_spectral_norm_oracle_is_all_singular_values(rows, cols, seed, exponent):
    a = normal(3, rows, cols, seed=seed) * 10.0**exponent
    expected = torch.linalg.svdvals(a)[:, 0]
    assert torch.allclose(spectral_norm(a), expected, rtol=1e-13, atol=0)  # 12 * 12 products: about 50 ulps


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 10_000), st.floats(-5, 5))
def test_spectral_norm_laws_transpose_homogeneity_submultiplicativity(rows, cols, seed, c):
    a, b = normal(rows, cols, seed=seed), normal(cols, rows, seed=seed + 1)
    norm = spectral_norm(a)
    assert torch.allclose(spectral_norm(a.mT), norm, rtol=1e-13)
    assert torch.allclose(spectral_norm(c * a), abs(c) * norm, rtol=1e-13)
    assert spectral_norm(a @ b) <= norm * spectral_norm(b) * (1 + 1e-13)
    assert norm <= a.norm() * (1 + 1e-13) and a.norm() <= norm * math.sqrt(min(rows, cols)) * (1 + 1e-13)


def test_spectral_norm_extremes():
    assert spectral_norm(torch.zeros(3, 4)) == 0
    assert spectral_norm(torch.full((1, 1), -2.5)) == 2.5
    assert spectral_norm(torch.eye(4, dtype=torch.float64)[:, ::2]) == 1
    huge = torch.tensor([[3e300, 0.0], [0.0, 1e300]], dtype=torch.float64)
    assert spectral_norm(huge) == pytest.approx(3e300, rel=1e-15)
    assert spectral_norm(huge * 1e-300 * 1e-300) == pytest.approx(3e-300, rel=1e-13)
    batch = torch.stack([torch.zeros(2, 2), torch.eye(2) * 7])
    assert torch.equal(spectral_norm(batch), torch.tensor([0.0, 7.0]))
    half = normal(5, 6).bfloat16()
    assert spectral_norm(half).dtype == torch.bfloat16
    assert float(spectral_norm(half)) == pytest.approx(float(torch.linalg.svdvals(half.double())[0]), rel=2**-8)
    assert spectral_norm(normal(4, 6, dtype=torch.float32)).dtype == torch.float32
    assert spectral_norm(normal(6, 4).mT).shape == ()  # not contiguous


def test_spectral_norm_gradient():
    for shape in [(3, 5), (5, 3), (2, 4, 3)]:
        assert torch.autograd.gradcheck(spectral_norm, normal(*shape).requires_grad_())
    zero = torch.zeros(2, 3, requires_grad=True)
    spectral_norm(zero).backward()
    assert torch.equal(zero.grad, torch.zeros(2, 3))


def test_spectral_norm_gradient_is_the_outer_product_of_the_singular_vectors():
    a = normal(4, 6).requires_grad_()
    spectral_norm(a).backward()
    u, _, vh = torch.linalg.svd(a.detach())
    assert torch.allclose(a.grad, torch.outer(u[:, 0], vh[0]), atol=1e-12)


def test_spectral_norm_refusals():
    with pytest.raises(ValueError, match=r"at least one row and one column, got shape \(0, 3\)"):
        spectral_norm(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="finite entries"):
        spectral_norm(torch.tensor([[1.0, math.nan]]))


# --- power_iteration


def on_matrix(a, start, **options):
    return power_iteration(lambda v: (a @ v[..., None])[..., 0], lambda u: (a.mT @ u[..., None])[..., 0], start, **options)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10_000))
def test_power_iteration_oracle_and_lower_bound(rows, cols, seed):
    u, _ = torch.linalg.qr(normal(rows, rows, seed=seed))
    v, _ = torch.linalg.qr(normal(cols, cols, seed=seed + 1))
    k = min(rows, cols)
    a = u[:, :k] * 0.7 ** torch.arange(k) @ v[:, :k].mT * 3
    top = on_matrix(a, normal(cols, seed=seed + 2), rtol=1e-12)
    assert float(top.value) == pytest.approx(3, rel=1e-12)
    assert torch.allclose(a @ top.right, top.value * top.left, atol=1e-12)
    assert float(top.left.norm()) == pytest.approx(1) and float(top.right.norm()) == pytest.approx(1)
    short = on_matrix(a, normal(cols, seed=seed + 2), max_steps=2)
    assert short.value <= 3 * (1 + 1e-14) and short.steps <= 2


def test_power_iteration_rate_is_the_fourth_power_of_the_gap():
    a = torch.diag(torch.tensor([1.0, 0.8, 0.1], dtype=torch.float64))
    start = torch.ones(3, dtype=torch.float64)
    errors = [1 - float(on_matrix(a, start, rtol=1e-300, max_steps=k).value) for k in (20, 21, 30)]
    assert errors[1] / errors[0] == pytest.approx(0.8**4, rel=1e-3)
    assert errors[2] / errors[0] == pytest.approx(0.8**40, rel=1e-2)
    values = [float(on_matrix(a, start, rtol=1e-300, max_steps=k).value) for k in range(1, 12)]
    assert values == sorted(values)


def test_power_iteration_batch_stops_when_all_have_converged():
    a = torch.stack([torch.diag(torch.tensor([2.0, 0.1])), torch.diag(torch.tensor([5.0, 4.5])), torch.zeros(2, 2)]).double()
    top = on_matrix(a, torch.ones(3, 2, dtype=torch.float64), rtol=1e-10)
    assert torch.allclose(top.value, torch.tensor([2.0, 5.0, 0.0], dtype=torch.float64), rtol=1e-10)
    assert torch.equal(top.left[2], torch.zeros(2, dtype=torch.float64))
    residual = (a.mT @ (a @ top.right[..., None]))[..., 0] - top.value[:, None] ** 2 * top.right
    assert (residual.norm(dim=1) <= 1e-10 * top.value**2).all()
    easy = on_matrix(a[0], torch.ones(2, dtype=torch.float64), rtol=1e-10)
    assert easy.steps < 10 < top.steps < 1000


def test_power_iteration_on_the_jacobian_of_a_network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)).double()
    x = normal(6)
    _, pull = torch.func.vjp(net, x)
    top = power_iteration(lambda v: torch.func.jvp(net, (x,), (v,))[1], lambda u: pull(u)[0], normal(6, seed=1), rtol=1e-9)
    jacobian = torch.autograd.functional.jacobian(net, x)
    top = top._replace(value=top.value.detach())
    assert float(top.value) == pytest.approx(float(spectral_norm(jacobian)), rel=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rtol": 0.0}, "rtol must be positive, got 0.0"), ({"max_steps": 0}, "max_steps must be at least 1, got 0"), ({}, "no zero vector")],
)
def test_power_iteration_refusals(options, message):
    start = torch.ones(2, 3) if options else torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    with pytest.raises(ValueError, match=message):
        on_matrix(torch.eye(3).expand(2, 3, 3), start, **options)
