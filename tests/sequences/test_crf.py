"""Linear-chain CRFs against enumeration, the plain recursion, and three other packages; in every form, at every extreme."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.sequences import _lattice, _lattice_tree, crf_sums
from kexue.sequences.crf import LinearChainCRF, entropy, log_partition, marginals, path_score, sequence_nll
from torch.autograd import gradcheck, gradgradcheck

DOUBLE = {"dtype": torch.float64}
INF = float("inf")
FORMS = [_lattice.scaled, _lattice.log_space, _lattice_tree.scan, _lattice_tree.scan_logs]


def problem(seed, batch=3, time=4, tags=3, *, shared=True, spread=1.0, forbidden=0.0, dtype=torch.float64):
    """Random scores and random lengths, among them 1 and the full one."""
    generator = torch.Generator().manual_seed(seed)

    def scores(*shape):
        x = spread * torch.randn(*shape, generator=generator, **DOUBLE)
        return torch.where(torch.rand(*shape, generator=generator) < forbidden, -INF, x).to(dtype)

    lengths = torch.randint(1, time + 1, (batch,), generator=generator)
    lengths[-1] = time
    mask = torch.arange(time) < lengths[:, None]
    g = scores(tags, tags) if shared else scores(batch, time - 1, tags, tags)
    return {"emissions": scores(batch, time, tags), "transitions": g, "mask": mask, "start": scores(tags), "end": scores(tags)}


def paths_and_scores(p, row):
    """Every path of one sequence and its score, by loops over the definition."""
    f, g, n = p["emissions"][row].tolist(), p["transitions"], int(p["mask"][row].sum())
    g = [g.tolist()] * n if g.dim() == 2 else g[row].tolist()
    s, e = p["start"].tolist(), p["end"].tolist()
    found = []
    for y in itertools.product(range(len(s)), repeat=n):
        edges = sum(g[k - 1][y[k - 1]][y[k]] for k in range(1, n))
        found.append((y, s[y[0]] + sum(f[k][y[k]] for k in range(n)) + edges + e[y[-1]]))
    return [y for y, _ in found], torch.tensor([x for _, x in found], **DOUBLE)


def enumerated(p):
    """Log-partition, marginals of both kinds and entropy from all paths."""
    batch, time, tags = p["emissions"].shape
    log_z, h = torch.zeros(batch, **DOUBLE), torch.zeros(batch, **DOUBLE)
    node, edge = torch.zeros(batch, time, tags, **DOUBLE), torch.zeros(batch, time - 1, tags, tags, **DOUBLE)
    for b in range(batch):
        paths, scores = paths_and_scores(p, b)
        log_z[b] = scores.logsumexp(0)
        probability = (scores - log_z[b]).exp()
        h[b] = torch.special.entr(probability).sum()
        for y, q in zip(paths, probability, strict=True):
            for k, tag in enumerate(y):
                node[b, k, tag] += q
                if k:
                    edge[b, k - 1, y[k - 1], tag] += q
    return log_z, node, edge, h


def run(p, form, *, gradient=True):
    inputs = crf_sums.prepare(p["emissions"], p["transitions"], p["start"], p["end"])
    lattice, order = crf_sums.build_lattice(*inputs, p["mask"].sum(1))
    result, back = form(lattice, gradient=gradient), order.argsort()
    if not gradient:
        assert result.node is None and result.edge is None
        return result.log_z[back]
    edge = result.edge[back] if p["transitions"].dim() == 2 else result.edge.transpose(0, 1)[back]
    return result.log_z[back], result.node.transpose(0, 1)[back], edge


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("time", "tags"), [(1, 1), (1, 3), (5, 1), (2, 4), (6, 3), (4, 4)])
def test_each_form_matches_enumeration(form, shared, time, tags):
    p = problem(time * tags, time=time, tags=tags, shared=shared)
    log_z, node, edge, _ = enumerated(p)
    found = run(p, form)
    expected = (log_z, node, edge.sum(1) if shared else edge)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    torch.testing.assert_close(run(p, form, gradient=False), log_z, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shared", [True, False])
def test_public_functions_match_enumeration(shared):
    p = problem(7, batch=4, time=6, shared=shared, forbidden=0.1)
    log_z, node, edge, h = enumerated(p)
    possible = log_z > -INF
    assert possible.sum() > 1
    p = {k: v[possible] if k in ("emissions", "mask") or v.dim() == 4 else v for k, v in p.items()}
    torch.testing.assert_close(log_partition(**p), log_z[possible], rtol=0, atol=1e-12)
    found = marginals(**p)
    torch.testing.assert_close(found.node, node[possible], rtol=0, atol=1e-12)
    torch.testing.assert_close(found.edge, edge[possible], rtol=0, atol=1e-12)
    torch.testing.assert_close(entropy(**p), h[possible], rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    shared=st.booleans(),
    spread=st.sampled_from([0.3, 30.0, 1000.0]),
    forbidden=st.sampled_from([0.0, 0.0, 0.2, 0.5]),
    time=st.integers(1, 40),
)
def test_the_three_forms_agree_with_the_plain_recursion(seed, shared, spread, forbidden, time):
    """Also where whole sequences are impossible; relative to the size of the scores, which is what double precision knows."""
    p = problem(seed, batch=4, time=time, tags=3, shared=shared, spread=spread, forbidden=forbidden)
    inputs = crf_sums.prepare(p["emissions"], p["transitions"], p["start"], p["end"])
    plain = crf_sums.plain_log_partition(*inputs, p["mask"].sum(1))
    results = [run(p, form) for form in FORMS]
    for log_z, node, edge in results:
        torch.testing.assert_close(log_z, plain, rtol=1e-13, atol=1e-12)
        torch.testing.assert_close(node, results[1][1], rtol=0, atol=1e-11)
        torch.testing.assert_close(edge, results[1][2], rtol=0, atol=1e-10)
        total = torch.where(p["mask"] & (plain > -INF)[:, None], 1.0, 0.0).double()
        torch.testing.assert_close(node.sum(2), total, rtol=0, atol=1e-12)
    for form in FORMS:
        torch.testing.assert_close(run(p, form, gradient=False), plain, rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shared", [True, False])
def test_gradients_of_both_orders(form, shared):
    p = problem(3, shared=shared)
    inputs = [p[name].clone().requires_grad_() for name in ("emissions", "transitions", "start", "end")]
    lengths = p["mask"].sum(1)

    def call(*scores):
        return crf_sums._LogPartition.apply(*scores, lengths, form)

    assert gradcheck(call, inputs)
    assert gradgradcheck(call, inputs)


def test_gradients_of_the_loss_the_marginals_and_the_entropy():
    p = problem(4, forbidden=0.0)
    mask = p.pop("mask")
    tags = torch.randint(3, mask.shape)
    inputs = tuple(x.requires_grad_() for x in p.values())

    def with_mask(function, *more):
        return lambda f, g, s, e: function(f, g, *more, mask=mask, start=s, end=e)

    assert gradcheck(with_mask(sequence_nll, tags), inputs)
    assert gradcheck(with_mask(entropy), inputs)
    assert gradcheck(lambda *x: tuple(with_mask(marginals)(*x)), inputs)
    alone = log_partition(p["emissions"], p["transitions"].detach(), mask=mask)
    assert torch.autograd.grad(alone.sum(), p["emissions"])[0].shape == p["emissions"].shape
    (by_g,) = torch.autograd.grad(marginals(p["emissions"].detach(), p["transitions"]).node[:, 0, 0].sum(), p["transitions"])
    assert by_g.abs().sum() > 0


def test_gradient_of_the_loss_is_expected_minus_observed():
    p = problem(5, batch=1)
    tags = torch.tensor([[0, 2, 1, 1]])
    f, g = p["emissions"].requires_grad_(), p["transitions"].requires_grad_()
    by_f, by_g = torch.autograd.grad(sequence_nll(f, g, tags).sum(), (f, g))
    expected = marginals(f.detach(), g.detach())
    observed = torch.zeros(3, 3, **DOUBLE).index_put((tags[0, :-1], tags[0, 1:]), torch.ones(3, **DOUBLE), accumulate=True)
    torch.testing.assert_close(by_f, expected.node - torch.nn.functional.one_hot(tags, 3))
    torch.testing.assert_close(by_g, expected.edge.sum((0, 1)) - observed)


@pytest.mark.parametrize("shared", [True, False])
def test_path_score_matches_the_definition(shared):
    p = problem(11, shared=shared)
    batch, time = p["mask"].shape
    tags = torch.randint(3, (batch, time))
    expected = []
    for b in range(batch):
        paths, scores = paths_and_scores(p, b)
        expected.append(scores[paths.index(tuple(tags[b, : int(p["mask"][b].sum())].tolist()))])
    for kind in (torch.int64, torch.int32, torch.int8):
        found = path_score(p["emissions"], p["transitions"], tags.to(kind), mask=p["mask"], start=p["start"], end=p["end"])
        torch.testing.assert_close(found, torch.stack(expected))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6))
def test_gauge_and_shift_laws(seed):
    """Probabilities do not change under the gauge, and a constant added to a step's scores adds to the log-partition."""
    p = problem(seed, batch=2, time=5, forbidden=0.0)
    u, v = torch.randn(2, 3, **DOUBLE)
    q = p | {
        "transitions": p["transitions"] + u[:, None] + v,
        "emissions": p["emissions"] - u - v,
        "start": p["start"] + v,
        "end": p["end"] + u,
    }
    tags = torch.randint(3, p["mask"].shape)
    torch.testing.assert_close(sequence_nll(**p, tags=tags), sequence_nll(**q, tags=tags), rtol=0, atol=1e-11)
    torch.testing.assert_close(log_partition(**(p | {"end": p["end"] + 2.5})), log_partition(**p) + 2.5)


