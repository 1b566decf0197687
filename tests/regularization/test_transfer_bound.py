"""Tests of kexue.regularization.transfer_bound: both sides by plain autograd, closed forms, laws, refusals."""

import itertools
import math

import kexue.regularization.transfer_bound as room
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.regularization.transfer_bound import TransferBound, layer_jacobians, transfer_bound
from torch import nn

NORMS = ("joint", "spectral", "frobenius")
ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.GELU, nn.Identity, lambda: nn.Softmax(1), "layer norm")


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def total(y):
    return (y * y.sin()).sum(1)


def mlp(widths, activation=nn.Tanh, *, bias=True, seed=0):
    torch.manual_seed(seed)
    layers = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out, bias=bias), nn.LayerNorm(fan_out) if activation == "layer norm" else activation()]
    return nn.Sequential(*layers).double()


def plain(model, f, x, norm):
    """Both sides for one example, written again: gradients by autograd, every Jacobian by its definition."""
    point = x.clone().requires_grad_()
    linears = [i for i, m in enumerate(model) if isinstance(m, nn.Linear)]
    parameters = [list(model[i].parameters()) for i in linears]
    flat = [p for group in parameters for p in group]
    gradient, *gradients = torch.autograd.grad(f(model(point[None])).sum(), [point, *flat])
    by_parameter = dict(zip(map(id, flat), gradients, strict=True))
    squares, coefficients = [], []
    for i, group in zip(linears, parameters, strict=True):
        before = model[:i]
        h = before(x[None])[0]
        j = torch.autograd.functional.jacobian(lambda v, before=before: before(v[None])[0] if len(before) else 1 * v, x)
        w = model[i].weight
        size = {
            "joint": torch.linalg.matrix_norm(w @ j, 2),
            "spectral": torch.linalg.matrix_norm(w, 2) * torch.linalg.matrix_norm(j, 2),
            "frobenius": w.norm() * j.norm(),
        }[norm]
        coefficients.append((len(group) - 1 + h.square().sum()) / size**2)
        squares.append(sum(by_parameter[id(p)].square().sum() for p in group))
    return gradient.square().sum(), torch.stack(squares), torch.stack(coefficients).detach()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_transfer_bound_oracle_is_plain_autograd(norm, activation, bias):
    model, x = mlp([5, 7, 4, 6], activation, bias=bias), normal(3, 5, seed=1)
    bound = transfer_bound(model, total, x, norm=norm)
    for i in range(3):
        lhs, squares, coefficients = plain(model, total, x[i], norm)
        assert torch.allclose(bound.input_sq[i], lhs, rtol=1e-10)
        assert torch.allclose(bound.parameter_sq[i], squares, rtol=1e-10)
        assert torch.allclose(bound.coefficients[i], coefficients, rtol=1e-10)
    assert torch.allclose(bound.rhs, bound.parameter_sq.sum(1)) and torch.allclose(bound.lhs, bound.input_sq * bound.coefficients.sum(1))
    assert torch.allclose(bound.ratio, bound.lhs / bound.rhs)
    assert torch.allclose(bound.layers, bound.input_sq[:, None] * bound.coefficients / bound.parameter_sq)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=2, max_size=5), st.integers(0, len(ACTIVATIONS) - 1), st.booleans(), st.integers(0, 10_000))
def test_transfer_bound_law_holds_and_constants_are_ordered(widths, which, bias, seed):
    model, x = mlp(widths, ACTIVATIONS[which], bias=bias, seed=seed), 2 * normal(4, widths[0], seed=seed)
    joint, spectral, frobenius = (transfer_bound(model, total, x, norm=norm) for norm in NORMS)
    # LayerNorm and softmax of one unit have zero Jacobians; rounding of a zero gradient must not count
    assert (joint.lhs <= joint.rhs * (1 + 1e-12) + 1e-20).all()
    assert (joint.input_sq[:, None] * joint.coefficients <= joint.parameter_sq * (1 + 1e-12) + 1e-20).all()
    real = joint.coefficients.isfinite() & (joint.coefficients < 1e15) & (joint.coefficients > 0)
    assert (spectral.coefficients <= joint.coefficients * (1 + 1e-12))[real].all()
    assert (frobenius.coefficients <= spectral.coefficients * (1 + 1e-12))[real].all()


