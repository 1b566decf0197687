"""Tests of kexue.geometry.residual: kernels of activations, and signal and gradient through a stack of Transformer blocks."""

import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.geometry.mean_field import angle_map
from kexue.geometry.residual import activation_kernel, activation_slope, residual_signal
from scipy.special import ndtr
from torch import nn

NAMES = ["identity", "relu", "gelu"]
FUNCTIONS = {"identity": lambda u: u, "relu": torch.relu, "gelu": nn.functional.gelu}


def one(value):
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize(("q", "rho"), [(0.05, 0.3), (0.2377, 0.0), (1.0, -0.7), (3.0, 0.95)])
def test_gelu_kernel_matches_a_double_integral(q, rho):
    # The trapezoidal rule converges faster than any power for integrands that are smooth and die out, and shares no node with ours.
    grid = np.linspace(-10, 10, 401)
    a, b = grid[:, None], grid
    u, w = np.sqrt(q) * a, np.sqrt(q) * (rho * a + np.sqrt(1 - rho**2) * b)
    density = np.exp(-(a**2 + b**2) / 2) / (2 * np.pi)
    value = (u * ndtr(u) * w * ndtr(w) * density).sum() * 0.05**2
    assert activation_kernel(one(q), one(rho), "gelu").item() == pytest.approx(value, rel=1e-12, abs=1e-14)


def test_branch_variances_of_bert():
    # 4 q E gelu(sqrt(q) z)^2 at the truncated 0.02 of width 768, at the untruncated one, and at Xavier's scale.
    q = one([0.2376933284505363, 0.3072, 1.0])
    expected = one([0.07482227905133809, 0.1308482678369, 1.700885930281195])  # by mpmath, 30 digits
    assert torch.allclose(4 * q * activation_kernel(q, one(1.0), "gelu"), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize(("name", "tolerance"), [("identity", 1e-14), ("gelu", 1e-14), ("relu", 2e-3)])
@pytest.mark.parametrize("function", [activation_kernel, activation_slope])
def test_closed_forms_match_the_quadrature(name, tolerance, function):
    q, rho = one([[0.1], [0.6], [1.0]]), torch.linspace(-1, 1, 9, dtype=torch.float64)
    closed, integral = function(q, rho, name), function(q, rho, FUNCTIONS[name])
    assert closed.shape == (3, 9)
    if name == "relu" and function is activation_slope:
        tolerance = 0.06  # the derivative of relu jumps: the rule sees 96 x 96 points of a step
    assert torch.allclose(closed, integral, atol=tolerance, rtol=0)


def test_relu_kernel_matches_the_angle_map():
    theta = torch.linspace(0, math.pi, 33, dtype=torch.float64)
    ratio = activation_kernel(one(0.7), theta.cos(), "relu") / activation_kernel(one(0.7), one(1.0), "relu")
    assert torch.allclose(ratio, angle_map(theta, "relu").cos(), atol=1e-14)
    assert activation_kernel(one(0.7), one(1.0), "relu").item() == pytest.approx(0.35, rel=1e-15)  # half of the variance


def test_a_callable_with_a_known_kernel():
    # E sin u sin w = exp(-q) sinh(c) and E cos u cos w = exp(-q) cosh(c), with c = q rho.
    q, rho = one([0.5, 1.3]), one([-0.4, 0.8])
    assert torch.allclose(activation_kernel(q, rho, torch.sin), torch.exp(-q) * torch.sinh(q * rho), rtol=1e-13, atol=0)
    assert torch.allclose(activation_slope(q, rho, torch.sin), torch.exp(-q) * torch.cosh(q * rho), rtol=1e-13, atol=0)
    assert activation_kernel(q.float(), rho.float(), torch.sin).dtype == torch.float32


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(NAMES), st.floats(0.01, 8), st.floats(-0.99, 0.99))
def test_slope_is_the_derivative_of_the_kernel_by_price(name, q, rho):
    r = one(rho).requires_grad_()
    (derivative,) = torch.autograd.grad(activation_kernel(one(q), r, name), r)
    assert activation_slope(one(q), one(rho), name).item() == pytest.approx(derivative.item() / q, rel=1e-10, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(NAMES), st.floats(0.01, 8), st.floats(-1, 1))
def test_kernels_obey_cauchy_schwarz_and_grow(name, q, rho):
    diagonal = activation_kernel(one(q), one(1.0), name)
    assert activation_kernel(one(q), one(rho), name).abs() <= diagonal * (1 + 1e-12)
    assert activation_slope(one(q), one(abs(rho)), name) >= 0


def test_kernel_at_the_extremes():
    for name in NAMES:
        assert torch.isfinite(activation_kernel(one([1e-12, 1e6]), one([[1.0], [-1.0], [0.0]]), name)).all()
    # A tiny q sees the tangent at 0, which for gelu has slope 1/2; a huge one sees relu.
    assert activation_kernel(one(1e-9), one(0.3), "gelu").item() == pytest.approx(0.3e-9 / 4, rel=1e-6)
    large = one(1e8)
    assert activation_kernel(large, one(0.3), "gelu").item() == pytest.approx(activation_kernel(large, one(0.3), "relu").item(), rel=1e-6)


