"""Tests of kexue.geometry.normalization: the batch normalization passes, the norm identity, growth of gradients with depth."""

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.geometry.normalization import (
    batch_norm,
    batch_norm_backward,
    effective_lr,
    finite_batch_growth,
    gradient_growth,
    gradient_norm_sq,
    growth_rate,
)
from torch import nn

LAYOUTS = [(6, 3), (5, 3, 4), (2, 3, 4, 5), (1, 3, 2, 2, 2)]


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def parameters(channels=3, seed=1, dtype=torch.float64):
    return normal(channels, seed=seed, dtype=dtype), normal(channels, seed=seed + 1, dtype=dtype)


# --- forward and backward


@pytest.mark.parametrize("shape", LAYOUTS)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_both_passes_match_torch(shape, dtype, rtol, eps):
    y = (3 + 2 * normal(*shape, dtype=dtype)).requires_grad_()
    gamma, beta = (p.requires_grad_() for p in parameters(dtype=dtype))
    mean, var = torch.zeros(3, dtype=dtype), torch.ones(3, dtype=dtype)
    theirs = nn.functional.batch_norm(y, mean, var, gamma, beta, training=True, momentum=1.0, eps=eps)
    g = normal(*shape, seed=5, dtype=dtype)
    grads = torch.autograd.grad(theirs, (y, gamma, beta), g)
    z, cache = batch_norm(y.detach(), gamma.detach(), beta.detach(), eps=eps)
    assert torch.allclose(z, theirs, rtol=rtol, atol=10 * rtol)
    for ours, reference in zip(batch_norm_backward(g, cache), grads, strict=True):
        assert ours.dtype == dtype
        assert torch.allclose(ours, reference, rtol=rtol, atol=20 * rtol)
    count = y.numel() // 3
    assert torch.allclose(cache.mean, mean, rtol=rtol)
    assert torch.allclose(cache.variance * count / (count - 1), var, rtol=10 * rtol)  # torch's running variance is the unbiased one
    assert torch.allclose(cache.scale**2, cache.variance + eps, rtol=rtol)


@pytest.mark.parametrize("eps", [0.0, 1e-3])
def test_gradient_through_the_forward_pass_and_of_the_backward_pass(eps):
    gamma, beta = parameters()
    y = normal(5, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda *a: batch_norm(*a, eps=eps)[0], (y, gamma.requires_grad_(), beta.requires_grad_()))
    g = normal(5, 3, seed=7)
    z, cache = batch_norm(y, gamma, beta, eps=eps)
    exact = torch.autograd.grad(z, (y, gamma, beta), g)
    for ours, reference in zip(batch_norm_backward(g, cache), exact, strict=True):
        assert torch.allclose(ours, reference, rtol=1e-12, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 12), st.sampled_from([0.0, 1e-5, 0.1, 3.0]), st.floats(-3, 3), st.floats(-2, 2), st.integers(0, 10_000))
def test_norm_identity_holds_for_every_eps(m, eps, log_scale, along, seed):
    y = 10.0**log_scale * normal(m, 2, seed=seed) + 3
    gamma, beta = parameters(2, seed=seed + 1)
    _, cache = batch_norm(y, gamma, beta, eps=eps)
    g = normal(m, 2, seed=seed + 9) + along * cache.normalized + along
    direct = batch_norm_backward(g, cache)[0].square().sum(0)
    size = (gamma / cache.scale).square() * g.square().sum(0)
    assert ((gradient_norm_sq(g, cache) - direct).abs() <= 1e-12 * size).all()


def test_norm_identity_over_spatial_axes_and_in_half_precision():
    y, g = normal(2, 3, 4, 5), normal(2, 3, 4, 5, seed=3)
    _, cache = batch_norm(y, *parameters(), eps=0.1)
    assert torch.allclose(gradient_norm_sq(g, cache), batch_norm_backward(g, cache)[0].square().sum((0, 2, 3)), rtol=1e-12)
    _, half = batch_norm(y.bfloat16(), *(p.bfloat16() for p in parameters()), eps=0.1)
    assert torch.allclose(gradient_norm_sq(g.bfloat16(), half).double(), gradient_norm_sq(g, cache), rtol=0.05)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.01, 100), st.floats(-50, 50), st.integers(0, 10_000))