def test_transfer_bound_closed_form_scalar_net():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 1), nn.Tanh()).double(), normal(4, 5)
    read = lambda y: y[:, 0] ** 2  # noqa: E731
    assert torch.allclose(transfer_bound(model, read, x).ratio, torch.ones(4).double(), rtol=1e-13)
    assert torch.allclose(transfer_bound(model, read, x, norm="frobenius").ratio, torch.full((4,), 0.2).double(), rtol=1e-13)


def test_transfer_bound_closed_form_aligned_linear_net_is_tight_in_every_layer():
    widths, scales = [4, 6, 3, 5], [0.7, 1.9, 0.4]
    directions = [normal(d, seed=i) / normal(d, seed=i).norm() for i, d in enumerate(widths)]
    model = mlp(widths, nn.Identity, bias=False)
    for t, scale in enumerate(scales):
        model[2 * t].weight.data = scale * torch.outer(directions[t + 1], directions[t])
    bound = transfer_bound(model, lambda y: torch.sin(y @ directions[-1]), normal(3, 4, seed=9), norm="spectral")
    assert torch.allclose(bound.layers, torch.ones(3, 3).double(), rtol=1e-12)


def test_transfer_bound_joint_is_tight_in_a_last_layer_of_one_unit():
    bound = transfer_bound(mlp([5, 8, 6, 1]), lambda y: y[:, 0], normal(6, 5))
    assert torch.allclose(bound.layers[:, -1], torch.ones(6).double(), rtol=1e-12)
    assert (bound.layers[:, 0] < 0.99).all()


def test_transfer_bound_extremes():
    model, x = mlp([3, 4, 2], nn.ReLU), normal(2, 3)
    model[0].bias.data.fill_(-100.0)  # every unit is dead: M_2 = 0
    bound = transfer_bound(model, lambda y: y.sum(1), x)
    assert bound.coefficients[:, 1].tolist() == [0.0, 0.0] and bound.lhs.tolist() == [0.0, 0.0]
    assert bound.layers.isfinite().all() and bound.ratio.tolist() == [0.0, 0.0]
    flat = transfer_bound(model, lambda y: 0 * y.sum(1), x)  # 0 / 0
    assert flat.ratio.tolist() == [0.0, 0.0] and flat.layers.tolist() == [[0.0, 0.0]] * 2
    single = transfer_bound(mlp([3, 4, 2]).float(), total, normal(1, 3, dtype=torch.float32))
    assert single.ratio.shape == (1,) and single.ratio.dtype == torch.float32
    impossible = TransferBound(torch.ones(1), torch.zeros(1, 1), torch.ones(1, 1))
    assert impossible.ratio.item() == math.inf  # a violation is never hidden


def test_transfer_bound_nested_sequential_leading_and_trailing_modules():
    model = mlp([4, 5, 3])
    nested = nn.Sequential(nn.Tanh(), nn.Sequential(model[0], nn.Sequential(model[1]), model[2]), nn.Softmax(1))
    flat = nn.Sequential(model[0], model[1], model[2], nn.Softmax(1))
    x = normal(3, 4)
    inner, outer = transfer_bound(flat, total, torch.tanh(x)), transfer_bound(nested, total, x)
    assert torch.allclose(inner.parameter_sq, outer.parameter_sq)
    slope = 1 - torch.tanh(x) ** 2
    jacobians = torch.stack([model[0].weight @ torch.diag(s) for s in slope])
    assert torch.allclose(outer.coefficients[:, 0], (1 + torch.tanh(x).square().sum(1)) / torch.linalg.matrix_norm(jacobians, 2) ** 2)


@pytest.mark.parametrize("norm", ["joint", "spectral"])
def test_transfer_bound_power_iteration_agrees_with_the_formed_jacobian(norm, monkeypatch):
    model, x = mlp([6, 9, 7, 3]), normal(4, 6)
    formed = transfer_bound(model, total, x, norm=norm)
    monkeypatch.setattr(room, "EXACT_WIDTH", 1)
    iterated = transfer_bound(model, total, x, norm=norm)
    assert torch.allclose(iterated.coefficients, formed.coefficients, rtol=1e-5)
    assert (iterated.coefficients >= formed.coefficients * (1 - 1e-12)).all()
    assert torch.equal(transfer_bound(model, total, x, norm="frobenius").coefficients, _frobenius(model, x))