def test_padding_does_not_matter_whatever_it_holds():
    p = problem(13, forbidden=0.0)
    tags = torch.randint(3, p["mask"].shape)
    reference = [sequence_nll(**p, tags=tags), marginals(**p).node, entropy(**p)]
    for junk in (math.nan, INF, -INF, 1e30):
        q = p | {"emissions": torch.where(p["mask"][:, :, None], p["emissions"], junk)}
        found = [sequence_nll(**q, tags=torch.where(p["mask"], tags, -100)), marginals(**q).node, entropy(**q)]
        for a, b in zip(found, reference, strict=True):
            assert torch.equal(a, b)
        f = q["emissions"].requires_grad_()
        (grad,) = torch.autograd.grad(log_partition(**(q | {"emissions": f})).sum(), f)
        assert grad.isfinite().all() and (grad[~p["mask"]] == 0).all()


@pytest.mark.parametrize("shared", [True, False])
def test_nan_under_padding_reaches_neither_differentiable_marginals_nor_second_derivatives(shared):
    f = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)).double()
    g = torch.randn(*((3, 3) if shared else (2, 3, 3, 3)), generator=torch.Generator().manual_seed(1)).double()
    f[1, 2:] = torch.nan
    if not shared:
        g[1, 1:] = torch.nan
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    expected = marginals(f, g, mask=mask)
    f.requires_grad_(), g.requires_grad_()
    found = marginals(f, g, mask=mask)
    torch.testing.assert_close(found.node, expected.node)
    torch.testing.assert_close(found.edge, expected.edge)
    first = torch.autograd.grad(log_partition(f, g, mask=mask).sum(), f, create_graph=True)[0]
    for squares in (found.node.square().sum(), first.square().sum()):
        by_f, by_g = torch.autograd.grad(squares, (f, g))
        assert by_f.isfinite().all() and by_g.isfinite().all() and by_f[1, 2:].eq(0).all()


