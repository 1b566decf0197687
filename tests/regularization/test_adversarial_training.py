"""Tests of kexue.regularization.adversarial_training: margins, the accuracy that survives attacks, and steps that train on them."""

import math
from functools import partial

import pytest
import torch
from kexue.regularization.adversarial import dual_norm, fast_gradient, pgd
from kexue.regularization.adversarial_training import adversarial_step, margin_loss, robust_accuracy
from kexue.regularization.embedding_attack import embedding_attack
from kexue.regularization.training import fit
from torch import nn
from torch.nn.functional import cross_entropy


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def images(count=6, seed=0):
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def net(seed=0, inputs=16):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 12), nn.Softplus(), nn.Linear(12, 4)).double()


def gradient(model, value):
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()))])


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.ModuleDict({"table": nn.Embedding(9, 5)}).double()
        self.head = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()

    def forward(self, tokens):
        return self.head(self.words["table"](tokens).mean(1))


TOKENS, LABELS = torch.tensor([[1, 2, 2, 3], [4, 1, 1, 1], [5, 6, 7, 0]]), torch.tensor([0, 1, 2])


# --- adversarial_step


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_step_of_a_linear_model_is_the_closed_form_oracle(p):
    """Two classes: the worst loss, and its gradient by the weights, which knows nothing of a constant step."""
    w, x, y = nn.Linear(5, 2, bias=False).double(), normal(40, 5), torch.arange(40) % 2
    difference = w.weight[1] - w.weight[0]
    q = {1: math.inf, 2: 2, math.inf: 1}[p]
    exact = nn.functional.softplus(0.3 * torch.linalg.vector_norm(difference, q) - (2 * y - 1) * (x @ difference)).mean()
    value = adversarial_step(w, x, y, 0.3, p=p)
    assert torch.allclose(value, exact, rtol=1e-12)
    assert torch.allclose(gradient(w, value), gradient(w, exact), rtol=1e-10)


def test_step_matches_a_loop_over_examples_oracle():
    model, x, y = net(), images(), torch.arange(6) % 4
    value = 0.0
    for row, label in zip(x, y, strict=True):
        v = row[None].clone().requires_grad_()
        (g,) = torch.autograd.grad(cross_entropy(model(v), label[None]), v)
        value = value + cross_entropy(model(row[None] + 0.7 * g / g.norm()), label[None]) / 6
    assert torch.allclose(adversarial_step(model, x, y, 0.7), value, rtol=1e-12)
    assert torch.allclose(gradient(model, adversarial_step(model, x, y, 0.7)), gradient(model, value), rtol=1e-10)


@pytest.mark.parametrize("clean", [0, 0.25, 0.5, 1])
def test_clean_share_law(clean):
    model, x, y = net(), images(), torch.arange(6) % 4
    worst, plain = adversarial_step(model, x, y, 0.7), cross_entropy(model(x), y)
    assert torch.allclose(adversarial_step(model, x, y, 0.7, clean=clean), (1 - clean) * worst + clean * plain, rtol=1e-12)


def test_attack_argument_law():
    model, x, y = net(), images(), torch.arange(6) % 4
    attack = partial(pgd, steps=7, random_start=False, clip=(0, 1))
    moved = attack(lambda v: cross_entropy(model(v), y, reduction="none"), x, 0.2, p=math.inf)
    assert torch.equal(
        adversarial_step(model, x, y, 0.2, p=math.inf, attack=attack), cross_entropy(model(moved), y, reduction="none").mean()
    )
    assert adversarial_step(model, x, y, 0.2, p=math.inf, attack=attack) > adversarial_step(model, x, y, 0)


@pytest.mark.parametrize("scope", ["example", "batch", "table"])
def test_embedding_law(scope):
    model = Reader()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    value = adversarial_step(model, TOKENS, LABELS, 0.4, embedding="words.table", scope=scope)
    value.backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    table, losses = model.words["table"], lambda: cross_entropy(model(TOKENS), LABELS, reduction="none")
    with embedding_attack(table, losses, 0.4, scope=scope) as delta:
        shift = delta[TOKENS] if scope == "table" else delta
    expected = cross_entropy(model.head((table.weight[TOKENS] + shift).mean(1)), LABELS)
    assert torch.allclose(value, expected, rtol=1e-12)
    assert torch.allclose(found, gradient(model, expected), rtol=1e-9)
    half = adversarial_step(model, TOKENS, LABELS, 0.4, embedding="words.table", scope=scope, clean=0.5)
    assert torch.allclose(half, (expected + cross_entropy(model(TOKENS), LABELS)) / 2, rtol=1e-12)


def test_zero_radius_is_plain_training_extreme():
    x, y = images(40), torch.arange(40) % 4
    plain, attacked = (
        fit(net(), x, y, epochs=3, step=step, batch=7, generator=torch.Generator().manual_seed(1))
        for step in (None, partial(adversarial_step, eps=0))
    )
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), attacked.parameters(), strict=True))


