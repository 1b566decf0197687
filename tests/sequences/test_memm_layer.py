"""Tests of kexue.sequences.memm_layer: loss and decoders against enumeration, low rank without a K x K tensor, refusals."""

import itertools
import math

import pytest
import torch
from kexue.sequences import crf
from kexue.sequences.memm import memm_nll
from kexue.sequences.memm_layer import MEMM
from torch.utils._python_dispatch import TorchDispatchMode


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def filled(tags=3, seed=0, size=1.5, **options):
    """A float64 layer with random parameters."""
    layer = MEMM(tags, **options).double()
    with torch.no_grad():
        for number, parameter in enumerate(layer.parameters()):
            parameter.copy_(size * normal(*parameter.shape, seed=seed + 7 * number))
    return layer


def batch(tags=3, lengths=(5, 1, 3), seed=0):
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    y = torch.randint(tags, mask.shape, generator=torch.Generator().manual_seed(seed))
    return 1.5 * normal(*mask.shape, tags, seed=seed), y, mask


def best_path(scores, tags, time):
    paths = list(itertools.product(range(tags), repeat=time))
    return list(max(paths, key=scores))


class Largest(TorchDispatchMode):
    """Number of entries of the largest tensor that an operation returns."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor):
                self.entries = max(self.entries, x.numel())
        return out


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("rank", [None, 1, 2])
@pytest.mark.parametrize("constrained", [True, False])
def test_loss_is_that_of_its_transition_matrix(bidirectional, rank, constrained):
    allowed = torch.tensor([[True, True, False], [True, True, True], [False, True, True]]) if constrained else None
    layer = filled(rank=rank, bidirectional=bidirectional, constraints=allowed)
    f, _, mask = batch()
    y = torch.tensor([[0, 1, 2, 2, 1], [2, 0, 0, 0, 0], [0, 0, 1, 0, 0]])
    f.requires_grad_()
    inputs = [f, *layer.parameters()]
    got = layer.loss(f, y, mask=mask)
    want = memm_nll(f, layer.transitions(), y, mask=mask, direction="both" if bidirectional else "forward")
    torch.testing.assert_close(got, want, rtol=1e-13, atol=0)
    for a, b in zip(torch.autograd.grad(got.sum(), inputs), torch.autograd.grad(want.sum(), inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_decoders_find_the_best_path_of_enumeration(bidirectional, seed):
    layer = filled(seed=seed, bidirectional=bidirectional, size=2.0)
    f, _, mask = batch(seed=seed)
    g = layer.transitions().detach()
    for b, time in enumerate(mask.sum(1).tolist()):
        x = f[b, :time]

        def raw(path, weight=1, x=x):
            return weight * sum(x[k, t] for k, t in enumerate(path)) + sum(g[s, t] for s, t in itertools.pairwise(path))

        def exact(path, x=x):
            return -layer.loss(x[None], torch.tensor([path])).item()

        def double(path, raw=raw):
            return raw(path, 2)

        scores = {"raw": raw, "exact": exact} | ({"piecewise": double} if bidirectional else {})
        for kind, value in scores.items():
            got = layer.decode(f, mask=mask, kind=kind)[b]
            assert got[:time].tolist() == best_path(value, 3, time)
            assert (got[time:] == -1).all()


def test_raw_and_exact_decoding_often_differ():
    layer, f = filled(bidirectional=False, size=2.0, seed=1), 2 * normal(200, 5, 3, seed=1)
    differ = (layer.decode(f) != layer.decode(f, kind="raw")).any(1).double().mean().item()
    assert 0.3 < differ < 0.9


@pytest.mark.parametrize("rank", [None, 2])
def test_greedy_decoding_takes_the_best_next_tag(rank):
    layer = filled(rank=rank, seed=3)
    f, _, mask = batch(seed=3)
    g, got = layer.transitions().detach(), layer.decode(f, mask=mask, kind="greedy")
    for b, time in enumerate(mask.sum(1).tolist()):
        path = [int(f[b, 0].argmax())]
        for k in range(1, time):
            path.append(int((f[b, k] + g[path[-1]]).argmax()))
        assert got[b].tolist() == path + [-1] * (mask.shape[1] - time)


@pytest.mark.parametrize("kind", ["exact", "raw", "piecewise", "greedy"])
def test_decoded_paths_obey_the_constraints_and_padding_does_not_matter(kind):
    allowed = torch.tensor([[False, True, False], [True, False, True], [True, False, False]])
    layer = filled(constraints=allowed, seed=2)
    f, _, mask = batch(lengths=(9, 4), seed=2)
    f[~mask] = math.nan
    path = layer.decode(f, mask=mask, kind=kind)
    for row, time in zip(path.tolist(), (9, 4), strict=True):
        assert all(allowed[a, b] for a, b in itertools.pairwise(row[:time]))


def test_forbidden_transitions_have_gradient_zero_and_cannot_be_gold():
    allowed = torch.tensor([[True, False], [True, True]])
    layer = filled(2, constraints=allowed)
    layer.loss(normal(1, 3, 2), torch.tensor([[1, 1, 0]])).sum().backward()
    assert layer.full.grad[0, 1] == 0 and layer.full.grad[1, 1] != 0
    with pytest.raises(ValueError, match="positive probability"):
        layer.loss(normal(1, 3, 2), torch.tensor([[0, 1, 0]]))


def test_low_rank_training_never_builds_a_tag_by_tag_tensor():
    tags, rank = 3000, 4
    layer, f, y = MEMM(tags, rank), normal(2, 6, tags, dtype=torch.float32), torch.randint(tags, (2, 6))
    f.requires_grad_()
    with Largest() as seen:
        layer.loss(f, y).sum().backward()
        layer.decode(f.detach(), kind="greedy")
    assert seen.entries <= 2 * 6 * tags < tags**2
    assert sum(p.numel() for p in layer.parameters()) == 2 * tags * rank


def test_training_drives_the_loss_of_a_deterministic_rule_to_zero():
    torch.manual_seed(0)
    for options in ({}, {"rank": 3}, {"bidirectional": False}):
        layer, y = MEMM(3, **options), torch.arange(30).remainder(3)[None]
        f = torch.zeros(1, 30, 3)
        f[0, 0, 0] = f[0, -1, 2] = 50
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.3)
        for _ in range(60):
            optimizer.zero_grad()
            layer.loss(f, y).sum().backward()
            optimizer.step()
        assert layer.loss(f, y).item() < 0.1
        assert all(torch.equal(layer.decode(f, kind=kind), y) for kind in ("exact", "raw", "greedy"))


def test_loss_after_decoding_still_has_a_gradient_and_the_state_survives_saving():
    layer = filled(rank=2, constraints=torch.ones(3, 3, dtype=torch.bool))
    f, y, mask = batch()
    layer.eval()
    path = layer.decode(f, mask=mask)
    layer.train().loss(f, y, mask=mask).sum().backward()
    assert layer.left.grad.abs().sum() > 0 and not path.requires_grad
    other = MEMM(3, rank=2, constraints=torch.zeros(3, 3, dtype=torch.bool)).double()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.decode(f, mask=mask), path)
    assert "num_tags=3, rank=2, bidirectional=True" in repr(layer)


def test_first_scores_of_a_low_rank_layer_are_small_and_do_not_depend_on_the_rank():
    torch.manual_seed(0)
    for rank in (1, 16, 64):
        assert 0.05 < MEMM(400, rank).transitions().std().item() < 0.2
    assert not MEMM(5).transitions().any()


def test_crf_loss_differs_from_the_local_one():
    layer = filled(bidirectional=False)
    f, y, mask = batch()
    assert not torch.allclose(layer.loss(f, y, mask=mask), crf.sequence_nll(f, layer.transitions(), y, mask=mask))


def test_refusals_name_the_argument():
    layer, one_way = MEMM(3), MEMM(3, bidirectional=False)
    f, y, _ = batch()
    f = f.float()
    for call, message in [
        (lambda: MEMM(0), "num_tags must be at least 1, got 0"),
        (lambda: MEMM(3, rank=0), "rank must be at least 1 or None, got 0"),
        (
            lambda: MEMM(3, constraints=torch.ones(2, 2, dtype=torch.bool)),
            r"constraints must be square over the 3 tags, got shape \(2, 2\)",
        ),
        (lambda: layer.decode(f, kind="beam"), "kind must be 'exact', 'raw', 'piecewise' or 'greedy', got 'beam'"),
        (lambda: one_way.decode(f, kind="piecewise"), "'piecewise' is for a bidirectional layer"),
        (lambda: layer.loss(f[..., :2], y), r"emissions must score the 3 tags of the layer, got shape \(3, 5, 2\)"),
        (lambda: layer.decode(f[..., :2]), r"emissions must score the 3 tags of the layer, got shape \(3, 5, 2\)"),
        (lambda: layer.loss(f, y + 3), r"tags must lie in 0\.\.2"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
