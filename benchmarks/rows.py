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


def _tagged(batch: int, time: int, tags: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    emissions, transitions = torch.randn(batch, time, tags, generator=generator), torch.randn(tags, tags, generator=generator)
    gold = torch.randint(tags, (batch, time), generator=generator)
    return emissions.requires_grad_(), transitions.requires_grad_(), gold


def _local_loss(direction: str, *size: int) -> Callable[[], Callable[[], Tensor]]:
    def prepare() -> Callable[[], Tensor]:
        from kexue.sequences.memm import memm_nll

        emissions, transitions, gold = _tagged(*size)
        return lambda: torch.autograd.grad(memm_nll(emissions, transitions, gold, direction=direction).sum(), (emissions, transitions))[0]

    return prepare


def _global_loss(*size: int) -> Callable[[], Callable[[], Tensor]]:
    def prepare() -> Callable[[], Tensor]:
        from kexue.sequences.crf import sequence_nll

        emissions, transitions, gold = _tagged(*size)
        return lambda: torch.autograd.grad(sequence_nll(emissions, transitions, gold).sum(), (emissions, transitions))[0]

    return prepare


def _global_loss_peer(*size: int) -> Callable[[], Callable[[], Tensor]]:
    def prepare() -> Callable[[], Tensor]:
        from torchcrf import CRF

        emissions, transitions, gold = _tagged(*size)
        layer = CRF(size[2], batch_first=True)
        layer.start_transitions.data.zero_()
        layer.end_transitions.data.zero_()
        layer.transitions.data.copy_(transitions.detach())
        mask = torch.ones(gold.shape, dtype=torch.bool)
        return lambda: torch.autograd.grad(-layer(emissions, gold, mask=mask), (emissions, layer.transitions))[0]

    return prepare


def _behind_an_encoder(loss: str, depth: int) -> Callable[[], Callable[[], Tensor]]:
    """Loss and gradient of a whole tagger: ``depth`` gated convolutions of 128 channels, then one of three losses."""

    def prepare() -> Callable[[], Tensor]:
        from kexue.sequences.crf import sequence_nll
        from kexue.sequences.encoders import GatedConvolutions
        from kexue.sequences.memm import memm_nll
        from torchcrf import CRF

        torch.manual_seed(0)
        encoder = GatedConvolutions(9, buckets=4096, width=128, dilations=((1, 2, 4) * 4)[:depth])
        _, transitions, gold = _tagged(32, 128, 9)
        features, lengths = torch.randint(4096, (32 * 128, 1)), torch.full((32,), 128)
        peer = CRF(9, batch_first=True)
        peer.start_transitions.data.zero_(), peer.end_transitions.data.zero_()
        peer.transitions.data.copy_(transitions.detach())
        losses = {
            "memm": lambda f: memm_nll(f, transitions, gold).mean(),
            "crf": lambda f: sequence_nll(f, transitions, gold).mean(),
            "peer": lambda f: -peer(f, gold, reduction="mean"),
        }
        wanted = [encoder.scores.weight, *encoder.blocks.parameters(), encoder.table.weight]
        return lambda: torch.autograd.grad(losses[loss](encoder(features, lengths).view(32, 128, 9)), wanted)[0]

    return prepare


def _two_are_the_crf(results: list[Any]) -> None:
    """The two CRFs have the same gradient; the local losses have one of the same size, of another model."""
    *local, ours, peer = results
    torch.testing.assert_close(ours, peer, rtol=0, atol=3e-3)  # the peer subtracts numbers of the size of log Z, in float32
    for gradient in local:
        assert 0.2 < gradient.norm() / ours.norm() < 5


SKY = (2020, ("phases", "seasons", "nodes", "sun conjunctions", "elongations", "apsides"))


def _sky_ours() -> Callable[[], list[float]]:
    from kexue.sky.calendar import calendar, default_ephemeris

    ephemeris = default_ephemeris()

    def call() -> list[float]:
        ephemeris.forget()  # every call computes its positions again
        return [event.tt for event in calendar(SKY[0], "UTC", kinds=SKY[1])]

    return call


def _sky_almanac() -> Callable[[], list[float]]:
    from kexue.sky.calendar import default_ephemeris, year_range, zone_of
    from skyfield import almanac, searchlib

    ephemeris = default_ephemeris()
    kernel, scale = ephemeris.kernel, ephemeris.timescale
    t0, t1 = (scale.tt_jd(t) for t in year_range(SKY[0], zone_of("UTC"), ephemeris))
    earth, sun, moon = (kernel[name] for name in ("earth", "sun", "moon"))
    outer = [kernel[f"{name} barycenter"] for name in ("jupiter", "saturn", "uranus", "neptune")]

    def elongation(planet: Any) -> Callable[[Any], Any]:
        def angle(t: Any) -> Any:
            observer = earth.at(t)
            return observer.observe(planet).apparent().separation_from(observer.observe(sun).apparent()).degrees

        angle.step_days = 5.0
        return angle

    def distance(body: Any, sign: int, step: float) -> Callable[[Any], Any]:
        def length(t: Any) -> Any:
            return sign * (body - earth).at(t).distance().km

        length.step_days = step
        return length

    def call() -> list[float]:
        discrete = [almanac.moon_phases(kernel), almanac.seasons(kernel), almanac.moon_nodes(kernel)]
        inner = [kernel["mercury"], kernel["venus"]]
        discrete += [almanac.oppositions_conjunctions(kernel, planet) for planet in (*inner, kernel["mars"], *outer)]
        extremal = [elongation(planet) for planet in inner]
        extremal += [distance(body, sign, step) for body, step in ((moon, 5.0), (sun, 5.0)) for sign in (1, -1)]
        found = [almanac.find_discrete(t0, t1, f)[0].tt for f in discrete] + [searchlib.find_maxima(t0, t1, f)[0].tt for f in extremal]
        return sorted(t for times in found for t in times)

    return call


def _same_instants(results: list[list[float]]) -> None:
    ours, theirs = results
    if len(ours) != len(theirs) or max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) > 1 / 1440:
        raise AssertionError(f"the searches found {len(ours)} and {len(theirs)} events, or instants more than a minute apart")