def test_kernel_gradients():
    q, rho = one([0.2, 1.5]).requires_grad_(), one([0.1, -0.6]).requires_grad_()
    for name in ("relu", "gelu"):
        assert torch.autograd.gradcheck(lambda q, r, name=name: activation_kernel(q, r, name), (q, rho))


@pytest.mark.parametrize("function", [activation_kernel, activation_slope])
def test_kernels_refuse(function):
    with pytest.raises(ValueError, match="activation must be 'identity', 'relu', 'gelu' or a function of a tensor, got 'swish'"):
        inspect.unwrap(function)(one(1.0), one(0.5), "swish")
    for q in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="q must be positive and finite"):
            function(one(q), one(0.5), "gelu")
    for rho in (1.1, -2.0, math.nan):
        with pytest.raises(ValueError, match=r"rho must lie in \[-1, 1\]"):
            function(one(1.0), one(rho), "gelu")


def plain(q, depth, tokens, norm, ratio, cosine, gradient_cosine):
    """The recursion once more, with numbers and for gelu, as one would write it on paper."""

    def kernel(r):
        return activation_kernel(one(q), one(r), FUNCTIONS["gelu"]).item()

    def slope(r):
        return activation_slope(one(q), one(r), FUNCTIONS["gelu"]).item()

    v, rho, places, branches = 1.0, cosine, [(1.0, cosine)], []
    for _ in range(depth):
        for kind in "AF":
            if kind == "A":
                added = shared = q * q * ((tokens - 1) * rho + 1) / tokens
            else:
                added, shared = ratio * q * kernel(1.0), ratio * q * kernel(rho)
            rho, v = (v * rho + shared) / (v + added), (1.0 if norm == "post" else v + added)
            branches.append(added)
            places.append((v, rho))
    g, r, gradients = 1.0, gradient_cosine, [(1.0, gradient_cosine)]
    for index in reversed(range(2 * depth)):
        v, rho = places[index]
        if index % 2:
            own, shared = ratio * q * q * slope(1.0), ratio * q * q * slope(rho) * r
        else:
            own = shared = q * q * ((tokens - 1) * r + 1) / tokens
        if norm == "post":
            g, r = g * (1 + own) / (1 + branches[index]), (r + shared) / (1 + own)
        else:
            g, r = g * (1 + own / v), (r + shared / v) / (1 + own / v)
        gradients.append((g, r))
    return branches, places, gradients[::-1]


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize(
    ("q", "depth", "tokens", "ratio", "cosine", "gradient_cosine"), [(0.3, 3, 7, 4, 0.0, 0.0), (1.1, 2, 2, 3, 0.2, -0.3)]
)
def test_recursion_matches_the_plain_loop(norm, q, depth, tokens, ratio, cosine, gradient_cosine):
    s = residual_signal(one([q, 0.5]), depth, tokens, norm=norm, ratio=ratio, cosine=cosine, gradient_cosine=gradient_cosine)
    branches, places, gradients = plain(q, depth, tokens, norm, ratio, cosine, gradient_cosine)
    assert s.branch.shape == (2, 2 * depth) and s.stream.shape == (2, 2 * depth + 1)
    assert torch.allclose(s.branch[0], one(branches), rtol=1e-12, atol=0)
    for index, (stream, rho) in enumerate(zip(s.stream[0], s.cosine[0], strict=True)):
        assert (stream.item(), rho.item()) == pytest.approx(places[index], rel=1e-12, abs=1e-15)
    for index, (size, rho) in enumerate(zip(s.gradient[0], s.gradient_cosine[0], strict=True)):
        assert (size.item(), rho.item()) == pytest.approx(gradients[index], rel=1e-12, abs=1e-15)


def test_overlap_is_the_share_of_the_direct_path():
    q = one(0.4)
    post, pre = residual_signal(q, 4, 9), residual_signal(q, 4, 9, norm="pre")
    assert torch.allclose(post.overlap[1:], torch.cumprod((1 + post.branch).rsqrt(), 0), rtol=1e-14)
    assert torch.allclose(pre.overlap, pre.stream.rsqrt(), rtol=1e-14)
    assert torch.allclose(pre.stream[1:], 1 + torch.cumsum(pre.branch, 0), rtol=1e-14)


def test_bert_base_numbers():
    q = one([0.4875380276968**2, 1.0])
    s = residual_signal(q, 12, 128)
    assert s.overlap[0, -1].item() == pytest.approx(0.6377, abs=5e-5) and s.cosine[0, -1].item() == pytest.approx(0.100, abs=5e-4)
    assert s.overlap[1, -1] < 2e-4 and s.cosine[1, -1] > 0.997


