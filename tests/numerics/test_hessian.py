"""Tests of kexue.numerics.hessian: Hessian-vector products and the largest eigenvalue by Lanczos's method."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.numerics import hessian_operator, top_eigenvalue
from torch import nn


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def symmetric(n, seed=0):
    a = normal(n, n, seed=seed)
    return a + a.mT


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    x, y = normal(9, 3), torch.arange(9) % 2
    return net, lambda: nn.functional.cross_entropy(net(x), y), (x, y)


# --- hessian_operator


def test_hessian_operator_matches_the_dense_hessian_and_finite_differences():
    net, loss, (x, y) = network()
    parameters = list(net.parameters())
    names = [name for name, _ in net.named_parameters()]
    flat = torch.cat([p.detach().reshape(-1) for p in parameters])

    def of_vector(v):
        parts = dict(
            zip(names, (t.view_as(p) for t, p in zip(v.split([p.numel() for p in parameters]), parameters, strict=True)), strict=True)
        )
        return nn.functional.cross_entropy(torch.func.functional_call(net, parts, (x,)), y)

    dense = torch.autograd.functional.hessian(of_vector, flat)
    product = hessian_operator(loss, parameters)
    columns = torch.stack([product(e) for e in torch.eye(len(flat), dtype=torch.float64)], 1)
    assert torch.allclose(columns, dense, rtol=1e-11, atol=1e-13)
    v, h = normal(len(flat), seed=4), 1e-4
    slope = torch.func.grad(of_vector)
    assert torch.allclose((slope(flat + h * v) - slope(flat - h * v)) / (2 * h), product(v), rtol=1e-5, atol=1e-7)


def test_hessian_operator_of_linear_and_unused_parameters_is_zero():
    w, unused = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    assert torch.equal(hessian_operator(lambda: w.sum(), [w])(torch.ones(3)), torch.zeros(3))
    product = hessian_operator(lambda: (w**2).sum(), [w, unused])
    assert torch.equal(product(torch.ones(5)), torch.tensor([2.0, 2, 2, 0, 0]))
    with torch.no_grad():  # the caller's mode does not matter
        assert torch.equal(hessian_operator(lambda: (w**2).sum(), [w])(torch.ones(3)), torch.full((3,), 2.0))


def test_hessian_operator_refusals():
    w = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match="parameters must be at least one tensor, all requiring gradients, got 0"):
        hessian_operator(lambda: w.sum(), [])
    with pytest.raises(ValueError, match="all requiring gradients, got 2"):
        hessian_operator(lambda: w.sum(), [w, torch.ones(2)])
    with pytest.raises(ValueError, match=r"loss must return one number, got shape \(3,\)"):
        hessian_operator(lambda: w**2, [w])
    with pytest.raises(ValueError, match=r"v must have shape \(3,\), one entry per parameter, got \(2,\)"):
        hessian_operator(lambda: (w**2).sum(), [w])(torch.ones(2))


# --- top_eigenvalue


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 25), st.integers(0, 10_000), st.floats(-140, 140))
def test_top_eigenvalue_matches_numpy(n, seed, exponent):
    a = 10.0**exponent * symmetric(n, seed)
    found = top_eigenvalue(lambda v: a @ v, normal(n, seed=seed + 1), rtol=1e-9)
    size = a.norm().item()
    assert found.value.item() == pytest.approx(np.linalg.eigvalsh(a.numpy())[-1], abs=1e-8 * size)
    assert (a @ found.vector - found.value * found.vector).norm() <= 1e-8 * size
    assert found.residual <= 1e-8 * size
    assert found.vector.norm().item() == pytest.approx(1, rel=1e-12)


def test_top_eigenvalue_is_the_largest_and_not_the_largest_in_absolute_value():
    d = torch.tensor([-9.0, -5.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    assert top_eigenvalue(lambda v: d * v, normal(5), rtol=1e-10).value == pytest.approx(2, rel=1e-9)
    assert top_eigenvalue(lambda v: -d * v, normal(5), rtol=1e-10).value == pytest.approx(9, rel=1e-9)


def test_top_eigenvalue_from_below_and_better_than_power_iteration():
    d = torch.linspace(0, 1, 400, dtype=torch.float64)
    v, estimates = normal(400), []
    for k in (1, 3, 10, 30):
        found = top_eigenvalue(lambda x: d * x, v, rtol=1e-15, max_steps=k)
        assert found.steps == k
        power = v
        for _ in range(k - 1):
            power = d * power
        assert (power @ (d * power) / power.square().sum()).item() - 1e-12 <= found.value <= 1
        true_residual = (d * found.vector - found.value * found.vector).norm()
        assert found.residual.item() == pytest.approx(true_residual.item(), rel=1e-6, abs=1e-12)
        estimates.append(found.value.item())
    assert estimates == sorted(estimates) and estimates[-1] > 0.995


def test_top_eigenvalue_stops_early_at_the_tolerance_with_a_squared_error():
    d = torch.cat([torch.linspace(0, 1, 500), torch.tensor([5.0])]).double()
    found = top_eigenvalue(lambda v: d * v, normal(501), rtol=1e-3)
    assert found.steps < 15 and found.residual <= 5e-3
    assert abs(found.value.item() - 5) <= found.residual.item() ** 2 / 3.9  # residual squared over the gap of 4


def test_top_eigenvalue_extremes():
    zero = top_eigenvalue(lambda v: 0 * v, normal(4))
    assert zero.value == 0 and zero.steps == 1
    one = top_eigenvalue(lambda v: -3 * v, torch.tensor([2.0]))
    assert one.value == -3 and one.value.dtype == torch.float32
    same = top_eigenvalue(lambda v: 7 * v, normal(100, dtype=torch.float32))
    assert same.value.item() == pytest.approx(7, rel=1e-6) and same.steps == 1
    eigenvector = top_eigenvalue(lambda v: torch.tensor([1.0, 2.0]) * v, torch.tensor([1.0, 0.0]))
    assert eigenvector.value == 1  # an invariant start stays in its subspace


def test_top_eigenvalue_of_a_network():
    net, loss, _ = network()
    product = hessian_operator(loss, list(net.parameters()))
    size = sum(p.numel() for p in net.parameters())
    dense = torch.stack([product(e) for e in torch.eye(size, dtype=torch.float64)])
    found = top_eigenvalue(product, normal(size), rtol=1e-8)
    assert found.value.item() == pytest.approx(torch.linalg.eigvalsh(dense)[-1].item(), rel=1e-10)


def test_top_eigenvalue_refusals():
    for rtol in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="rtol must be positive"):
            top_eigenvalue(lambda v: v, torch.ones(2), rtol=rtol)
    with pytest.raises(ValueError, match="max_steps must be at least 1"):
        top_eigenvalue(lambda v: v, torch.ones(2), max_steps=0)
    with pytest.raises(ValueError, match="start must not be the zero vector"):
        top_eigenvalue(lambda v: v, torch.zeros(2))
    with pytest.raises(ValueError, match="matvec must return finite vectors, and product 1 is not"):
        top_eigenvalue(lambda v: v / 0, torch.ones(2))
