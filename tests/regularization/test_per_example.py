"""Tests of kexue.regularization.per_example against loops, torch.func, opacus and BackPACK."""

import copy

import backpack
import kexue.regularization.per_example as room
import pytest
import torch
from backpack.extensions import BatchL2Grad
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.regularization.per_example import input_gradient_sq, parameter_gradient_sq, unshared_gradient_sq
from opacus import GradSampleModule
from torch import nn
from torch.nn.functional import cross_entropy


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def total(y):
    """A scalar per example that is not linear in the output."""
    return (y * y.sin()).flatten(1).sum(1)


def loop(model, f, x):
    """The plain form: one backward pass per example."""
    norms = []
    for i in range(len(x)):
        parameters = [p for p in model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(f(model(x[i : i + 1])).sum(), parameters, allow_unused=True)
        norms.append(sum((g.double().square().sum() for g in gradients if g is not None), start=torch.zeros((), dtype=torch.float64)))
    return torch.stack(norms)


def net(*layers, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(*[make() for make in layers]).double()


class Tied(nn.Module):
    """Embedding whose weight is also the read-out, with a layer norm, and a Linear that is called twice."""

    def __init__(self, tie=True):
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.twice = nn.Linear(5, 5)
        self.norm = nn.LayerNorm(5)
        self.out = nn.Linear(5, 7, bias=False)
        if tie:
            self.out.weight = self.embedding.weight

    def forward(self, tokens):
        h = self.embedding(tokens)
        return self.out(self.norm(h + self.twice(torch.tanh(self.twice(h)))))


class Doubled(nn.Linear):
    def forward(self, x):
        return super().forward(2 * x)


MODELS = {
    "mlp": (lambda: net(lambda: nn.Linear(5, 7), nn.Tanh, lambda: nn.Linear(7, 3)), (6, 5)),
    "no bias": (lambda: net(lambda: nn.Linear(5, 7, bias=False), nn.GELU, lambda: nn.Linear(7, 3)), (6, 5)),
    "in-place relu": (lambda: net(lambda: nn.Linear(5, 7), lambda: nn.ReLU(inplace=True), lambda: nn.Linear(7, 3)), (6, 5)),
    "tokens, outer products": (lambda: net(lambda: nn.Linear(3, 4), nn.Tanh, lambda: nn.Linear(4, 2)), (6, 9, 3)),
    "tokens, Gram": (lambda: net(lambda: nn.Linear(30, 40), nn.Tanh, lambda: nn.Linear(40, 20)), (6, 4, 30)),
    "two token axes": (lambda: net(lambda: nn.Linear(30, 40), nn.Tanh, lambda: nn.Linear(40, 20)), (3, 2, 2, 30)),
    "conv": (
        lambda: net(
            lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1, dilation=2),
            nn.Tanh,
            lambda: nn.Conv2d(3, 2, (1, 2)),
            nn.Flatten,
            lambda: nn.Linear(32, 2),
        ),
        (4, 2, 9, 11),
    ),
    "grouped conv": (lambda: net(lambda: nn.Conv2d(2, 4, 3, groups=2), nn.Tanh, nn.Flatten, lambda: nn.Linear(36, 2)), (4, 2, 5, 5)),
    "reflecting conv": (lambda: net(lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), nn.Tanh), (4, 2, 5, 5)),
    "same conv": (lambda: net(lambda: nn.Conv2d(2, 3, 3, padding="same"), nn.Tanh), (4, 2, 5, 5)),
    "layer norm": (lambda: net(lambda: nn.Linear(5, 7), lambda: nn.LayerNorm(7), nn.GELU, lambda: nn.Linear(7, 3)), (6, 5)),
    "spectral parametrization": (
        lambda: net(lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(5, 7)), nn.Tanh, lambda: nn.Linear(7, 3)).eval(),
        (6, 5),
    ),
    "subclass": (lambda: net(lambda: Doubled(5, 7), nn.Tanh, lambda: nn.Linear(7, 3)), (6, 5)),
}


@pytest.mark.parametrize("name", MODELS)
def test_parameter_gradient_oracle_is_a_loop(name):
    make, shape = MODELS[name]
    model, x = make(), normal(*shape, seed=1)
    assert torch.allclose(parameter_gradient_sq(model, total, x), loop(model, total, x), rtol=1e-11, atol=0)