def test_differentiable_marginals_refuse_nan_as_the_others_do():
    with pytest.raises(ValueError, match="finite or -inf"):
        marginals(torch.full((1, 2, 2), torch.nan, requires_grad=True), torch.zeros(2, 2))


def test_a_batch_equals_its_sequences_one_by_one():
    p = problem(17, batch=6, time=7)
    lengths = p["mask"].sum(1).tolist()
    alone = [log_partition(p["emissions"][b : b + 1, :n], p["transitions"], start=p["start"], end=p["end"]) for b, n in enumerate(lengths)]
    torch.testing.assert_close(log_partition(**p), torch.cat(alone))


def test_all_but_one_step_masked_is_a_softmax():
    f = torch.randn(2, 5, 4, **DOUBLE)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[:, 0] = True
    torch.testing.assert_close(log_partition(f, torch.randn(4, 4, **DOUBLE), mask=mask), f[:, 0].logsumexp(1))
    node, edge = marginals(f, torch.randn(4, 4, **DOUBLE), mask=mask)
    torch.testing.assert_close(node[:, 0], f[:, 0].softmax(1))
    assert (edge == 0).all() and (node[:, 1:] == 0).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("spread", [100.0, 1e4])
def test_single_precision_with_huge_scores(form, spread):
    p = problem(19, batch=8, time=30, tags=4, spread=spread, dtype=torch.float32)
    exact = {k: v.double() if v.is_floating_point() else v for k, v in p.items()}
    found, expected = run(p, form), run(exact, _lattice.log_space)
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(found[1].double(), expected[1], rtol=0, atol=2e-2 if spread > 1000 else 1e-4)  # ulp of 1e4: 1e-3
    assert found[0].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_state_that_was_rounded_away_and_then_decides(dtype):
    """Tag 0 leads at first and loses a little at every step; nothing vanishes at any single one. Tags do not mix."""
    steps = 80
    f = torch.zeros(1, steps, 2, dtype=dtype)
    f[0, 0, 0] = 500.0 if dtype == torch.float32 else 1500.0
    f[0, 1:, 0] = -20.0
    g = torch.tensor([[0.0, -INF], [-INF, 0.0]], dtype=dtype)
    for scores in (f, f.flip(1)):
        for last in (0.0, 90.0):  # and back again, so that the other tag is negligible seen from either end
            scores = scores.clone()
            scores[0, 0, 0] += last
            expected = scores[0].sum(0).double().logsumexp(0)
            with torch.no_grad():
                torch.testing.assert_close(log_partition(scores, g)[0].double(), expected, rtol=1e-6, atol=1e-5)
            node = marginals(scores, g).node
            torch.testing.assert_close(node, scores.sum(1, keepdim=True).softmax(2).expand_as(node), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("steps", "depth"), [(1, 150.0), (2, 60.0), (5, 25.0)])
