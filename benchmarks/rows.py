"""The hot paths and their opponents. Each contender is a function that prepares data and returns the call to be timed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import Row

WIDTH, BATCH = 1024, 256


def _network() -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))
    return model, torch.randn(BATCH, WIDTH), torch.randint(0, 10, (BATCH,))


def _ours_per_example() -> Callable[[], Tensor]:
    from kexue.regularization.per_example import parameter_gradient_sq

    model, x, y = _network()
    loss = nn.CrossEntropyLoss(reduction="none")
    return lambda: parameter_gradient_sq(model, lambda out: loss(out, y), x)


def _opacus_per_example() -> Callable[[], Tensor]:
    from opacus.grad_sample import GradSampleModule

    model, x, y = _network()
    wrapped = GradSampleModule(model, loss_reduction="sum")
    loss = nn.CrossEntropyLoss(reduction="sum")

    def call() -> Tensor:
        wrapped.zero_grad()
        loss(wrapped(x), y).backward()
        return sum(p.grad_sample.flatten(1).square().sum(1) for p in wrapped.parameters())

    return call


def _opacus_ghost() -> Callable[[], Tensor]:
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    model, x, y = _network()
    wrapped = GradSampleModuleFastGradientClipping(model, loss_reduction="sum", use_ghost_clipping=True)
    loss = nn.CrossEntropyLoss(reduction="sum")

    def call() -> Tensor:
        wrapped.zero_grad()
        loss(wrapped(x), y).backward()
        return wrapped.get_norm_sample() ** 2

    return call


def _backpack_per_example() -> Callable[[], Tensor]:
    from backpack import backpack, extend
    from backpack.extensions import BatchL2Grad

    model, x, y = _network()
    model, loss = extend(model), extend(nn.CrossEntropyLoss(reduction="sum"))

    def call() -> Tensor:
        model.zero_grad()
        with backpack(BatchL2Grad()):
            loss(model(x), y).backward()
        return sum(p.batch_l2 for p in model.parameters())

    return call


def _vmap_per_example() -> Callable[[], Tensor]:
    from torch.func import functional_call, grad, vmap

    model, x, y = _network()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(own: dict[str, Tensor], example: Tensor, label: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, own, (example[None],)), label[None])

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))
    return lambda: sum(g.flatten(1).square().sum(1) for g in gradients(parameters, x, y).values())


def _same(results: list[Any]) -> None:
    for other in results[1:]:
        torch.testing.assert_close(results[0], other.to(results[0]), rtol=1e-4, atol=1e-5)


def _haar_ours(layers: int, n: int) -> Callable[[], Callable[[], Tensor]]:
    def prepare() -> Callable[[], Tensor]:
        from kexue.geometry.initialization import orthogonal

        return lambda: orthogonal(n, n, batch=(layers,))

    return prepare


def _haar_torch(layers: int, n: int) -> Callable[[], Callable[[], Tensor]]:
    def prepare() -> Callable[[], Tensor]:
        weights = torch.empty(layers, n, n)

        def call() -> Tensor:
            for weight in weights:
                nn.init.orthogonal_(weight)
            return weights

        return call

    return prepare


def _are_orthogonal(results: list[Any]) -> None:
    for weights in results:
        torch.testing.assert_close(weights @ weights.mT, torch.eye(weights.shape[-1]).expand_as(weights), rtol=0, atol=1e-4)


def _critic_values() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(1_000_000, generator=generator).requires_grad_() for _ in range(2))


def _gan_ours() -> Callable[[], Tensor]:
    from kexue.generative.divergences import DIVERGENCES
    from kexue.generative.variational_bounds import critic_loss

    real, fake = _critic_values()
    js = DIVERGENCES["js"]
    return lambda: torch.autograd.grad(critic_loss(js, real, fake), (real, fake))[0]


def _gan_bce() -> Callable[[], Tensor]:
    real, fake = _critic_values()
    loss = nn.functional.binary_cross_entropy_with_logits

    def call() -> Tensor:
        value = (loss(real, torch.ones_like(real)) + loss(fake, torch.zeros_like(fake))) / 2
        return torch.autograd.grad(value, (real, fake))[0]

    return call


def _jeffreys_ours() -> Callable[[], Tensor]:
    from kexue.generative.divergences import DIVERGENCES

    v = torch.linspace(-4, 4, 1_000_000, dtype=torch.float64)
    return lambda: DIVERGENCES["jeffreys"].conj_link(v)


def _jeffreys_lambert() -> Callable[[], Tensor]:
    from scipy.special import lambertw

    v = torch.linspace(-4, 4, 1_000_000, dtype=torch.float64)

    def call() -> Tensor:
        t = v + 1 - torch.exp(-v)
        w = torch.from_numpy(lambertw(torch.exp(1 - t).numpy()).real)
        return w + 1 / w + t - 2

    return call


def _cosines_ours() -> Callable[[], Tensor]:
    from kexue.geometry.sphere import random_cosine

    return lambda: random_cosine(1000, 100_000)


def _cosines_scipy() -> Callable[[], Tensor]:
    from scipy.stats import uniform_direction

    def call() -> Tensor:
        return torch.from_numpy(uniform_direction(1000).rvs(100_000)[:, 0])

    return call


def _same_variance(results: list[Any]) -> None:
    """Both samples have variance 1/n within five standard errors."""
    for t in results:
        assert abs(t.double().square().mean().item() * 1000 - 1) < 5 * math.sqrt(2 / 100_000)


ROWS = [
    Row(
        "per-example-gradient-norms",
        f"Squared gradient norm of each of {BATCH} examples, three-layer network of width {WIDTH}",
        {
            "kexue": _ours_per_example,
            "opacus (grad_sample)": _opacus_per_example,
            "opacus (ghost norm)": _opacus_ghost,
            "BackPACK (BatchL2Grad)": _backpack_per_example,
            "torch.func (vmap of grad)": _vmap_per_example,
        },
        goal="5x",
        note="float32; the goal is against materialized gradients. BackPACK and the ghost norm of opacus use the same identity as we do",
        checks=_same,
        repeats=7,
    ),
    *(
        Row(
            f"haar-orthogonal-{layers}x{n}",
            f"Haar-orthogonal initialization of {layers} layers of {n} x {n}",
            {"kexue (one batched call)": _haar_ours(layers, n), "torch.nn.init.orthogonal_ in a loop": _haar_torch(layers, n)},
            checks=_are_orthogonal,
            note="float32; both by QR of a Gaussian matrix with the signs fixed",
        )
        for layers, n in ((256, 64), (64, 256), (4, 1024))
    ),
    Row(
        "gan-critic-loss",
        "Critic loss of the Jensen-Shannon game with gradient, a million scores each",
        {"kexue (critic_loss, js)": _gan_ours, "torch binary_cross_entropy_with_logits": _gan_bce},
        goal="1x",
        note="float32; the same gradients up to the factor that the affine map between the two losses states",
        repeats=15,
    ),
    Row(
        "jeffreys-conjugate",
        "Conjugate of the Jeffreys divergence at a million critic outputs",
        {"kexue (canonical link)": _jeffreys_ours, "scipy.special.lambertw": _jeffreys_lambert},
        goal="10x",
        note="float64; the canonical link needs no Lambert function and has gradients, which scipy's has not",
        checks=_same,
    ),
    Row(
        "random-cosines",
        "100 000 cosines between random directions in 1000 dimensions",
        {"kexue (one beta draw each)": _cosines_ours, "scipy.stats.uniform_direction": _cosines_scipy},
        note="the cosine has a law of its own, so no vector needs to be drawn",
        checks=_same_variance,
        repeats=5,
    ),
]
