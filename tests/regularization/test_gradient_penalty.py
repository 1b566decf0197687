"""Tests of kexue.regularization.gradient_penalty: penalties, Dirichlet energy, what a minibatch sees."""

import inspect
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.regularization.gradient_penalty import dirichlet_energy, gradient_penalty, sampling_factor
from torch import nn


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def total(y):
    return (y * y.sin()).sum(1)


def raw(function):
    """The function without run-time type checks, which would refuse before the function does."""
    return inspect.unwrap(function)


# --- gradient_penalty


@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("power", [1, 2])
def test_input_penalty_oracle(p, power):
    model, x = net(), normal(5, 4)
    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(total(model(point)).sum(), point)
    expected = torch.linalg.vector_norm(gradient, ord=p, dim=1).pow(power).mean()
    assert torch.allclose(gradient_penalty(model, total, x, p=p, power=power), expected, rtol=1e-13)
    image = nn.Sequential(nn.Flatten(), model)
    assert torch.allclose(gradient_penalty(image, total, x.reshape(5, 2, 2), p=p, power=power), expected, rtol=1e-13)


@pytest.mark.parametrize("power", [1, 2])
def test_parameter_penalty_oracle(power):
    model, x = net(), normal(5, 4)
    norms = []
    for i in range(5):
        gradients = torch.autograd.grad(total(model(x[i : i + 1])).sum(), list(model.parameters()))
        norms.append(torch.cat([g.flatten() for g in gradients]).norm())
    assert torch.allclose(
        gradient_penalty(model, total, x, wrt="parameters", power=power), torch.stack(norms).pow(power).mean(), rtol=1e-12
    )


@pytest.mark.parametrize(
    "options", [{"p": 1}, {"p": 2}, {"p": math.inf}, {"power": 1}, {"wrt": "parameters"}, {"wrt": "parameters", "power": 1}]
)
def test_penalty_gradient_is_the_slope_of_the_penalty(options):
    model, x = net(), normal(5, 4)
    gradient_penalty(model, total, x, **options).backward()
    weight, direction = model[0].weight, normal(6, 4, seed=3)
    slope = float((weight.grad * direction).sum())
    ends = []
    for step in (1e-5, -2e-5):
        weight.data += step * direction
        ends.append(float(gradient_penalty(model, total, x, **options).detach()))
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)


@pytest.mark.parametrize("wrt", ["input", "parameters"])
@pytest.mark.parametrize("power", [1, 2])
def test_penalty_gradient_is_zero_where_the_gradient_vanishes(wrt, power):
    model = net()
    penalty = gradient_penalty(model, lambda y: y.square().sum(1) * 0, normal(5, 4), wrt=wrt, power=power)
    penalty.backward()
    assert penalty == 0 and all(torch.equal(q.grad, torch.zeros_like(q)) for q in model.parameters() if q.grad is not None)


def test_penalty_extremes():
    model, x = net().bfloat16(), normal(5, 4).bfloat16()
    for options in ({"p": 1}, {"p": 2}, {"wrt": "parameters"}):
        penalty = gradient_penalty(model, total, x, **options)
        assert penalty.dtype == torch.float32 and penalty.isfinite()
    x = normal(5, 4)
    gradient_penalty(net(), total, x, p=1)
    assert not x.requires_grad
    with torch.no_grad():
        assert gradient_penalty(net(), total, x, p=1) > 0


def test_penalty_law_parameter_bounds_input_by_the_first_layer():
    model, x = net(), normal(50, 4)
    size = torch.linalg.matrix_norm(model[0].weight, 2)
    bound = gradient_penalty(model, total, x, wrt="parameters") * size**2  # (1 + |h|^2) is at least 1
    assert gradient_penalty(model, total, x) <= bound


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wrt": "weights"}, "wrt must be 'input' or 'parameters', got 'weights'"),
        ({"power": 3}, "power must be 1 or 2, got 3"),
        ({"p": 3.0}, "p must be 1, 2 or inf, got 3.0"),
        ({"p": 1.0, "wrt": "parameters"}, "p must be 2 for parameters, got 1.0"),
    ],
)
def test_penalty_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        raw(gradient_penalty)(net(), total, normal(5, 4), **options)


