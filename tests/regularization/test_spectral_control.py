"""Tests of kexue.regularization.spectral_control: torch's own parametrization as peer, laws of normalization, power iteration."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.regularization.conv_norm import conv2d_norm, reshape_norm
from kexue.regularization.lipschitz import GroupSort, lipschitz_lower, lipschitz_upper
from kexue.regularization.spectral_control import SpectralNormalization, SpectralPenalty, clip_weights_, spectral_normalize
from torch import nn


def conv(seed=0):
    torch.manual_seed(seed)
    return nn.Conv2d(3, 4, 3, padding=1).double()


def top(weight):
    return torch.linalg.matrix_norm(weight.detach().flatten(1), 2)


def test_reshape_method_matches_torchs_parametrization():
    ours, theirs = conv(), conv()
    spectral_normalize(ours, method="reshape")
    torch.nn.utils.parametrizations.spectral_norm(theirs, n_power_iterations=50)
    for _ in range(5):
        theirs(torch.zeros(1, 3, 4, 4, dtype=torch.float64))
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-6, atol=1e-8)
    assert top(ours.weight).item() == pytest.approx(1, rel=1e-12)


@given(st.integers(0, 10_000), st.floats(0.1, 10))
@settings(max_examples=15, deadline=None)
def test_operator_method_certifies_the_coefficient_and_wastes_little(seed, coefficient):
    layer = spectral_normalize(conv(seed), coefficient)
    size = conv2d_norm(layer.weight.detach(), 240)
    assert 0.98 * coefficient <= size <= coefficient * (1 + 1e-12)


def test_linear_layers_get_their_norm_exactly_by_both_methods():
    for method in ("operator", "reshape"):
        layer = spectral_normalize(nn.Linear(6, 4).double(), 3.0, method=method)
        assert top(layer.weight).item() == pytest.approx(3, rel=1e-13)


def test_whole_models_are_certified_after_training_steps():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), GroupSort(), nn.Flatten(), nn.Linear(64, 1))
    assert spectral_normalize(model) is model
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    x = torch.randn(20, 1, 4, 4)
    for _ in range(10):
        optimizer.zero_grad()
        (-model(x).std()).backward()
        optimizer.step()
    assert lipschitz_upper(model) <= 1 + 1e-5
    assert lipschitz_lower(model, x).max() <= 1 + 1e-5
    model.eval()
    model(x).sum().backward()
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(x), model(x))
    assert set(model.state_dict()) == {"0.bias", "0.parametrizations.weight.original", "3.bias", "3.parametrizations.weight.original"}


@pytest.mark.parametrize("method", ["operator", "reshape"])
def test_gradient_has_no_part_along_the_weight(method):
    layer = spectral_normalize(conv(1), method=method)
    raw = layer.parametrizations.weight.original
    (gradient,) = torch.autograd.grad((layer.weight * torch.arange(108.0).view(4, 3, 3, 3)).sum(), raw)
    assert abs((gradient * raw).sum()) < 1e-10 * gradient.norm() * raw.norm() and gradient.norm() > 1


def test_zero_weights_stay_zero():
    layer = conv()
    layer.weight.data.zero_()
    spectral_normalize(layer)
    assert (layer.weight == 0).all()


def test_penalty_estimates_rise_to_the_norms():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 6)).double()
    penalty = SpectralPenalty(model, generator=torch.Generator().manual_seed(0))
    path = torch.stack([torch.stack(penalty.norms()).detach() for _ in range(400)])
    exact = torch.stack([top(model[0].weight), top(model[2].weight)])
    assert (path[1:] >= path[:-1] - 1e-14).all() and (path <= exact + 1e-14).all()
    torch.testing.assert_close(path[-1], exact, rtol=1e-10, atol=0)
    assert penalty().item() == pytest.approx(exact.square().sum().item() / 2, rel=1e-10)


def test_penalty_step_is_one_round_of_power_iteration():
    layer = nn.Linear(3, 2).double()
    penalty = SpectralPenalty(layer, generator=torch.Generator().manual_seed(3))
    v = penalty.vectors[0].clone()
    assert v.norm().item() == pytest.approx(1)
    u = layer.weight.detach() @ v / (layer.weight.detach() @ v).norm()
    assert penalty.norms()[0].item() == pytest.approx((layer.weight.detach().T @ u).norm().item(), rel=1e-13)


def test_penalty_gradient_is_the_norm_times_its_singular_vectors():
    torch.manual_seed(4)
    layer = nn.Linear(4, 3).double()
    penalty = SpectralPenalty(layer)
    for _ in range(500):
        value = penalty()
    value.backward()
    u, s, vh = torch.linalg.svd(layer.weight.detach())
    torch.testing.assert_close(layer.weight.grad, s[0] * torch.outer(u[:, 0], vh[0]), rtol=0, atol=1e-9)


def test_penalty_survives_a_zero_layer():
    layer = nn.Linear(4, 3)
    penalty = SpectralPenalty(layer)
    weight = layer.weight.detach().clone()
    layer.weight.data.zero_()
    assert penalty() == 0
    layer.weight.data = weight
    assert penalty() > 0 and torch.isfinite(penalty())


def test_reshape_norm_of_a_normalized_kernel_is_not_its_norm():
    layer = spectral_normalize(conv(5), method="reshape")
    weight = layer.weight.detach()
    assert reshape_norm(weight).item() == pytest.approx(1, rel=1e-12) and conv2d_norm(weight, 24) > 1.2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SpectralNormalization(nn.Linear(2, 2), 0.0), "coefficient must be positive, got 0.0"),
        (lambda: spectral_normalize(nn.ReLU()), "at least one Linear or Conv2d"),
        (lambda: SpectralPenalty(nn.ReLU()), "at least one Linear"),
    ],
)
def test_refusals_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_unknown_methods_are_refused():
    with pytest.raises(Exception, match=r"method"):
        SpectralNormalization(nn.Linear(2, 2), method="power")


@given(st.integers(0, 10_000), st.floats(1e-3, 10))
@settings(max_examples=15, deadline=None)
def test_clipping_matches_minimum_and_maximum_and_bounds_the_norm(seed, limit):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)).double()
    before, bound = [parameter.detach().clone() for parameter in model.parameters()], torch.tensor(limit, dtype=torch.float64)
    assert clip_weights_(model, limit) is model
    for old, new in zip(before, model.parameters(), strict=True):
        assert torch.equal(new, torch.minimum(torch.maximum(old, bound.neg()), bound))
    assert top(model[0].weight) <= limit * 24**0.5 * (1 + 1e-12)


def test_clipping_of_large_equal_entries_attains_its_bound():
    layer = nn.Linear(8, 2).double()
    layer.weight.data.fill_(5)
    assert top(clip_weights_(layer, 0.01).weight).item() == pytest.approx(0.01 * 4, rel=1e-12)


def test_clipping_keeps_small_weights_storage_type_and_gradients():
    layer = nn.Linear(3, 3).to(torch.bfloat16)
    layer(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
    pointer, weight, gradient = layer.weight.data_ptr(), layer.weight.detach().clone(), layer.weight.grad.clone()
    clip_weights_(layer, 10.0)
    assert layer.weight.data_ptr() == pointer and torch.equal(layer.weight, weight) and torch.equal(layer.weight.grad, gradient)
    assert layer.weight.requires_grad


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_clipping_refuses_a_limit_that_is_not_positive(limit):
    with pytest.raises(ValueError, match=r"limit must be positive, got"):
        clip_weights_(nn.Linear(2, 2), limit)
