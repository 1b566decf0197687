"""Tests of kexue.regularization.embedding_attack: shifted embeddings of tables, batches and examples."""

import inspect
import math

import pytest
import torch
from kexue.regularization.embedding_attack import embedding_attack, perturbed
from torch import nn
from torch.nn.functional import cross_entropy


class Reader(nn.Module):
    """Mean of nonlinear functions of embeddings, then two classes."""

    def __init__(self, padding_idx=None, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(9, 5, padding_idx=padding_idx).double()
        self.inner, self.outer = nn.Linear(5, 6).double(), nn.Linear(6, 3).double()

    def forward(self, tokens):
        return self.read(self.embedding(tokens))

    def read(self, vectors):
        return self.outer(torch.tanh(self.inner(vectors)).mean(1))


TOKENS = torch.tensor([[1, 2, 2, 3], [4, 1, 1, 1], [5, 6, 7, 0]])
LABELS = torch.tensor([0, 1, 2])


def losses(model, tokens=TOKENS, labels=LABELS):
    return lambda: cross_entropy(model(tokens), labels, reduction="none")


def slices(model, tokens=TOKENS, labels=LABELS):
    """Gradient of the mean loss with respect to the looked-up vectors, without a hook."""
    vectors = model.embedding.weight.detach()[tokens].requires_grad_()
    return torch.autograd.grad(cross_entropy(model.read(vectors), labels), vectors)[0]


# --- embedding_attack


def test_example_scope_oracle():
    model = Reader()
    g = slices(model)
    with embedding_attack(model.embedding, losses(model), 0.3) as delta:
        shifted = losses(model)()
    expected = 0.3 * g / g.flatten(1).norm(dim=1)[:, None, None]
    assert torch.allclose(delta, expected, rtol=1e-12)
    direct = cross_entropy(model.read(model.embedding.weight[TOKENS] + expected), LABELS, reduction="none")
    assert torch.allclose(shifted, direct, rtol=1e-13)
    assert (shifted > losses(model)()).all()


def test_batch_scope_oracle():
    model = Reader()
    g = slices(model)
    with embedding_attack(model.embedding, losses(model), 0.3, scope="batch") as delta:
        shifted = losses(model)()
    assert torch.allclose(delta, 0.3 * g / g.norm(), rtol=1e-12)
    direct = cross_entropy(model.read(model.embedding.weight[TOKENS] + 0.3 * g / g.norm()), LABELS, reduction="none")
    assert torch.allclose(shifted, direct, rtol=1e-13)


def test_table_scope_oracle():
    model = Reader()
    (G,) = torch.autograd.grad(losses(model)().mean(), model.embedding.weight)
    with embedding_attack(model.embedding, losses(model), 0.3, scope="table") as delta:
        shifted = losses(model)()
        assert torch.equal(delta[8], torch.zeros(5, dtype=torch.float64))  # a token that does not occur
    assert torch.allclose(delta, 0.3 * G / G.norm(), rtol=1e-12)
    direct = cross_entropy(model.read((model.embedding.weight + delta)[TOKENS]), LABELS, reduction="none")
    assert torch.allclose(shifted, direct, rtol=1e-13)


@pytest.mark.parametrize("scope", ["batch", "table"])
def test_joint_length_law(scope):
    model = Reader()
    with embedding_attack(model.embedding, losses(model), 0.7, scope=scope) as delta:
        assert math.isclose(delta.norm().item(), 0.7, rel_tol=1e-12)


def test_example_scope_does_not_depend_on_the_batch_law():
    model = Reader()
    with embedding_attack(model.embedding, losses(model), 0.3) as whole:
        pass
    with embedding_attack(model.embedding, losses(model, TOKENS[1:2], LABELS[1:2]), 0.3) as alone:
        pass
    assert torch.allclose(whole[1:2], alone, rtol=1e-12)


def test_tables_and_batches_agree_where_no_token_repeats_law():
    model, tokens = Reader(), torch.tensor([[0, 1, 2], [3, 4, 5]])
    f = losses(model, tokens, LABELS[:2])
    with embedding_attack(model.embedding, f, 0.4, scope="batch"):
        by_batch = f()
    with embedding_attack(model.embedding, f, 0.4, scope="table"):
        by_table = f()
    assert torch.allclose(by_batch, by_table, rtol=1e-13)


@pytest.mark.parametrize("scope", ["example", "batch", "table"])
def test_padding_is_not_shifted(scope):
    model, tokens = Reader(padding_idx=0), torch.tensor([[1, 2, 0], [3, 0, 0]])
    with embedding_attack(model.embedding, losses(model, tokens, LABELS[:2]), 0.4, scope=scope) as delta:
        rows = delta[0] if scope == "table" else delta[tokens == 0]
        assert torch.equal(rows, torch.zeros_like(rows))
        assert delta.norm() > 0.3


@pytest.mark.parametrize("scope", ["example", "batch", "table"])
def test_training_gradient_and_restoration(scope):
    model = Reader()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad(), embedding_attack(model.embedding, losses(model), 0.3, scope=scope) as delta:
        assert all(p.grad is None for p in model.parameters())
        shift = delta[TOKENS] if scope == "table" else delta
        with torch.enable_grad():
            losses(model)().mean().backward()
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert not model.embedding._forward_hooks
    loss = cross_entropy(model.read(model.embedding.weight[TOKENS] + shift), LABELS)
    expected = torch.autograd.grad(loss, list(model.parameters()))
    assert all(torch.allclose(p.grad, g, rtol=1e-10) for p, g in zip(model.parameters(), expected, strict=True))


@pytest.mark.parametrize("scope", ["example", "batch", "table"])
def test_restoration_after_an_error(scope):
    model = Reader()
    before, clean = model.embedding.weight.detach().clone(), losses(model)()
    with pytest.raises(RuntimeError, match="stop"), embedding_attack(model.embedding, losses(model), 0.3, scope=scope):
        raise RuntimeError("stop")
    assert torch.equal(model.embedding.weight, before)
    assert torch.equal(losses(model)(), clean)


def test_hook_is_removed_when_the_loss_fails():
    model = Reader()

    def failing():
        model(TOKENS)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), embedding_attack(model.embedding, failing, 0.3):
        pass
    assert not model.embedding._forward_hooks