@pytest.mark.parametrize("p", [1, 2])
def test_penalty_refuses_values_that_are_not_one_per_example(p):
    with pytest.raises(ValueError, match=r"one number per example, shape \(5,\), got shape \(\)"):
        gradient_penalty(net(), lambda y: y.mean(), normal(5, 4), p=p)


# --- dirichlet_energy


def test_dirichlet_energy_closed_form_and_oracle():
    linear, x = nn.Linear(4, 3).double(), normal(7, 4)
    assert torch.allclose(dirichlet_energy(linear, x), linear.weight.square().sum(), rtol=1e-13)
    model = net()
    jacobians = torch.func.vmap(torch.func.jacrev(model))(x)
    assert torch.allclose(dirichlet_energy(model, x), jacobians.square().sum((1, 2)).mean(), rtol=1e-13)
    assert torch.allclose(dirichlet_energy(lambda v: model(v)[:, 1], x), jacobians[:, 1].square().sum(1).mean(), rtol=1e-13)
    shaped = dirichlet_energy(lambda v: model(v.flatten(1)).reshape(7, 3, 1), x.reshape(7, 2, 2))
    assert torch.allclose(shaped, jacobians.square().sum((1, 2)).mean(), rtol=1e-13)


def test_dirichlet_energy_estimate_is_unbiased_with_the_known_variance():
    linear, x = nn.Linear(4, 3).double(), normal(1, 4)
    gram = (linear.weight @ linear.weight.T).detach()
    draws = 400
    estimate = dirichlet_energy(linear, x, n_probes=draws, generator=torch.Generator().manual_seed(1))
    variance = 2 * (gram.square().sum() - gram.diagonal().square().sum())  # of v'Gv with random signs
    error = float(estimate.detach() - gram.trace()) / math.sqrt(float(variance) / draws)
    assert 0 < abs(error) < 4
    one = nn.Linear(4, 1).double()  # a single output: every probe is exact
    assert torch.allclose(dirichlet_energy(one, x, n_probes=1), one.weight.square().sum())
    again = [dirichlet_energy(linear, x, n_probes=2, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*again)


def test_dirichlet_energy_gradient_extremes_refusal():
    linear, x = nn.Linear(4, 3).double(), normal(7, 4)
    dirichlet_energy(linear, x, create_graph=True).backward()
    assert torch.allclose(linear.weight.grad, 2 * linear.weight, rtol=1e-12)
    assert dirichlet_energy(lambda v: 0 * v, x) == 0 and not x.requires_grad
    assert not dirichlet_energy(linear, x).requires_grad
    with pytest.raises(ValueError, match="n_probes must be at least 1 or None for the exact energy, got 0"):
        dirichlet_energy(linear, x, n_probes=0)


# --- sampling_factor


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 7), st.integers(1, 4), st.integers(0, 10_000))
def test_sampling_factor_oracle_is_the_enumeration_of_all_batches(n, size, seed):
    g = normal(n, size, seed=seed)
    whole, single = g.mean(0).square().sum(), g.square().sum(1).mean()
    for b in range(1, n + 1):
        batches = [g[list(batch)].mean(0).square().sum() for batch in itertools.combinations(range(n), b)]
        assert torch.allclose(torch.stack(batches).mean(), whole + sampling_factor(n, b) * (single - whole), rtol=1e-12)


def test_sampling_factor_extremes_and_refusals():
    assert sampling_factor(10, 1) == 1 and sampling_factor(10, 10) == 0 and sampling_factor(1, 1) == 1
    assert sampling_factor(10**9, 100) == pytest.approx(0.01, rel=1e-6)
    for b in (0, 11):
        with pytest.raises(ValueError, match=f"b must be from 1 to n = 10, got {b}"):
            sampling_factor(10, b)