def test_a_hill_between_two_valleys(steps, depth):
    """Bad for tag 1 at both ends and good in the middle, so neither the prefix nor the suffix alone shows that it wins."""
    f = torch.zeros(1, 60, 2)
    f[0, :steps, 1] = f[0, -steps:, 1] = -depth
    f[0, 5:55, 1] = 20.0
    g = torch.tensor([[0.0, -INF], [-INF, 0.0]])
    assert crf_sums._SCAN[0] > 60  # so the scaled form is the one that runs
    torch.testing.assert_close(log_partition(f, g), torch.tensor([1000 - 2 * steps * depth]))
    torch.testing.assert_close(marginals(f, g).node[0, :, 1], torch.ones(60))


@pytest.mark.parametrize("shared", [True, False])
def test_tree_of_ordinary_matrices_is_exact_up_to_its_limit_and_not_taken_beyond(shared):
    """Scores of two values only, as far apart as the limit allows: every product is as uneven as the bound says it can be."""
    limit = -math.log(torch.finfo(torch.float32).tiny) / 6  # twice (2 R + r) with R = r
    generator = torch.Generator().manual_seed(5)
    shape = (3, 3) if shared else (199, 2, 3, 3)
    f, g = (torch.randint(2, s, generator=generator).float() for s in ((200, 2, 3), shape))
    lengths = torch.tensor([200, 140])
    alive = torch.arange(200)[:, None] < lengths
    g = g if shared else g.masked_fill(~alive[1:, :, None, None], 0)
    counts = _lattice.count_active(lengths, 200)
    for share, narrow in ((0.99, True), (1.01, False)):
        lattice = _lattice.Lattice(f.masked_fill(~alive[..., None], 0) * limit * share, g * limit * share, lengths, counts, alive)
        assert _lattice_tree.is_narrow(lattice) is narrow
        exact = lattice._replace(emissions=lattice.emissions.double(), transitions=lattice.transitions.double())
        expected = _lattice.log_space(exact, gradient=True)
        for gradient in (True, False):
            found = _lattice_tree.scan_products(lattice, gradient=gradient)
            torch.testing.assert_close(found.log_z.double(), expected.log_z, rtol=1e-6, atol=0)
        found = _lattice_tree.scan_products(lattice, gradient=True)
        torch.testing.assert_close(found.node.double(), expected.node, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.edge.double(), expected.edge, rtol=1e-5, atol=1e-5)
    forbidden = lattice._replace(transitions=torch.where(g == 0, -INF, g))
    assert not _lattice_tree.is_narrow(forbidden) and not _lattice_tree.is_narrow(lattice._replace(emissions=f.where(f == 0, -INF)))