def test_zero_radius_and_zero_gradient_extremes():
    model = Reader()
    clean = losses(model)()
    for scope in ("example", "batch", "table"):
        with embedding_attack(model.embedding, losses(model), 0.0, scope=scope):
            assert torch.equal(losses(model)(), clean)
        with embedding_attack(model.embedding, lambda: 0 * losses(model)(), 1.0, scope=scope) as delta:
            assert torch.equal(delta, torch.zeros_like(delta))
        with embedding_attack(model.embedding, lambda: (model(TOKENS), torch.ones(3, requires_grad=True))[1], 1.0, scope=scope) as delta:
            assert torch.equal(delta, torch.zeros_like(delta))


def test_refusals():
    model = Reader()
    with (
        pytest.raises(ValueError, match="eps must be finite and at least 0, got -1"),
        embedding_attack(model.embedding, losses(model), -1.0),
    ):
        pass
    with pytest.raises(ValueError, match="exactly once, it did so 0 times"), embedding_attack(nn.Embedding(2, 2), losses(model), 1.0):
        pass
    twice = lambda: losses(model)() + losses(model)()  # noqa: E731
    with pytest.raises(ValueError, match="exactly once, it did so 2 times"), embedding_attack(model.embedding, twice, 1.0):
        pass
    with (
        pytest.raises(ValueError, match=r"one number per example, shape \(3,\), got shape \(\)"),
        embedding_attack(model.embedding, lambda: losses(model)().mean(), 1.0),
    ):
        pass


def test_scope_refusal():
    model = Reader()
    function = inspect.unwrap(embedding_attack)  # without run-time type checks, which would refuse first
    with pytest.raises(ValueError, match="scope must be 'example', 'batch' or 'table', got 'token'"):
        next(function(model.embedding, losses(model), 1.0, scope="token"))


# --- perturbed


def test_perturbed_restores_bitwise_law():
    w = nn.Parameter(torch.randn(1000, generator=torch.Generator().manual_seed(0)))
    delta = torch.randn(1000, generator=torch.Generator().manual_seed(1)) * 100
    before = w.detach().clone()
    assert not torch.equal((before + delta) - delta, before)  # what adding and subtracting would leave
    with perturbed(w, delta):
        assert torch.equal(w, before + delta)
    assert torch.equal(w, before)
    with pytest.raises(KeyError), perturbed(w, delta):
        raise KeyError
    assert torch.equal(w, before)


def test_perturbed_refuses_a_late_backward():
    """A graph that needs the changed weight must not be used after it has changed back."""
    w = nn.Parameter(torch.tensor([2.0]))
    with perturbed(w, torch.tensor([1.0])):
        late = (w * w).sum()
        (in_time,) = torch.autograd.grad((w * w).sum(), w)
    assert in_time.item() == 6
    with pytest.raises(RuntimeError, match="inplace operation"):
        late.backward()


def test_perturbed_refusal():
    with pytest.raises(ValueError, match=r"delta must have the shape \(3, 2\) of the parameter, got \(2,\)"):
        next(inspect.unwrap(perturbed)(torch.zeros(3, 2), torch.zeros(2)))