def test_output_ignores_affine_maps_of_the_input_and_the_gradient_shrinks_with_them(a, c, seed):
    y, g = normal(9, 3, seed=seed), normal(9, 3, seed=seed + 1)
    z, cache = batch_norm(y, *parameters(), eps=0.0)
    moved, scaled = batch_norm(a * y + c, *parameters(), eps=0.0)
    assert torch.allclose(moved, z, rtol=1e-9, atol=1e-9)
    grad, other = batch_norm_backward(g, cache)[0], batch_norm_backward(g, scaled)[0]
    assert torch.allclose(other * a, grad, rtol=1e-8, atol=1e-9)
    assert (grad.sum(0).abs() < 1e-11 / cache.scale).all()
    assert ((grad * cache.normalized).sum(0).abs() < 1e-11 / cache.scale).all()


def test_large_mean_and_small_spread_in_float32():
    y = (1e4 + 1e-2 * normal(4096, 1)).float()  # float32 has steps of 1e-3 here: the input is coarse, its normalization need not be
    z, cache = batch_norm(y, torch.ones(1), torch.zeros(1), eps=0.0)
    exact = y.double() - y.double().mean(0)
    assert torch.allclose(z.double(), exact / exact.square().mean(0).sqrt(), rtol=0, atol=2e-6)
    assert cache.variance.double() == pytest.approx(exact.square().mean().item(), rel=1e-6)
    assert cache.mean.item() == pytest.approx(y.double().mean().item(), rel=1e-7)


def test_half_precision_uses_float32_statistics():
    y = (5 + normal(64, 3)).bfloat16()
    z, cache = batch_norm(y, torch.ones(3).bfloat16(), torch.zeros(3).bfloat16())
    assert z.dtype == torch.bfloat16 and cache.variance.dtype == torch.float32
    exact = torch.nn.functional.batch_norm(y.float(), None, None, training=True)
    assert torch.allclose(z.float(), exact, rtol=2**-8, atol=2**-9)
    grads = batch_norm_backward(y, cache)
    assert [g.dtype for g in grads] == [torch.bfloat16, torch.float32, torch.float32]


def test_extremes_constant_channel_two_values_and_strides():
    z, cache = batch_norm(torch.full((4, 1), 7.0), torch.ones(1), torch.full((1,), 2.0))
    assert torch.equal(z, torch.full((4, 1), 2.0)) and cache.variance == 0
    z, _ = batch_norm(torch.tensor([[1.0], [5.0]]), torch.ones(1), torch.zeros(1), eps=0.0)
    assert torch.equal(z, torch.tensor([[-1.0], [1.0]]))  # two values always become -1 and 1
    y = normal(3, 8).mT  # not contiguous
    assert torch.allclose(batch_norm(y, *parameters())[0], batch_norm(y.contiguous(), *parameters())[0], rtol=1e-14)


def test_batch_norm_refusals():
    one, zero = torch.ones(3), torch.zeros(3)
    for shape in [(1, 3), (1, 3, 1, 1), (0, 3)]:
        with pytest.raises(ValueError, match="at least two values per channel"):
            batch_norm(torch.zeros(shape), one, zero)
    for eps in (-1e-5, math.nan):
        with pytest.raises(ValueError, match="eps must be >= 0"):
            batch_norm(torch.zeros(4, 3), one, zero, eps=eps)
    y = torch.arange(12.0).view(4, 3)
    y[:, 1] = 3
    with pytest.raises(ValueError, match="eps must be positive when a channel is constant, and channel 1 is"):
        batch_norm(y, one, zero, eps=0.0)


# --- growth with depth


def test_growth_rate_closed_forms():
    assert growth_rate(torch.relu) == pytest.approx(math.pi / (math.pi - 1), rel=1e-13)
    assert growth_rate(lambda z: 3 * z - 2) == pytest.approx(1, rel=1e-13)
    assert growth_rate(lambda z: z**3) == pytest.approx(27 / 15, rel=1e-12)  # E 9 z^4 / E z^6
    assert growth_rate(torch.sin) == pytest.approx((1 + math.exp(-2)) / (1 - math.exp(-2)), rel=1e-12)
    a = 0.2  # leaky ReLU
    leaky = (1 + a**2) / 2 / ((1 + a**2) / 2 - (1 - a) ** 2 / (2 * math.pi))
    assert growth_rate(lambda z: nn.functional.leaky_relu(z, a)) == pytest.approx(leaky, rel=1e-13)