def _chain(batch: int, time: int, tags: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Emissions, gold tags, transitions and a mask that is true everywhere."""
    generator = torch.Generator().manual_seed(0)
    emissions = torch.randn(batch, time, tags, generator=generator)
    gold = torch.randint(tags, (batch, time), generator=generator)
    return emissions, gold, torch.randn(tags, tags, generator=generator), torch.ones(batch, time, dtype=torch.bool)


def _crf_ours(task: str, *size: int) -> Callable[[], Callable[[], Tensor]]:
    def prepare() -> Callable[[], Tensor]:
        from kexue.sequences.crf import LinearChainCRF

        emissions, gold, transitions, mask = _chain(*size)
        crf = LinearChainCRF(size[2])
        with torch.no_grad():
            crf.transition.copy_(transitions), crf.start.zero_(), crf.end.zero_()
        if task == "decode":
            return lambda: torch.tensor(crf.decode(emissions, mask))
        emissions.requires_grad_()
        inputs = (emissions, *crf.parameters())
        return lambda: torch.autograd.grad(crf(emissions, gold, mask).sum(), inputs)[0]

    return prepare


def _crf_pytorch_crf(task: str, *size: int) -> Callable[[], Callable[[], Tensor]]:
    def prepare() -> Callable[[], Tensor]:
        from torchcrf import CRF

        emissions, gold, transitions, mask = _chain(*size)
        crf = CRF(size[2], batch_first=True)
        with torch.no_grad():
            crf.transitions.copy_(transitions), crf.start_transitions.zero_(), crf.end_transitions.zero_()
        if task == "decode":
            return lambda: torch.tensor(crf.decode(emissions, mask))
        emissions.requires_grad_()
        inputs = (emissions, *crf.parameters())
        return lambda: torch.autograd.grad(crf(emissions, gold, mask), inputs)[0]

    return prepare


def _crf_torch_struct(task: str, *size: int) -> Callable[[], Callable[[], Tensor]]:
    def prepare() -> Callable[[], Tensor]:
        from torch_struct import LinearChainCRF

        emissions, gold, transitions, _ = _chain(*size)
        emissions.requires_grad_(task != "decode")
        transitions.requires_grad_(task != "decode")

        def chain() -> Any:
            potentials = emissions[:, 1:, :, None] + transitions.T  # [batch, step, to, from]; the first emission goes into step 1
            return LinearChainCRF(torch.cat([potentials[:, :1] + emissions[:, :1, None, :], potentials[:, 1:]], 1))

        def loss() -> Tensor:
            score = emissions.gather(2, gold[..., None]).sum() + transitions[gold[:, :-1], gold[:, 1:]].sum()
            return torch.autograd.grad(score - chain().partition.sum(), (emissions, transitions))[0]

        def decode() -> Tensor:
            steps = chain().argmax  # one-hot edges
            return torch.cat([steps[:, :1].sum(2).argmax(2), steps.sum(3).argmax(2)], 1)

        return decode if task == "decode" else loss

    return prepare


def _same_paths(results: list[Any]) -> None:
    for other in results[1:]:
        assert torch.equal(results[0], other)


def _nearly_same(results: list[Any]) -> None:
    """In float32 the peers sum scores up to size 1e4 without scaling, so probabilities keep two digits."""
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=0, atol=5e-2)


def _newspaper(characters: int) -> list[str]:
    from kexue import data

    lines: list[str] = []
    for line in data.peoples_daily():
        lines.append("".join(line.words))
        characters -= len(lines[-1])
        if characters < 0:
            break
    return lines


def _ngrams_ours() -> Callable[[], Any]:
    from kexue.sequences.ngrams import encode_text, ngram_counts

    lines = _newspaper(2_000_000)
    return lambda: [(len(table.counts), int(table.counts.sum())) for table in ngram_counts(encode_text(lines), 4)]


def _ngrams_dictionary() -> Callable[[], Any]:
    import re
    from collections import Counter

    lines = _newspaper(2_000_000)

    def call() -> list[tuple[int, int]]:
        tables: list[Counter[str]] = [Counter() for _ in range(4)]
        for line in lines:
            for run in re.findall(r"[^\W_]+", line):
                for n, table in enumerate(tables, 1):
                    table.update(run[i : i + n] for i in range(len(run) - n + 1))
        return [(len(table), table.total()) for table in tables]

    return call


def _vocabulary_ours() -> Callable[[], Any]:
    from kexue.sequences.word_discovery import pruned_vocabulary

    lines = _newspaper(2_000_000)
    return lambda: pruned_vocabulary(lines, min_proba=1e-6)


def _vocabulary_package() -> Callable[[], Any]:
    import collections
    import collections.abc

    collections.Iterable = collections.abc.Iterable  # type: ignore[attr-defined]  # the package imports it from where it was until 3.9
    from nlp_zero import Word_Finder

    lines = _newspaper(2_000_000)

    def call() -> dict[str, int]:
        finder = Word_Finder(min_proba=1e-6)
        finder.train(lines)
        finder.find(lines)
        return dict(finder.words)

    return call


def _segment_ours() -> Callable[[], Any]:
    import jieba
    from kexue.sequences.unigram import UnigramSegmenter

    lines = _newspaper(300_000)
    jieba.initialize()
    model = UnigramSegmenter({word: count for word, count in jieba.dt.FREQ.items() if count > 0})
    return lambda: model.segment(lines)


def _segment_jieba() -> Callable[[], Any]:
    import jieba

    lines = _newspaper(300_000)
    jieba.initialize()
    return lambda: [jieba.lcut(line, HMM=False) for line in lines]


def _equal(results: list[Any]) -> None:
    assert all(other == results[0] for other in results[1:])


def _nearly_the_same_words(results: list[Any]) -> None:
    """They differ where jieba keeps runs of Latin letters together, and where two segmentations are equally probable."""
    ours, theirs = (sum(map(len, lines)) for lines in results)
    assert abs(ours / theirs - 1) < 0.05


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
    *(
        Row(
            f"memm-{batch}x{time}x{tags}",
            f"Loss and gradient of a tagger without its encoder, {batch} sequences of {time} steps, {tags} tags",
            {
                "kexue (memm_nll, one direction)": _local_loss("forward", batch, time, tags),
                "kexue (memm_nll, both directions)": _local_loss("both", batch, time, tags),
                "kexue (CRF)": _global_loss(batch, time, tags),
                "pytorch-crf (CRF)": _global_loss_peer(batch, time, tags),
            },
            goal=goal,
            note="float32; different models: what the normalizer of the CRF costs. The goal is against the CRF of this library; "
            "with an encoder in front the ratio shrinks",
            checks=_two_are_the_crf,
        )
        for batch, time, tags, goal in ((8, 1024, 9, "3x"), (32, 128, 4, None))
    ),
    *(
        Row(
            f"memm-encoder-{depth}",
            f"Training step of a tagger, depth {depth}: gated convolutions of 128 channels, 32 sequences of 128 steps, 9 tags",
            {
                "kexue (MEMM, both directions)": _behind_an_encoder("memm", depth),
                "kexue (CRF)": _behind_an_encoder("crf", depth),
                "pytorch-crf (CRF)": _behind_an_encoder("peer", depth),
            },
            note="float32; what is left of the MEMM's advantage when an encoder stands in front: "
            "the ratio is 1 + (CRF - MEMM) / (encoder + MEMM)",
            checks=_two_are_the_crf,
            repeats=5,
        )
        for depth in (1, 3, 12)
    ),
    *(
        Row(
            f"crf-{task}-{batch}x{time}x{tags}",
            f"CRF: {title}, {batch} sequences of {time} steps, {tags} tags",
            {
                "kexue (LinearChainCRF)": _crf_ours(task, batch, time, tags),
                "pytorch-crf": _crf_pytorch_crf(task, batch, time, tags),
                "torch-struct": _crf_torch_struct(task, batch, time, tags),
            },
            goal="3x",
            note="float32; the same values. torch-struct materializes one matrix per step",
            checks=_same_paths if task == "decode" else _nearly_same,
            repeats=3 if tags == 32 else 7,  # one call of torch-struct takes many seconds at 32 tags
        )
        for task, title in (("loss", "log-likelihood with gradient"), ("decode", "best paths"))
        for batch, time, tags in ((64, 256, 32), (256, 64, 9), (1, 256, 9), (1, 4096, 9), (1, 16_384, 9))
        if task == "loss" or time in (64, 4096) or tags == 32
    ),
    Row(
        "sky",
        "A year of events: phases, seasons, nodes, conjunctions, elongations, apsides",
        {"kexue (calendar)": _sky_ours, "skyfield's almanac and searchlib, kind by kind": _sky_almanac},
        goal="5x",
        note="the same instants to a minute, from the same ephemeris; ours also computes values and uncertainties",
        checks=_same_instants,
        repeats=5,
    ),
    Row(
        "ngrams",
        "All 1- to 4-grams of a newspaper of 1.8 million characters",
        {"kexue (one sort)": _ngrams_ours, "collections.Counter over slices": _ngrams_dictionary},
        goal="30x",
        note="exact counts, encoding included; ours are arrays, turning all of them into Python strings takes longer than counting",
        checks=_equal,
        repeats=5,
    ),
    Row(
        "pruned-vocabulary",
        "The vocabulary of nlp-zero from a newspaper of 1.8 million characters, end to end",
        {"kexue (pruned_vocabulary)": _vocabulary_ours, "nlp-zero 0.1.6": _vocabulary_package},
        goal="5x",
        note="the same words and counts; the package is made importable by an alias",
        checks=_equal,
        repeats=3,
    ),
    Row(
        "segment-unigram",
        "Most probable segmentation of 300 000 characters with jieba's dictionary",
        {"kexue (UnigramSegmenter)": _segment_ours, "jieba 0.42.1, HMM off": _segment_jieba},
        goal="1x",
        note="dictionary of 350 000 words, loaded beforehand; unknown characters are treated differently",
        checks=_nearly_the_same_words,
        repeats=5,
    ),
]
