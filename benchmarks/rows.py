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


def _normalization() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y, g = (torch.randn(64, 64, 32, 32, generator=generator) for _ in range(2))
    return y, torch.rand(64, generator=generator) + 0.5, torch.randn(64, generator=generator), g


def _batch_norm_ours() -> Callable[[], Tensor]:
    from kexue.geometry.normalization import batch_norm, batch_norm_backward

    y, gamma, beta, g = _normalization()
    _, cache = batch_norm(y, gamma, beta)
    return lambda: batch_norm_backward(g, cache)[0]


def _batch_norm_graph() -> Callable[[], Tensor]:
    y, gamma, beta, g = _normalization()
    y.requires_grad_()
    centered = y - y.mean((0, 2, 3), keepdim=True)
    scale = (centered.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
    z = centered / scale * gamma.view(1, -1, 1, 1) + beta.view(1, -1, 1, 1)
    return lambda: torch.autograd.grad(z, y, g, retain_graph=True)[0]


def _batch_norm_torch() -> Callable[[], Tensor]:
    y, gamma, beta, g = _normalization()
    z = nn.functional.batch_norm(y.requires_grad_(), None, None, gamma, beta, training=True)
    return lambda: torch.autograd.grad(z, y, g, retain_graph=True)[0]


def _topk_logits() -> Tensor:
    return torch.randn(10_000, generator=torch.Generator().manual_seed(0)).requires_grad_()


def _topk_ours(method: str) -> Callable[[], Callable[[], Tensor]]:
    def prepare() -> Callable[[], Tensor]:
        from kexue.regularization.soft_topk import soft_topk

        x = _topk_logits()
        return lambda: soft_topk(x, 10, method=method)

    return prepare


def _topk_recursion() -> Callable[[], Tensor]:
    x = _topk_logits()

    def call() -> Tensor:
        log_e = torch.cat([torch.zeros(1), torch.full((10,), -1e30)])  # with -inf for log 0, as one writes it first, nine weights are NaN
        for value in x:
            log_e = torch.cat([log_e[:1], torch.logaddexp(log_e[1:], log_e[:-1] + value)])
        return torch.autograd.grad(log_e[10], x)[0]

    return call


def _topk_hard() -> Callable[[], Tensor]:
    x = _topk_logits()
    return lambda: torch.zeros_like(x).scatter(0, x.topk(10).indices, 1.0)


def _select_ten(results: list[Any]) -> None:
    for weights in results:
        assert abs(weights.double().sum().item() - 10) < 1e-2


def _same_in_norm(results: list[Any]) -> None:
    """A rounding error may turn the sign of a vanishing entry of a gradient, and with it a pixel (about one in a thousand)."""
    for other in results[1:]:
        assert (results[0] - other).norm() < 0.05 * results[0].norm()


def _adversarial(steps: int, theirs: bool) -> Callable[[], Callable[[], Tensor]]:
    """One step of adversarial training, attack and parameter gradient: FGSM for 0 steps, else PGD."""

    def prepare() -> Callable[[], Tensor]:
        import torchattacks
        from kexue.regularization.adversarial import fast_gradient, pgd

        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
        x, y, size = torch.rand(100, 784), torch.randint(0, 10, (100,)), {"eps": 0.1}
        peer = torchattacks.FGSM(model, **size)
        if steps:
            peer = torchattacks.PGD(model, **size, alpha=0.0125, steps=steps, random_start=False)

        def loss(inputs: Tensor) -> Tensor:
            return nn.functional.cross_entropy(model(inputs), y, reduction="none")

        def attack() -> Tensor:
            if theirs:
                return peer(x, y)
            if steps:
                return pgd(loss, x, **size, step_size=0.0125, steps=steps, random_start=False, clip=(0, 1))
            return fast_gradient(loss, x, **size, p=math.inf, clip=(0, 1))

        def call() -> Tensor:
            moved = attack()
            model.zero_grad()
            loss(moved).mean().backward()
            return model[0].weight.grad.clone()

        return call

    return prepare


def _kernel(channels: int) -> Tensor:
    return torch.randn(channels, channels, 3, 3, generator=torch.Generator().manual_seed(0))


def _circular(x: Tensor) -> Tensor:
    return nn.functional.pad(x, (1, 1, 1, 1), mode="circular")


def _conv_norm_ours(channels: int, size: int) -> Callable[[], Callable[[], Tensor]]:
    def prepare() -> Callable[[], Tensor]:
        from kexue.regularization.conv_norm import conv2d_norm

        kernel = _kernel(channels)
        return lambda: conv2d_norm(kernel, size)

    return prepare


def _conv_norm_dense(channels: int, size: int) -> Callable[[], Callable[[], Tensor]]:
    def prepare() -> Callable[[], Tensor]:
        kernel = _kernel(channels)

        def call() -> Tensor:
            images = torch.eye(channels * size**2).view(-1, channels, size, size)
            return torch.linalg.svdvals(nn.functional.conv2d(_circular(images), kernel).flatten(1))[0]

        return call

    return prepare


def _conv_norm_power() -> Callable[[], Tensor]:
    kernel = _kernel(64)
    back = kernel.flip(2, 3).transpose(0, 1).contiguous()
    start = torch.randn(1, 64, 32, 32, generator=torch.Generator().manual_seed(1))

    def call() -> Tensor:
        x = start
        for _ in range(50):
            x = x / x.norm()
            y = nn.functional.conv2d(_circular(x), kernel)
            x = nn.functional.conv2d(_circular(y), back)
        return y.norm()

    return call


def _conv_norm_reshape() -> Callable[[], Tensor]:
    layer = nn.utils.parametrizations.spectral_norm(nn.Conv2d(64, 64, 3, bias=False))
    layer.parametrizations.weight.original.data = _kernel(64)
    return lambda: (layer.parametrizations.weight.original / layer.weight)[0, 0, 0, 0].detach()


def _from_below(results: list[Any]) -> None:
    """Power iteration stops little below the norm; the reshaped kernel's norm is about two thirds of it."""
    exact, power, reshaped = (result.item() for result in results)
    assert 0.98 * exact < power < exact * (1 + 1e-5)
    assert reshaped < 0.7 * exact


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
    Row(
        "batch-norm-backward",
        "Backward pass of batch normalization, 64 channels of 65 536 values",
        {
            "kexue (closed form)": _batch_norm_ours,
            "autograd through the forward formula": _batch_norm_graph,
            "torch.nn.functional.batch_norm": _batch_norm_torch,
        },
        goal="3x",
        note="float32, memory-bound; the goal is against the graph of the formula. The native kernel, fused, is faster than ours",
        checks=_same,
    ),
    Row(
        "soft-topk",
        "Weights of a soft top-10 of 10 000 logits (marginals of random subsets)",
        {"kexue (subset)": _topk_ours("subset"), "autograd through the log-space recursion": _topk_recursion},
        goal="50x",
        note="float32 logits; ours computes in float64. The recursion is given -1e30 for log 0; with -inf its first nine weights are NaN",
        checks=_same,
        repeats=3,
    ),
    Row(
        "soft-topk-hard",
        "Soft and hard selection of 10 of 10 000 logits",
        {"kexue (fermi)": _topk_ours("fermi"), "kexue (sparse)": _topk_ours("sparse"), "torch.topk and scatter": _topk_hard},
        note="what a gradient costs: the hard selection has none",
        checks=_select_ten,
    ),
    *(
        Row(
            f"adversarial-{name.lower()}",
            f"A step of adversarial training by {name}, attack and parameter gradient, 784-256-256-10, batch of 100",
            {f"kexue ({function})": _adversarial(steps, False), f"torchattacks ({peer})": _adversarial(steps, True)},
            goal="1x",
            note="float32; the same perturbation, gradient and network passes; what surrounds the passes differs",
            checks=_same_in_norm,
            repeats=repeats,
        )
        for name, function, peer, steps, repeats in (("PGD-20", "pgd", "PGD", 20, 31), ("FGSM", "fast_gradient", "FGSM", 0, 101))
    ),
    Row(
        "conv-norm-exact",
        "Spectral norm of a 3x3 convolution, 8 channels, 16x16 images, wrap-around borders",
        {"kexue (conv2d_norm)": _conv_norm_ours(8, 16), "torch.linalg.svdvals of the unrolled matrix": _conv_norm_dense(8, 16)},
        goal="20x",
        note="float32; the same number to rounding. The unrolled matrix has 2048 rows; at 64 channels and 32x32 it would have 65 536",
        checks=_same,
        repeats=5,
    ),
    Row(
        "conv-norm-accuracy",
        "Spectral norm of a 3x3 convolution, 64 channels, 32x32 images, exact against estimates",
        {
            "kexue (conv2d_norm)": _conv_norm_ours(64, 32),
            "50 steps of power iteration on images": _conv_norm_power,
            "torch parametrizations.spectral_norm (reshaped)": _conv_norm_reshape,
        },
        note="float32; ours is exact; 50 steps end one percent too low, the reshaped kernel's norm is two thirds of it",
        checks=_from_below,
        repeats=7,
    ),
]