def test_equal_tokens_stay_equal_and_a_relu_gradient_keeps_its_size():
    s = residual_signal(one(0.8), 5, 6, activation="relu", cosine=1.0, gradient_cosine=1.0)
    assert torch.equal(s.cosine, torch.ones(11, dtype=torch.float64))
    # relu: 4 q^2 / 2 forward and backward; attention: q^2 both ways for equal tokens and equal gradients. Every factor is exactly 1.
    assert torch.allclose(s.gradient, torch.ones(11, dtype=torch.float64), rtol=1e-14)
    assert torch.allclose(s.gradient_cosine, torch.ones(11, dtype=torch.float64), rtol=1e-14)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.01, 2), st.integers(2, 500), st.sampled_from(["post", "pre"]), st.sampled_from(NAMES))
def test_states_are_possible(q, tokens, norm, name):
    s = residual_signal(one(q), 6, tokens, norm=norm, activation=name)
    for values in (s.cosine, s.overlap, s.gradient_cosine):
        assert (values >= -1e-12).all() and (values <= 1 + 1e-12).all()
    assert (s.branch > 0).all() and (s.gradient > 0).all() and (s.overlap.diff() < 0).all()


def test_depth_zero_and_one_input():
    s = residual_signal(one(0.5).float(), 0, 5, cosine=0.25, gradient_cosine=0.5)
    assert s.branch.shape == (0,) and s.branch.dtype == torch.float64
    assert [value.item() for value in s[1:]] == [1.0, 0.25, 1.0, 1.0, 0.5]


def uniform_network(width, q, depth, norm, generator):
    """Forward pass in plain torch, with attention that is uniform by construction and one head, which is then no restriction."""
    values = [torch.randn(width, width, generator=generator) for _ in range(2 * depth)]
    ups = [torch.randn(4 * width, width, generator=generator) for _ in range(depth)]
    downs = [torch.randn(width, 4 * width, generator=generator) for _ in range(depth)]
    s = math.sqrt(q / width)

    def normalized(x):
        return nn.functional.layer_norm(x, (width,))

    def branch(x, index):
        if index % 2 == 0:
            return (x.mean(0) @ values[index].T @ values[index + 1].T * s**2).expand_as(x)
        return nn.functional.gelu(x @ ups[index // 2].T * s) @ downs[index // 2].T * s

    def forward(x):
        states = [x]
        for index in range(2 * depth):
            x = normalized(x + branch(x, index)) if norm == "post" else x + branch(normalized(x), index)
            states.append(x)
        return states

    return forward


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_recursion_matches_wide_networks_with_uniform_attention(norm):
    width, tokens, depth, q, runs = 256, 12, 3, 0.7, 6
    generator = torch.Generator().manual_seed(0)
    measured = []
    for _ in range(runs):
        x = nn.functional.layer_norm(torch.randn(tokens, width, generator=generator), (width,)).requires_grad_()
        states = uniform_network(width, q, depth, norm, generator)(x)
        gradients = torch.autograd.grad((states[-1] * torch.randn(tokens, width, generator=generator)).sum(), states)

        def mean_cosine(z):
            unit = nn.functional.normalize(z, dim=-1)
            return ((unit @ unit.T).sum() - tokens) / (tokens * (tokens - 1))

        overlap = [nn.functional.cosine_similarity(z, states[0], dim=-1).mean() for z in states]
        rows = [[z.square().mean() for z in states], [mean_cosine(z) for z in states], overlap]
        rows += [[g.square().mean() / gradients[-1].square().mean() for g in gradients], [mean_cosine(g) for g in gradients]]
        measured.append(torch.tensor([[value.item() for value in row] for row in rows]))
    s = residual_signal(one(q), depth, tokens, norm=norm)
    predicted = torch.stack([s.stream, s.cosine, s.overlap, s.gradient, s.gradient_cosine]).float()
    # A branch of width n has relative fluctuations of order n^(-1/2); averaged over the runs and over 2 depth branches that is 0.03.
    assert torch.allclose(torch.stack(measured).mean(0), predicted, atol=0.03, rtol=0.04)


def test_recursion_refuses():
    q = one(0.5)
    with pytest.raises(ValueError, match="norm must be 'post' or 'pre', got 'none'"):
        inspect.unwrap(residual_signal)(q, 2, 8, norm="none")
    with pytest.raises(ValueError, match="depth must be at least 0 and tokens at least 2, got depth=-1, tokens=8"):
        residual_signal(q, -1, 8)
    with pytest.raises(ValueError, match="got depth=2, tokens=1"):
        residual_signal(q, 2, 1)
    with pytest.raises(ValueError, match="ratio must be at least 1, got 0"):
        residual_signal(q, 2, 8, ratio=0)
    for name in ("cosine", "gradient_cosine"):
        for value in (-0.2, 1.01, math.nan):
            with pytest.raises(ValueError, match=rf"^{name} must lie in \[-1/\(tokens - 1\), 1\]"):
                residual_signal(q, 2, 8, **{name: value})
    with pytest.raises(ValueError, match="q must be positive"):
        residual_signal(one(0.0), 2, 8)