def test_ten_thousand_steps_in_single_precision():
    generator = torch.Generator().manual_seed(0)
    f, g = torch.randn(2, 10_000, 5, generator=generator), torch.randn(5, 5, generator=generator)
    lattice, _ = crf_sums.build_lattice(f.double(), g.double(), *torch.zeros(2, 5, **DOUBLE), torch.tensor([10_000, 10_000]))
    expected = _lattice_tree.scan(lattice, gradient=True)
    with torch.no_grad():
        torch.testing.assert_close(log_partition(f, g).double(), expected.log_z, rtol=1e-6, atol=0)
    single, _ = crf_sums.build_lattice(f, g, *torch.zeros(2, 5), torch.tensor([10_000, 10_000]))
    for form in (_lattice.scaled, _lattice_tree.scan):
        torch.testing.assert_close(form(single, gradient=True).node.double(), expected.node, rtol=0, atol=1e-4)


def test_forbidden_scores_have_gradient_zero_and_impossible_sequences_no_nan():
    for time in (6, 200):  # the recursion and the tree
        f = torch.randn(2, time, 3, requires_grad=True)
        with torch.no_grad():
            f[0, 2, 1] = -INF
            f[1, 3] = -INF
        g = torch.randn(3, 3)
        g[0, 2] = -INF
        g.requires_grad_()
        z = log_partition(f, g)
        assert z[0].isfinite() and z[1] == -INF
        by_f, by_g = torch.autograd.grad(z.sum(), (f, g))
        assert by_f[0, 2, 1] == 0 and by_g[0, 2] == 0 and (by_f[1] == 0).all()
        assert by_f.isfinite().all() and by_g.isfinite().all()
        torch.testing.assert_close(by_g.sum(), torch.tensor(time - 1.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    p = problem(23, time=8, dtype=dtype)
    single = {k: v.float() if v.is_floating_point() else v for k, v in p.items()}
    assert torch.equal(log_partition(**p), log_partition(**single)) and log_partition(**p).dtype == torch.float32
    f = p["emissions"].requires_grad_()
    assert torch.autograd.grad(log_partition(**p).sum(), f)[0].dtype == dtype


def test_mixed_precision_training_does_not_lower_the_sum():
    p = problem(23, time=60, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(log_partition(**p), log_partition(**p))
        inside = log_partition(**p)
    assert torch.equal(inside, log_partition(**p)) and inside.dtype == torch.float32


def test_layout_in_memory_does_not_matter_and_inputs_are_not_changed():
    p = problem(29, time=6)
    before = {k: v.clone() for k, v in p.items()}
    strided = p | {
        "emissions": p["emissions"].transpose(1, 2).contiguous().transpose(1, 2),
        "transitions": p["transitions"].mT.contiguous().mT,
    }
    assert torch.equal(log_partition(**strided), log_partition(**p))
    assert all(torch.equal(p[k], before[k]) for k in p)


def test_backward_after_evaluation_and_twice():
    p = problem(31)
    f = p["emissions"].requires_grad_()
    with torch.no_grad():
        log_partition(**p)
    z = log_partition(**p).sum()
    (first,) = torch.autograd.grad(z, f, retain_graph=True)
    (second,) = torch.autograd.grad(z, f)
    assert torch.equal(first, second)


def test_entropy_is_the_slope_at_temperature_one():
    p = problem(37, forbidden=0.0)
    beta = torch.ones((), **DOUBLE, requires_grad=True)
    z = log_partition(**{k: beta * v if v.is_floating_point() else v for k, v in p.items()})
    slopes = torch.stack([torch.autograd.grad(x, beta, retain_graph=True)[0] for x in z])
    torch.testing.assert_close(entropy(**p), (z - slopes).detach(), rtol=0, atol=1e-12)


def test_entropy_of_the_uniform_distribution_and_of_a_certain_path():
    uniform = entropy(torch.zeros(1, 5, 3, **DOUBLE), torch.zeros(3, 3, **DOUBLE))
    torch.testing.assert_close(uniform, torch.tensor([5 * math.log(3)], **DOUBLE))
    certain = 1000 * torch.nn.functional.one_hot(torch.tensor([[0, 1, 2]]), 3).double()
    assert entropy(certain, torch.zeros(3, 3, **DOUBLE)).abs() < 1e-12


def test_segmentations_are_counted():
    followers = torch.tensor([[0, 0, -INF, -INF], [-INF, -INF, 0, 0], [-INF, -INF, 0, 0], [0, 0, -INF, -INF]], **DOUBLE)
    start, end = torch.tensor([[0, 0, -INF, -INF], [0, -INF, -INF, 0]], **DOUBLE)
    for n in (1, 2, 12, 300):
        z = log_partition(torch.zeros(1, n, 4, **DOUBLE), followers, start=start, end=end)
        torch.testing.assert_close(z, torch.tensor([(n - 1) * math.log(2)], **DOUBLE))


@pytest.mark.parametrize("time", [1, 12, 150])
def test_log_likelihood_and_gradient_match_pytorch_crf(time):
    from torchcrf import CRF

    p = problem(41, batch=5, time=time, tags=6)
    tags = torch.randint(6, p["mask"].shape)
    peer, ours = CRF(6, batch_first=True).double(), LinearChainCRF(6).double()
    with torch.no_grad():
        for theirs, own, name in ((peer.transitions, ours.transition, "transitions"), (peer.start_transitions, ours.start, "start")):
            own.copy_(p[name]), theirs.copy_(p[name])
        peer.end_transitions.copy_(p["end"]), ours.end.copy_(p["end"])
    f = p["emissions"].requires_grad_()
    theirs, own = peer(f, tags, p["mask"], reduction="none"), ours(f, tags, p["mask"])
    torch.testing.assert_close(own, theirs, rtol=1e-12, atol=1e-10)
    for a, b in zip(
        torch.autograd.grad(own.sum(), (f, ours.transition, ours.start, ours.end)),
        torch.autograd.grad(theirs.sum(), (f, peer.transitions, peer.start_transitions, peer.end_transitions), materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_log_partition_and_marginals_match_torch_struct():
    from torch_struct import LinearChainCRF as Peer

    f, g = torch.randn(2, 7, 4, **DOUBLE), torch.randn(4, 4, **DOUBLE)
    potentials = f[:, 1:, :, None] + g.mT  # its order is [time, to, from]
    potentials[:, 0] += f[:, :1].transpose(1, 2).mT
    peer = Peer(potentials)
    torch.testing.assert_close(log_partition(f, g), peer.partition, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(marginals(f, g).edge, peer.marginals.mT, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(entropy(f, g), peer.entropy.flatten(), rtol=1e-9, atol=1e-9)


def test_refusals_name_the_argument():
    f, g = torch.zeros(2, 3, 4), torch.zeros(4, 4)
    tags = torch.zeros(2, 3, dtype=torch.int64)

    def mask(*rows):
        return torch.tensor(rows, dtype=torch.bool)

    cases = [
        (lambda: log_partition(f[:0], g), r"emissions must have shape \(batch, time, tags\), none of them 0, got \(0, 3, 4\)"),
        (lambda: log_partition(f[:, :0], g), "none of them 0"),
        (lambda: crf_sums.check_lengths(f[0], g, None), "emissions must have shape"),
        (lambda: crf_sums.check_lengths(f, g[:, :3], None), r"square over the 4 tags of emissions, or .* 2 x 2 steps, got shape \(4, 3\)"),
        (lambda: crf_sums.check_lengths(f, g, torch.ones(2, 3)), "mask must be boolean with shape"),
        (lambda: crf_sums.check_lengths(f, g, mask((1, 1), (1, 0))), "mask must be boolean with shape"),
        (lambda: log_partition(f, g, mask=mask((1, 1, 1), (0, 0, 0))), "mask must be true in its first column"),
        (lambda: log_partition(f, g, mask=mask((1, 0, 1), (1, 1, 1))), "padding on the right"),
        (lambda: crf_sums.prepare(f, g, torch.zeros(3), None), "start must have one score for each of the 4 tags"),
        (lambda: crf_sums.prepare(f, g, None, torch.zeros(5)), "end must have one score for each of the 4 tags"),
        (lambda: log_partition(f + math.nan, g), "must be finite or -inf, got nan"),
        (lambda: log_partition(f, g + INF), "must be finite or -inf"),
        (lambda: log_partition(f, g, start=torch.full((4,), math.nan)), "must be finite or -inf"),
        (lambda: path_score(f, g, tags + 4), r"tags must be in 0..3 where mask is true, got 4 to 4"),
        (lambda: path_score(f, g, tags - 1), "got -1 to -1"),
        (lambda: crf_sums.check_tags(tags[:, :2], mask((1, 1, 1), (1, 1, 1)), 4), r"tags must have shape \(2, 3\) like the emissions"),
        (lambda: sequence_nll(f, g.clone().fill_diagonal_(-INF), tags), "tags must be a possible path, but that of sequence 0"),
        (lambda: entropy(f, g - INF), "every sequence must have a possible path"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