def test_growth_rate_of_tanh_matches_mpmath():
    mean = lambda f: mpmath.quad(lambda z: f(z) * mpmath.npdf(z), [-12, -3, 0, 3, 12])  # noqa: E731
    expected = mean(lambda z: mpmath.sech(z) ** 4) / mean(lambda z: mpmath.tanh(z) ** 2)
    assert growth_rate(torch.tanh) == pytest.approx(float(expected), rel=1e-11)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-2, 2), min_size=2, max_size=5))
def test_growth_rate_is_at_least_one(coefficients):
    def polynomial(z):
        return sum(c * z**k for k, c in enumerate(coefficients, 1))

    if max(map(abs, coefficients)) > 1e-3:
        assert growth_rate(polynomial) >= 1 - 1e-12


def test_growth_rate_refuses_a_constant():
    with pytest.raises(ValueError, match="activation must not be constant"):
        growth_rate(lambda z: 0 * z + 1)
    with pytest.raises(ValueError, match="activation must not be constant"):
        growth_rate(torch.ones_like)


def test_finite_batch_growth_limits():
    for slope in (0.0, 0.3, 1.0):
        limit = growth_rate(lambda z, a=slope: nn.functional.leaky_relu(z, a))
        errors = [finite_batch_growth(m, slope) - limit for m in (1000, 10_000)]
        assert errors[0] / errors[1] == pytest.approx(10, rel=0.02)  # the rate is 1/m
    for m in (4, 5, 17):
        assert finite_batch_growth(m, 1.0) == pytest.approx((m - 2) / (m - 3), rel=1e-12)
    with pytest.raises(ValueError, match="batch must be at least 4"):
        finite_batch_growth(3)


@pytest.mark.parametrize("slope", [0.0, 0.4])
def test_finite_batch_growth_matches_simulated_spheres(slope):
    m, draws = 9, 200_000
    y, u = normal(draws, m, seed=1), normal(draws, m, seed=2)
    length = (y - y.mean(1, keepdim=True)).square().mean(1)  # of a channel whose examples have covariance I
    yhat = (y - y.mean(1, keepdim=True)) / length.sqrt()[:, None]
    value, derivative = nn.functional.leaky_relu(yhat, slope), torch.where(yhat > 0, 1.0, slope)
    variance = value.var(1, correction=0).mean() * m / (m - 1)  # per direction of the batch, of which there are m - 1
    g = derivative * (u - u.mean(1, keepdim=True))
    g = g - g.mean(1, keepdim=True) - yhat * (g * yhat).mean(1, keepdim=True)
    rate = (g.square().sum(1) / length).mean() / (variance * (m - 1))
    assert rate.item() == pytest.approx(finite_batch_growth(m, slope), rel=0.01)  # standard error 0.3 %


def test_gradient_growth_matches_autograd_through_torch_layers():
    depth, width, batch = 4, 7, 6
    sizes = gradient_growth(depth, width, batch, activation=torch.tanh, generator=torch.Generator().manual_seed(3))
    g = torch.Generator().manual_seed(3)
    h, seen = torch.randn(batch, width, generator=g), []
    for _ in range(depth):
        y = (h @ (math.sqrt(2 / width) * torch.randn(width, width, generator=g)).T).requires_grad_()
        seen.append(y)
        h = torch.tanh(nn.functional.batch_norm(y, None, None, training=True, eps=1e-12))
    expected = [t.square().sum().item() for t in torch.autograd.grad(h, seen, torch.randn(batch, width, generator=g))]
    assert sizes.tolist() == pytest.approx(expected, rel=1e-3)