@pytest.mark.parametrize("tie", [True, False])
def test_parameter_gradient_oracle_with_tied_weights_and_repeated_calls(tie):
    torch.manual_seed(0)
    model, tokens = Tied(tie).double(), torch.randint(0, 7, (4, 6))
    tokens[0, 1] = tokens[0, 0]
    assert torch.allclose(parameter_gradient_sq(model, total, tokens), loop(model, total, tokens), rtol=1e-11, atol=0)


@pytest.mark.parametrize("frozen", ["0.weight", "0.bias", "2.weight", "2.bias"])
@pytest.mark.parametrize("shape", [(6, 30), (6, 3, 30), (6, 40, 30)])
def test_parameter_gradient_counts_trainable_parameters_only(frozen, shape):
    model = net(lambda: nn.Linear(30, 20), nn.Tanh, lambda: nn.Linear(20, 25))
    model.get_parameter(frozen).requires_grad_(False)
    x = normal(*shape)
    expected = loop(model, total, x)
    assert torch.allclose(parameter_gradient_sq(model, total, x), expected, rtol=1e-11)
    if len(shape) == 2:
        assert torch.allclose(unshared_gradient_sq(model, total, x), expected, rtol=1e-11)


def test_parameter_gradient_extremes():
    frozen = net(lambda: nn.Linear(3, 2)).requires_grad_(False)
    assert torch.equal(parameter_gradient_sq(frozen, total, normal(4, 3)), torch.zeros(4, dtype=torch.float64))
    assert parameter_gradient_sq(frozen, total, normal(4, 3), per_example=False) == 0
    one = net(lambda: nn.Linear(1, 1))
    assert torch.allclose(
        parameter_gradient_sq(one, lambda y: 3 * y[:, 0], torch.full((1, 1), 2.0).double()), torch.tensor([45.0]).double()
    )
    empty = parameter_gradient_sq(one, lambda y: y[:, 0], torch.zeros(0, 1).double())
    assert empty.shape == (0,)
    with torch.no_grad():  # the caller's mode does not matter and is kept
        assert parameter_gradient_sq(one, lambda y: y[:, 0], torch.ones(2, 1).double()).tolist() == pytest.approx([2.0, 2.0])
        assert not torch.is_grad_enabled()
    assert not parameter_gradient_sq(one, lambda y: y[:, 0], torch.ones(2, 1).double()).requires_grad
    unused = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    unused.forward = lambda x: unused["a"](x)
    assert torch.allclose(parameter_gradient_sq(unused, total, normal(3, 2).float()).double(), loop(unused, total, normal(3, 2).float()))


def test_parameter_gradient_extreme_half_precision_accumulates_in_float32():
    model = nn.Sequential(nn.Linear(4096, 1, bias=False)).bfloat16()
    squares = parameter_gradient_sq(model, lambda y: y[:, 0], torch.ones(2, 4096).bfloat16())
    assert squares.dtype == torch.float32 and torch.equal(squares, torch.full((2,), 4096.0))


def test_parameter_gradient_chunks_of_outer_products_change_nothing(monkeypatch):
    model, x = MODELS["tokens, outer products"][0](), normal(7, 9, 3)
    whole = parameter_gradient_sq(model, total, x)
    monkeypatch.setattr(room, "CHUNK_ENTRIES", 24)
    assert torch.allclose(parameter_gradient_sq(model, total, x), whole, rtol=1e-13)


def test_parameter_gradient_leaves_the_model_as_it_was():
    model, x = MODELS["mlp"][0](), normal(6, 5)
    parameter_gradient_sq(model, total, x)
    with pytest.raises(ValueError, match="one number per example"):
        parameter_gradient_sq(model, lambda y: y, x)
    assert all(not m._forward_hooks for m in model.modules()) and all(p.grad is None for p in model.parameters())


def test_parameter_gradient_of_the_mean_oracle():
    for name in ["mlp", "tokens, Gram", "layer norm"]:
        make, shape = MODELS[name]
        model, x = make(), normal(*shape)
        gradients = torch.autograd.grad(total(model(x)).mean(), list(model.parameters()))
        expected = sum(g.square().sum() for g in gradients)
        value = parameter_gradient_sq(model, total, x, per_example=False)
        assert value.shape == () and torch.allclose(value, expected, rtol=1e-12)
        assert value <= parameter_gradient_sq(model, total, x).mean()  # Jensen


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.booleans(), st.integers(0, 10_000))
def test_parameter_gradient_law_gram_equals_outer_products(batch, positions, fan_in, fan_out, bias, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(fan_in, fan_out, bias=bias)).double()
    x, weights = normal(batch, positions, fan_in, seed=seed), normal(batch, positions, fan_out, seed=seed + 1)
    squares = parameter_gradient_sq(model, lambda y: (y * weights).sum((1, 2)), x)
    explicit = torch.einsum("bpo,bpi->boi", weights, x).square().sum((1, 2)) + bias * weights.sum(1).square().sum(1)
    assert torch.allclose(squares, explicit, rtol=1e-11, atol=1e-13)
    assert (squares <= positions * unshared_gradient_sq(model, lambda y: (y * weights).sum((1, 2)), x) * (1 + 1e-12)).all()