def _frobenius(model, x):
    layers = zip(layer_jacobians(model, x), (m for m in model if isinstance(m, nn.Linear)), strict=True)
    sizes = [((1 + at.h.square().sum(1)) / (linear.weight.norm() * at.jacobian.flatten(1).norm(dim=1)) ** 2) for at, linear in layers]
    return torch.stack(sizes, 1).detach()


def test_layer_jacobians_oracle_is_the_definition():
    model, x = mlp([5, 7, 4, 6], "layer norm"), normal(3, 5)
    found = list(layer_jacobians(model, x))
    assert [at.product.shape for at in found] == [(3, 7, 5), (3, 4, 5), (3, 6, 5)]
    for t, at in enumerate(found):
        for i in range(3):
            before, through = model[: 2 * t], model[: 2 * t + 1]
            assert torch.allclose(at.h[i], before(x[i : i + 1])[0])
            assert torch.allclose(at.product[i], torch.autograd.functional.jacobian(lambda v, g=through: g(v[None])[0], x[i]), atol=1e-13)
            if t:
                assert torch.allclose(
                    at.jacobian[i], torch.autograd.functional.jacobian(lambda v, g=before: g(v[None])[0], x[i]), atol=1e-13
                )
            else:
                assert torch.equal(at.jacobian[i], torch.eye(5).double())


def test_transfer_bound_law_gradient_identity_at_every_layer():
    model, x = mlp([5, 7, 4, 6]), normal(3, 5)
    point = x.clone().requires_grad_()
    zs, h = [], point
    for module in model:
        h = module(h)
        if isinstance(module, nn.Linear):
            zs.append(h)
    gradient, *deltas = torch.autograd.grad(total(h).sum(), [point, *zs])
    for at, delta in zip(layer_jacobians(model, x), deltas, strict=True):
        assert torch.allclose((at.product.mT @ delta[..., None])[..., 0], gradient, atol=1e-13)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return x + self.linear(x)


SHARED = nn.Linear(4, 4)
REFUSED = {
    "chain without branches, got Residual": Residual(),
    "Residual may branch": nn.Sequential(nn.Linear(4, 4), Residual()),
    "MultiheadAttention may branch": nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 1)),
    "LSTM may branch": nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4)),
    "Conv1d uses its weights at several positions": nn.Sequential(nn.Linear(4, 4), nn.Conv1d(1, 1, 1)),
    "same Linear parameters twice": nn.Sequential(SHARED, nn.Tanh(), SHARED),
    "at least one Linear": nn.Sequential(nn.Tanh()),
    "Dropout in training mode": nn.Sequential(nn.Linear(4, 4), nn.Dropout()),
    "BatchNorm1d in training mode": nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)),
    r"shape \(3, 2, 2\) shares its weights": nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Linear(2, 4)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_transfer_bound_refuses_what_the_theorem_does_not_cover(message):
    with pytest.raises(NotImplementedError, match=message):
        transfer_bound(REFUSED[message], lambda y: y.flatten(1).sum(1), torch.ones(3, 4))


def test_transfer_bound_refusals():
    model, x = mlp([4, 5, 3]), normal(3, 4)
    with pytest.raises(NotImplementedError, match=r"shape \(3, 2, 4\) shares its weights"):
        transfer_bound(model, lambda y: y.sum((1, 2)), normal(3, 2, 4))
    with pytest.raises(ValueError, match=r"one number per example, shape \(3,\), got shape \(3, 3\)"):
        transfer_bound(model, lambda y: y, x)
    with pytest.raises(NotImplementedError, match="Residual"):
        list(layer_jacobians(nn.Sequential(Residual()).double(), x))
    evaluated = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()).eval()
    assert (transfer_bound(evaluated, lambda y: y.sum(1), torch.ones(3, 4)).ratio <= 1 + 1e-5).all()


def test_transfer_bound_refuses_an_unknown_norm(monkeypatch):
    plain_bound = getattr(transfer_bound, "__wrapped__", transfer_bound)  # beartype would speak first
    with pytest.raises(ValueError, match="norm must be 'joint', 'spectral' or 'frobenius', got 'nuclear'"):
        plain_bound(mlp([4, 5, 3]), total, normal(3, 4), norm="nuclear")