def test_gradient_growth_without_normalization_is_flat_at_he_gain_and_scales_with_gain():
    flat = gradient_growth(12, 400, 20, normalize=False, generator=torch.Generator().manual_seed(0))
    assert 0.8 < (flat[0] / flat[-1]).item() ** (1 / 11) < 1.25
    weak = gradient_growth(12, 400, 20, normalize=False, gain=1.0, generator=torch.Generator().manual_seed(0))
    assert torch.allclose((weak / flat).log2(), -torch.arange(11, -1, -1.0).double(), atol=1e-3)
    normalized = [gradient_growth(3, 30, 8, gain=c, generator=torch.Generator().manual_seed(0)) for c in (2.0, 8.0)]
    assert torch.allclose(normalized[0][1:] / normalized[1][1:], torch.full((2,), 4.0).double(), rtol=1e-4)


@pytest.mark.parametrize(
    ("activation", "batch", "theory"),
    [(torch.relu, 64, finite_batch_growth(64)), (torch.relu, 12, finite_batch_growth(12)), (lambda z: z, 8, 6 / 5)],
)
def test_gradient_growth_rate_of_wide_networks_is_the_theory(activation, batch, theory):
    sizes = gradient_growth(24, 512, batch, activation=activation, generator=torch.Generator().manual_seed(1))
    measured = (sizes[8] / sizes[-3]).item() ** (1 / 13)
    assert measured == pytest.approx(theory, rel=0.04)  # 0.01 to 0.03 over seeds


def test_gradient_growth_with_skips_matches_autograd():
    depth, width, batch = 3, 6, 5
    sizes = gradient_growth(depth, width, batch, skip=True, generator=torch.Generator().manual_seed(4))
    g = torch.Generator().manual_seed(4)
    h, seen = torch.randn(batch, width, generator=g).requires_grad_(), []
    for _ in range(depth):
        seen.append(h)
        y = h @ (math.sqrt(2 / width) * torch.randn(width, width, generator=g)).T
        h = h + torch.relu(nn.functional.batch_norm(y, None, None, training=True, eps=1e-12))
    expected = [t.square().sum().item() for t in torch.autograd.grad(h, seen, torch.randn(batch, width, generator=g))]
    assert sizes.tolist() == pytest.approx(expected, rel=1e-3)


def test_gradient_growth_with_skips_is_a_power_law():
    rate, spread = growth_rate(torch.relu), (math.pi - 1) / (2 * math.pi)
    sizes = gradient_growth(40, 512, 256, skip=True, generator=torch.Generator().manual_seed(0))
    product = math.prod(1 + rate / (layer + 1 / spread) for layer in range(40))
    assert sizes[0].item() / (512 * 256) == pytest.approx(product, rel=0.4)  # one percent per layer; without skips it is 4e6


def test_gradient_growth_refusals():
    for arguments in [(0, 4, 4), (4, 0, 4), (4, 4, 1)]:
        with pytest.raises(ValueError, match="must be positive and batch at least 2"):
            gradient_growth(*arguments)
    with pytest.raises(ValueError, match="must be positive and batch at least 2"):
        gradient_growth(4, 4, 4, gain=0.0)


# --- effective learning rate


def test_effective_lr_is_the_rate_of_the_direction():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4, eps=1e-12), nn.Linear(4, 2)).double()
    weight = net[0].weight
    optimizer = torch.optim.SGD([{"params": [weight], "lr": 1e-4}, {"params": net[2].parameters(), "lr": 0.5}])
    start = (weight / weight.norm()).detach()
    net(normal(20, 5)).square().mean().backward()
    turn = effective_lr(optimizer, weight) * weight.norm() * weight.grad  # minus the gradient at the unit vector, times the rate
    optimizer.step()
    assert torch.allclose(weight / weight.norm() - start, -turn, rtol=1e-3, atol=1e-9)
    assert effective_lr(optimizer, net[2].weight) == pytest.approx(0.5 / net[2].weight.square().sum().item())


def test_effective_lr_refusals():
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with pytest.raises(ValueError, match=r"weight of shape \(2,\) is not among the parameters"):
        effective_lr(optimizer, torch.ones(2))
    weight.data.zero_()
    with pytest.raises(ValueError, match="weight must not be zero"):
        effective_lr(optimizer, weight)
