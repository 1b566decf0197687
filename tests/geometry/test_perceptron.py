"""Tests of kexue.geometry.perceptron: the two places of normalization, and the noise that moves every channel."""

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.geometry.perceptron import ShiftNoise, perceptron
from torch import nn


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def weights(net):
    return [layer.weight for layer in net if isinstance(layer, nn.Linear)]


def test_perceptron_has_the_same_weights_at_every_place():
    reference = weights(perceptron([5, 7, 6, 3], generator=seeded(1)))
    for place in ("output", "input"):
        found = weights(perceptron([5, 7, 6, 3], place=place, generator=seeded(1)))
        assert all(torch.equal(a, b) for a, b in zip(reference, found, strict=True))
    assert not torch.equal(reference[0], weights(perceptron([5, 7, 6, 3], generator=seeded(2)))[0])


def test_perceptron_matches_the_formula_written_out():
    x = torch.randn(9, 5, generator=seeded())

    def bn(h):
        return (h - h.mean(0)) / (h.var(0, correction=0) + 1e-5).sqrt()

    w1, w2, w3 = weights(perceptron([5, 7, 6, 3], generator=seeded(1)))
    written = {
        "none": torch.relu(torch.relu(x @ w1.T) @ w2.T) @ w3.T,
        "output": torch.relu(bn(torch.relu(bn(x @ w1.T)) @ w2.T)) @ w3.T,
        "input": bn(torch.relu(bn(torch.relu(bn(x) @ w1.T)) @ w2.T)) @ w3.T,
    }
    for place, expected in written.items():
        assert torch.allclose(perceptron([5, 7, 6, 3], place=place, generator=seeded(1))(x), expected, atol=1e-5), place


def test_perceptron_names_layers_and_gives_a_bias_where_no_normalization_would_remove_it():
    shapes = {
        "none": "linear1 relu1 linear2",
        "output": "linear1 norm1 relu1 linear2",
        "input": "norm1 linear1 relu1 norm2 linear2",
    }
    for place, names in shapes.items():
        net = perceptron([4, 5, 2], place=place)
        assert [name for name, _ in net.named_children()] == names.split()
        assert (net.linear1.bias is None) == (place == "output")
        for layer in net:
            if isinstance(layer, nn.Linear) and layer.bias is not None:
                assert not layer.bias.any()
    noisy = perceptron([4, 5, 2], place="output", noise=ShiftNoise())
    assert [name for name, _ in noisy.named_children()] == ["linear1", "norm1", "noise1", "relu1", "linear2"]
    assert perceptron([4, 5, 2], place="output", eps=1e-12).norm1.eps == 1e-12
    assert perceptron([4, 5, 2], place="input", eps=1e-3).norm2.eps == 1e-3


def test_perceptron_starts_with_the_variance_of_he():
    weight = weights(perceptron([400, 300, 2], generator=seeded()))[0]
    assert weight.square().mean().item() == pytest.approx(2 / 400, rel=5 * math.sqrt(2 / weight.numel()))


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(0.01, 100), seed=st.integers(0, 2**31 - 1))
def test_perceptron_normalized_behind_is_scale_invariant_in_its_hidden_weights(scale, seed):
    net = perceptron([3, 8, 8, 2], place="output", eps=1e-12, generator=seeded(seed)).double()
    x = torch.randn(20, 3, generator=seeded(seed + 1), dtype=torch.float64)
    before = net(x)
    for weight in weights(net)[:-1]:
        weight.data *= scale
    assert torch.allclose(net(x), before, rtol=1e-6, atol=1e-8)


def test_perceptron_refusals():
    for widths in ([3], [], [3, 0, 2]):
        with pytest.raises(ValueError, match="widths must be at least two positive numbers"):
            perceptron(widths)


def test_perceptron_refuses_an_unknown_place():
    with pytest.raises(ValueError, match="place must be one of"):
        inspect.unwrap(perceptron)([3, 2], place="behind")


# --- covariate shift


def test_shift_noise_has_the_moments_it_names():
    noise, x = ShiftNoise(shift=0.7, scale=1.6, spread=0.2, generator=seeded()), torch.full((400, 3000), 2.0)
    y = noise(x)
    per_channel = y.mean(0)  # 2 sigma_c + mu_c
    assert per_channel.mean().item() == pytest.approx(2 * 1.3, abs=5 * math.sqrt((0.7**2 + 1.2**2 / 4) / 3 / 3000))
    # uniform laws of half widths 0.7 and 2 * 0.3: variance is a third of the squares; the fourth moment bounds the error by 2/sqrt(3000)
    assert per_channel.var().item() == pytest.approx((0.7**2 + 0.6**2) / 3, rel=5 * 2 / math.sqrt(3000))
    within = (y - per_channel).var(0, correction=0).mean().item()
    assert within == pytest.approx(0.2**2 / 3 + (2 * 0.2) ** 2, rel=0.02)


def test_shift_noise_moves_channels_from_call_to_call_and_not_at_test_time():
    noise, x = ShiftNoise(spread=0.0, scale=1.0, generator=seeded()), torch.randn(50, 6, generator=seeded(1))
    first, second = noise(x) - x, noise(x) - x
    assert torch.allclose(first, first[:1].expand_as(first), atol=1e-6)  # without spread one shift for the whole channel
    assert (first[0].abs() <= 0.5 + 1e-6).all() and not torch.allclose(first, second)
    assert noise.eval()(x) is x


def test_shift_noise_of_size_zero_is_the_identity_and_keeps_the_type():
    x = torch.randn(4, 3, dtype=torch.float64, generator=seeded())
    y = ShiftNoise(shift=0.0, scale=1.0, spread=0.0)(x)
    assert torch.equal(x, y) and y.dtype == torch.float64
    assert ShiftNoise()(x[:, ::2]).shape == (4, 2)


def test_shift_noise_passes_the_gradient_of_its_factor():
    x = torch.randn(5, 3, generator=seeded()).requires_grad_()
    y = ShiftNoise(shift=0.0, scale=3.0, spread=0.0, generator=seeded(2))(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(gradient * x, y) and (gradient >= 1).all() and (gradient <= 3).all()


def test_shift_noise_refusals():
    for bad in ({"shift": -0.1}, {"spread": -1.0}, {"scale": 0.9}, {"scale": math.nan}):
        with pytest.raises(ValueError, match="shift and spread must be >= 0 and scale >= 1"):
            ShiftNoise(**bad)