def test_parameter_gradient_law_scaling_the_loss_scales_the_square():
    model, x = MODELS["conv"][0](), normal(4, 2, 9, 11)
    assert torch.allclose(parameter_gradient_sq(model, lambda y: -3 * total(y), x), 9 * parameter_gradient_sq(model, total, x), rtol=1e-12)


@pytest.mark.parametrize("name", ["mlp", "tokens, Gram", "tokens, outer products", "conv", "layer norm"])
def test_parameter_gradient_can_be_differentiated_again(name):
    make, shape = MODELS[name]
    model, x = make(), normal(*shape, seed=3)[:2]
    parameter_gradient_sq(model, total, x, create_graph=True).sum().backward()
    torch.manual_seed(0)
    direction = {n: normal(*p.shape, seed=i) for i, (n, p) in enumerate(model.named_parameters())}
    slope = sum((direction[n] * p.grad).sum() for n, p in model.named_parameters() if p.grad is not None)
    ends = []
    for h in (1e-5, -1e-5):
        moved = copy.deepcopy(model)
        for n, p in moved.named_parameters():
            p.data += h * direction[n]
        ends.append(float(loop(moved, total, x).sum()))
    assert float(slope) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("name", ["mlp", "no bias", "conv"])
def test_parameter_gradient_agrees_with_opacus(name):
    make, shape = MODELS[name]
    model, x = make().float(), normal(*shape, dtype=torch.float32)
    ours = parameter_gradient_sq(model, total, x)
    peer = GradSampleModule(copy.deepcopy(model), loss_reduction="sum")
    total(peer(x)).sum().backward()
    theirs = sum(p.grad_sample.flatten(1).square().sum(1) for p in peer.parameters())
    assert torch.allclose(ours, theirs, rtol=1e-5)


def test_parameter_gradient_agrees_with_backpack():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))
    x, y = normal(16, 20, dtype=torch.float32), torch.arange(16) % 10
    ours = parameter_gradient_sq(model, lambda z: cross_entropy(z, y, reduction="none"), x)
    peer, loss = backpack.extend(copy.deepcopy(model)), backpack.extend(nn.CrossEntropyLoss(reduction="sum"))
    with backpack.backpack(BatchL2Grad()):
        loss(peer(x), y).backward()
    assert torch.allclose(ours, sum(p.batch_l2 for p in peer.parameters()), rtol=1e-5)


def test_parameter_gradient_agrees_with_torch_func():
    model, x = MODELS["mlp"][0](), normal(6, 5)
    parameters = dict(model.named_parameters())
    single = torch.func.grad(lambda p, xi: total(torch.func.functional_call(model, p, (xi[None],)))[0])
    gradients = torch.func.vmap(single, in_dims=(None, 0))(parameters, x)
    expected = sum(g.flatten(1).square().sum(1) for g in gradients.values())
    assert torch.allclose(parameter_gradient_sq(model, total, x), expected, rtol=1e-12)


