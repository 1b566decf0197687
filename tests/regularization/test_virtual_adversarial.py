"""Tests of kexue.regularization.virtual_adversarial: the direction that changes an answer most, and the loss it gives."""

import inspect
import math

import pytest
import torch
from kexue.regularization.virtual_adversarial import vat_loss, virtual_direction
from torch import nn
from torch.distributions import Categorical, kl_divergence


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def net(inputs=6, classes=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, classes)).double()


def divergence(model, x, r):
    return kl_divergence(Categorical(logits=model(x)), Categorical(logits=model(x + r)))


def fisher(model, x):
    """Hessian of the divergence at the step zero, by differentiating it twice: knows nothing of Jacobians and softmax."""
    zero = torch.zeros_like(x[0])
    return torch.stack(
        [torch.func.hessian(lambda r, row=row: divergence(model, row[None], r)[0])(zero).reshape(x[0].numel(), -1) for row in x]
    )


@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_direction_is_the_top_eigenvector_oracle(shape):
    model, x = net(), normal(8, *shape)
    values, vectors = torch.linalg.eigh(fisher(model, x))
    found = virtual_direction(model, x, iterations=400, generator=generator())
    assert found.shape == x.shape
    assert torch.allclose((found.flatten(1) * vectors[:, :, -1]).sum(1).abs(), torch.ones(8, dtype=x.dtype), atol=1e-8)
    assert (values[:, -1] > 1.05 * values[:, -2]).all()  # else 400 iterations would not be enough for every example


def test_one_iteration_is_one_product_oracle():
    model, x = net(), normal(5, 6)
    start = torch.randn(5, 6, generator=generator(3)).double()
    product = (fisher(model, x) @ start[..., None])[..., 0]
    found = virtual_direction(model, x, generator=generator(3))
    assert torch.allclose(found, product / product.norm(dim=1, keepdim=True), rtol=1e-10)


def test_error_shrinks_by_the_ratio_of_eigenvalues_rate():
    """The sine of the angle to the top eigenvector, iteration by iteration; three classes have two eigenvalues that are not zero."""
    model, x = net(), normal(8, 6)
    values, vectors = torch.linalg.eigh(fisher(model, x))
    sines = []
    for n in (3, 5):
        found = virtual_direction(model, x, iterations=n, generator=generator())
        sines.append((found - (found * vectors[:, :, -1]).sum(1, keepdim=True) * vectors[:, :, -1]).norm(dim=1))
        cosine = (found * vectors[:, :, -1]).sum(1).abs()
        sines[-1] = sines[-1] / cosine
    assert torch.allclose(sines[1] / sines[0], (values[:, -2] / values[:, -1]) ** 2, rtol=1e-6)


def test_direction_has_length_one_and_is_reproducible_law():
    model, x = net(), normal(20, 6)
    found = virtual_direction(model, x, generator=generator(1))
    assert torch.allclose(found.norm(dim=1), torch.ones(20, dtype=x.dtype))
    assert torch.equal(found, virtual_direction(model, x, generator=generator(1)))
    assert not torch.equal(found, virtual_direction(model, x, generator=generator(2)))


def test_examples_do_not_influence_each_other_law():
    model, x = net(), normal(4, 6)
    whole = virtual_direction(model, x, iterations=300, generator=generator())
    alone = torch.cat([virtual_direction(model, x[i : i + 1], iterations=300, generator=generator(i)) for i in range(4)])
    assert torch.allclose((whole * alone).sum(1).abs(), torch.ones(4, dtype=x.dtype), atol=1e-6)


def test_loss_is_the_divergence_of_the_direction_oracle():
    model, x = net(), normal(10, 6)
    step = 0.3 * virtual_direction(model, x, iterations=2, generator=generator(4))
    assert torch.allclose(vat_loss(model, x, 0.3, iterations=2, generator=generator(4)), divergence(model, x, step).mean(), rtol=1e-12)


def test_loss_grows_with_half_the_square_of_the_radius_rate():
    model, x = net(), normal(10, 6)
    leading = torch.linalg.eigvalsh(fisher(model, x))[:, -1].mean() / 2
    radii = [2.0**-k for k in range(8, 13)]
    errors = [abs(vat_loss(model, x, eps, iterations=100, generator=generator()) / eps**2 - leading).item() for eps in radii]
    slope = math.log(errors[0] / errors[-1]) / math.log(radii[0] / radii[-1])
    assert 0.9 < slope < 1.1  # the divergence is exact to order three, divided by the square
    assert errors[-1] < 1e-3 * leading


def test_two_classes_closed_form_oracle():
    """One margin: the Fisher matrix has rank one, its eigenvector is the weight difference, after one iteration."""
    w, x = normal(2, 5), normal(30, 5, seed=1)
    found = virtual_direction(lambda v: v @ w.mT, x, generator=generator())
    along = (w[1] - w[0]) / (w[1] - w[0]).norm()
    assert torch.allclose((found @ along).abs(), torch.ones(30, dtype=x.dtype), rtol=1e-12)


def test_gradient_holds_direction_and_clean_answer_constant():
    model, x = net(), normal(6, 6)
    step = 0.5 * virtual_direction(model, x, generator=generator(2))
    target = model(x).softmax(1).detach()
    expected = torch.autograd.grad((target * (target.log() - model(x + step).log_softmax(1))).sum(1).mean(), list(model.parameters()))
    vat_loss(model, x, 0.5, generator=generator(2)).backward()
    assert all(torch.allclose(p.grad, g, rtol=1e-9, atol=1e-14) for p, g in zip(model.parameters(), expected, strict=True))


def test_direction_leaves_no_trace():
    model, x = net(), normal(6, 6).requires_grad_()
    model.train()
    assert not virtual_direction(model, x).requires_grad
    assert x.grad is None
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_extremes():
    model, x = net(), normal(4, 6)
    assert vat_loss(model, x, 0) == 0
    flat = lambda v: torch.zeros(len(v), 3, dtype=v.dtype)  # noqa: E731
    assert torch.equal(virtual_direction(lambda v: flat(v) + 0 * v[:, :3], x), torch.zeros_like(x))
    assert vat_loss(lambda v: flat(v) + 0 * v[:, :3], x, 1.0) == 0
    assert virtual_direction(model, x[:0]).shape == (0, 6)
    certain = lambda v: 1e4 * model(v)  # noqa: E731  # p underflows: no direction left, and no NaN
    assert torch.isfinite(vat_loss(certain, x, 1.0))
    tiny = lambda v: 1e-18 * model(v.double()).to(v.dtype)  # noqa: E731
    small = x.float()
    assert torch.allclose(virtual_direction(tiny, small).norm(dim=1), torch.ones(4))  # the Fisher matrix is of size 1e-36
    loss = vat_loss(net().float(), small, 1.0)
    assert loss.dtype == torch.float32


def test_refusals():
    model, x = net(), normal(4, 6)
    with pytest.raises(ValueError, match="iterations must be at least 1: a random direction is not adversarial, got 0"):
        virtual_direction(model, x, iterations=0)
    with pytest.raises(ValueError, match=r"logits of shape \(4, classes\), got \(4,\)"):
        virtual_direction(lambda v: v.sum(1), x)
    for eps in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="eps must be finite and at least 0"):
            vat_loss(model, x, eps)
    with pytest.raises(ValueError, match="at least one example"):
        vat_loss(model, x[:0], 1.0)
    with pytest.raises(TypeError, match="floating point"):
        inspect.unwrap(virtual_direction)(model, torch.ones(4, 6, dtype=torch.long))