def test_fit_with_the_step_widens_the_margin():
    """Separable data: the trained linear model must give up the feature that is predictive and tiny."""
    y = torch.arange(200) % 2
    x = torch.stack([0.05 * (2.0 * y - 1), 2.0 * y - 1 + 0.8 * normal(200, dtype=torch.float32)], 1)

    def trained(step):
        torch.manual_seed(0)
        model = fit(nn.Linear(2, 2), x, y, epochs=60, step=step, lr=0.05, generator=torch.Generator().manual_seed(0))
        return (model.weight[1] - model.weight[0]).detach()

    plain, robust = trained(None), trained(partial(adversarial_step, eps=0.3, p=math.inf))
    assert plain[0] > 1  # worth having: no example is on the wrong side
    assert abs(robust[0]) < 0.05  # an attack of 0.3 turns it around
    assert robust[1] > 1


def test_step_leaves_mode_and_gradients():
    model, x, y = net(), images(), torch.arange(6) % 4
    model.train()
    adversarial_step(model, x, y, 0.1)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_step_refusals():
    model, x, y = net(), images(), torch.arange(6) % 4
    for clean in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"clean must lie in \[0, 1\], where it is a share, got"):
            adversarial_step(model, x, y, 0.1, clean=clean)
    with pytest.raises(ValueError, match=r"eps must be finite and at least 0, got -0\.1"):
        adversarial_step(model, x, y, -0.1)
    with pytest.raises(ValueError, match="scope is that of an embedding, got 'batch' without the name of one"):
        adversarial_step(model, x, y, 0.1, scope="batch")
    with pytest.raises(AttributeError, match="nothing"):
        adversarial_step(Reader(), TOKENS, LABELS, 0.1, embedding="nothing")
    for options in ({"p": math.inf}, {"attack": pgd}):
        with pytest.raises(ValueError, match="one steepest step in the norm 2"):
            adversarial_step(Reader(), TOKENS, LABELS, 0.1, embedding="words.table", **options)


# --- margin_loss and robust_accuracy


def test_margin_loss_oracle():
    z, y = normal(200, 5), torch.arange(200) % 5
    expected = [max(row[k] for k in range(5) if k != c) - row[c] for row, c in zip(z.tolist(), y.tolist(), strict=True)]
    assert torch.allclose(margin_loss(z, y), torch.tensor(expected, dtype=z.dtype))
    assert torch.equal(margin_loss(z, y) > 0, z.argmax(1) != y)
    assert torch.allclose(margin_loss(7 * z + 3, y), 7 * margin_loss(z, y))


def test_robust_accuracy_of_a_linear_model_oracle():
    """Two classes and a linear model: the margin and the dual norm of the weights decide."""
    w, x = normal(2, 5), normal(400, 5, seed=1)
    y = (torch.arange(400) % 3 == 0).long()
    margin = -margin_loss(x @ w.mT, y)
    for p in (1, 2, math.inf):
        exact = (margin > 0.2 * dual_norm((w[1] - w[0])[None], p)).double().mean().item()
        for attack in (partial(fast_gradient, eps=0.2, p=p), partial(pgd, eps=0.2, p=p, steps=30, random_start=False)):
            assert robust_accuracy(lambda v: v @ w.mT, x, y, [attack]) == exact
    assert robust_accuracy(lambda v: v @ w.mT, x, y, []) == (margin > 0).double().mean().item()


def test_robust_accuracy_takes_the_worst_attack_of_each_example_law():
    model, x, y = net(2), images(60), torch.arange(60) % 4
    with torch.no_grad():
        y = torch.where(torch.arange(60) % 5 == 0, y, model(x).argmax(1))
    attacks = [partial(fast_gradient, eps=2.0, p=2), partial(fast_gradient, eps=0.4, p=math.inf)]
    right = model(x).argmax(1) == y
    for attack in attacks:
        right &= model(attack(lambda v: margin_loss(model(v), y), x)).argmax(1) == y
    met = []
    counting = [lambda f, v, a=a: met.append(len(v)) or a(f, v) for a in attacks]
    assert robust_accuracy(model, x, y, counting) == right.double().mean().item()
    assert 60 > met[0] > met[1] > 0
    assert min(robust_accuracy(model, x, y, [a]) for a in attacks) >= right.double().mean().item()


def test_robust_accuracy_loss_and_extremes():
    model, x, y = net(2), images(20), torch.arange(20) % 4
    with torch.no_grad():
        y = model(x).argmax(1)
    seen = []

    def loss(logits, labels):
        seen.append(len(labels))
        return cross_entropy(logits, labels, reduction="none")

    assert robust_accuracy(model, x, y, [partial(fast_gradient, eps=0.0)], loss=loss) == 1.0
    assert seen == [20]
    wrong = (y + 1) % 4
    assert robust_accuracy(model, x, wrong, [lambda f, v: pytest.fail("no example is left to attack")]) == 0.0
    with pytest.raises(ValueError, match="at least one example"):
        robust_accuracy(model, x[:0], y[:0], [])