class Reshaping(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        return self.linear(x.reshape(-1, 3)).reshape(len(x), -1)


class Overwriting(Reshaping):
    def forward(self, x):
        h = x * 1
        y = self.linear(h)
        h += 1
        return y + h.sum(1, keepdim=True)


def test_parameter_gradient_refusals():
    model, x = MODELS["mlp"][0](), normal(6, 5)
    with pytest.raises(ValueError, match=r"one number per example, shape \(6,\), got shape \(6, 3\)"):
        parameter_gradient_sq(model, lambda y: y, x)
    with pytest.raises(ValueError, match=r"one number per example, shape \(6,\), got shape \(\)"):
        parameter_gradient_sq(model, torch.sum, x, per_example=False)
    with pytest.raises(ValueError, match="batch norm '1' is in training mode"):
        parameter_gradient_sq(net(lambda: nn.Linear(5, 4), lambda: nn.BatchNorm1d(4)), total, x)
    with pytest.raises(ValueError, match=r"'linear' must be the 4 examples, got shape \(8, 3\)"):
        parameter_gradient_sq(Reshaping().double(), total, normal(4, 6))
    with pytest.raises(ValueError, match="'linear' was changed in place"):
        parameter_gradient_sq(Overwriting().double(), total, normal(4, 3))


def test_parameter_gradient_allows_batch_norm_in_evaluation_mode():
    model = net(lambda: nn.Linear(5, 4), lambda: nn.BatchNorm1d(4), nn.Tanh).eval()
    assert torch.allclose(parameter_gradient_sq(model, total, normal(6, 5)), loop(model, total, normal(6, 5)), rtol=1e-11)


# --- unshared copies


def test_unshared_gradient_oracle_is_one_module_per_position():
    torch.manual_seed(1)
    linear, x = nn.Linear(4, 3).double(), normal(5, 6, 4)
    copies = nn.ModuleList(copy.deepcopy(linear) for _ in range(6))
    expected = torch.zeros(5, dtype=torch.float64)
    for i in range(5):
        outputs = torch.stack([copies[p](x[i : i + 1, p]) for p in range(6)], 1)
        gradients = torch.autograd.grad(total(outputs).sum(), list(copies.parameters()))
        expected[i] = sum(g.square().sum() for g in gradients)
    assert torch.allclose(unshared_gradient_sq(nn.Sequential(linear), total, x), expected, rtol=1e-12)


def test_unshared_gradient_law_equals_shared_where_nothing_is_shared():
    model, x = MODELS["mlp"][0](), normal(6, 5)
    assert torch.allclose(unshared_gradient_sq(model, total, x), parameter_gradient_sq(model, total, x), rtol=1e-14)
    whole = net(lambda: nn.Conv2d(2, 3, (4, 5)), nn.Flatten)  # one output position
    assert torch.allclose(unshared_gradient_sq(whole, total, normal(3, 2, 4, 5)), parameter_gradient_sq(whole, total, normal(3, 2, 4, 5)))


def test_unshared_gradient_survives_where_positions_cancel():
    model = net(lambda: nn.Linear(1, 1), nn.Tanh)
    x = torch.full((1, 2, 1), 0.7, dtype=torch.float64)
    difference = lambda y: y[:, 0, 0] - y[:, 1, 0]  # noqa: E731
    assert parameter_gradient_sq(model, difference, x) <= 1e-30
    slope = 1 - torch.tanh(model[0](x))[0, 0, 0] ** 2
    assert float(unshared_gradient_sq(model, difference, x)) == pytest.approx(float(2 * slope**2 * 1.49), rel=1e-12)


def test_unshared_gradient_refuses_parameters_it_cannot_unshare():
    with pytest.raises(ValueError, match=r"got also 1\.weight, 1\.bias"):
        unshared_gradient_sq(net(lambda: nn.Linear(5, 7), lambda: nn.LayerNorm(7)), total, normal(6, 5))


# --- input gradient


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 10_000))
def test_input_gradient_closed_form(batch, size, seed):
    a, x = normal(size, size, seed=seed), normal(batch, size, seed=seed + 1)
    squares = input_gradient_sq(lambda v: ((v @ a) ** 2).sum(1), x)
    assert torch.allclose(squares, (2 * x @ a @ a.mT).square().sum(1), rtol=1e-11)


def test_input_gradient_extremes_and_graph():
    x = normal(3, 2, 4)
    assert torch.equal(input_gradient_sq(lambda v: torch.ones(3).double() + 0 * v.sum((1, 2)), x), torch.zeros(3).double())
    assert not x.requires_grad
    assert torch.equal(input_gradient_sq(lambda v: v[:, 0] * 2, torch.ones(5, 1).bfloat16()), torch.full((5,), 4.0))
    one_axis = input_gradient_sq(lambda v: v**3, torch.tensor([1.0, 2.0]))
    assert torch.equal(one_axis, torch.tensor([9.0, 144.0]))
    weight = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    input_gradient_sq(lambda v: weight * v.sum((1, 2)), x, create_graph=True).sum().backward()
    assert float(weight.grad) == 2 * 3 * 8 * 3
    with pytest.raises(ValueError, match=r"shape \(3,\), got shape \(\)"):
        input_gradient_sq(lambda v: v.sum(), x)
