"""Tests of kexue.sequences.memm: losses by enumeration and cross-entropy, both equivalences with the CRF, laws, extremes, refusals."""

import itertools
import math

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.sequences import crf
from kexue.sequences.memm import lookahead_logits, memm_nll, memm_potentials, pseudo_nll
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

DIRECTIONS = ("forward", "backward", "both")
INF = math.inf


def normal(*shape, seed=0, size=1.0, dtype=torch.float64):
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def chain(time=5, tags=3, seed=0, size=1.5):
    """Emissions for every path of a random chain, its transitions and the paths."""
    paths = torch.tensor(list(itertools.product(range(tags), repeat=time)))
    return normal(1, time, tags, seed=seed, size=size).expand(len(paths), -1, -1), normal(tags, tags, seed=seed + 1000, size=size), paths


def score(f, g, paths):
    """The definition of S(y), term by term."""
    steps = range(paths.shape[1])
    rows = torch.arange(len(paths))
    return sum(f[rows, k, paths[:, k]] for k in steps) + sum(g[paths[:, k - 1], paths[:, k]] for k in steps if k)


def by_definition(f, g, path, direction):
    """-log P of one path, as the formula has it."""
    time, total = len(path), 0.0
    for k in range(time):
        if direction == "forward":
            logits = f[k] + (g[path[k - 1]] if k else 0)
        elif direction == "backward":
            logits = f[k] + (g[:, path[k + 1]] if k + 1 < time else 0)
        else:
            logits = f[k] + (g[path[k - 1]] if k else 0) + (g[:, path[k + 1]] if k + 1 < time else 0)
        total = total - torch.log_softmax(logits, 0)[path[k]]
    return total


def padded(lengths, tags=4, seed=0):
    time = max(lengths)
    mask = torch.arange(time) < torch.tensor(lengths)[:, None]
    y = torch.randint(tags, (len(lengths), time), generator=torch.Generator().manual_seed(seed))
    return normal(len(lengths), time, tags, seed=seed, size=2), normal(tags, tags, seed=seed + 1), y, mask


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_nll_matches_the_definition_step_by_step(direction):
    f, g, y, mask = padded([6, 1, 4, 2])
    got = memm_nll(f, g, y, mask=mask, direction=direction)
    want = [by_definition(f[b, :n], g, y[b, :n].tolist(), direction) for b, n in enumerate(mask.sum(1))]
    torch.testing.assert_close(got, torch.stack(want), rtol=1e-13, atol=0)


def test_pseudo_nll_matches_the_definition_step_by_step():
    f, g, y, mask = padded([6, 1, 4, 2])
    want = [by_definition(f[b, :n], g, y[b, :n].tolist(), "pseudo") for b, n in enumerate(mask.sum(1))]
    torch.testing.assert_close(pseudo_nll(f, g, y, mask=mask), torch.stack(want), rtol=1e-13, atol=0)


def test_nll_is_the_cross_entropy_of_all_steps():
    f, g, y, _ = padded([7, 7, 7])
    logits = f.clone()
    logits[:, 1:] += g[y[:, :-1]]
    want = F.cross_entropy(logits.reshape(-1, 4), y.reshape(-1), reduction="sum")
    torch.testing.assert_close(memm_nll(f, g, y, direction="forward").sum(), want, rtol=1e-14, atol=0)


def test_both_directions_are_the_mean_and_the_default():
    f, g, y, mask = padded([5, 3])
    forward, backward = (memm_nll(f, g, y, mask=mask, direction=d) for d in ("forward", "backward"))
    torch.testing.assert_close(memm_nll(f, g, y, mask=mask), (forward + backward) / 2, rtol=1e-15, atol=0)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_probabilities_of_all_paths_sum_to_one(direction):
    f, g, paths = chain()
    assert memm_nll(f, g, paths, direction=direction).neg().exp().sum().item() == pytest.approx(1, abs=1e-13)


@pytest.mark.parametrize("direction", DIRECTIONS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), time=st.integers(1, 5), tags=st.integers(1, 3))
def test_potentials_have_the_path_scores_of_the_memm(direction, seed, time, tags):
    f, g, paths = chain(time, tags, seed)
    emissions, transitions, log_const = memm_potentials(f, g, direction=direction)
    torch.testing.assert_close(
        score(emissions, transitions, paths) - log_const, -memm_nll(f, g, paths, direction=direction), rtol=0, atol=1e-12
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), time=st.integers(1, 5), tags=st.integers(1, 3))
def test_crf_is_the_memm_of_the_lookahead_logits(seed, time, tags):
    f, g, paths = chain(time, tags, seed)
    logits = lookahead_logits(f[:1], g).expand_as(f)
    log_p = torch.log_softmax(score(f, g, paths), 0)
    torch.testing.assert_close(-memm_nll(logits, g, paths, direction="forward"), log_p, rtol=0, atol=1e-12)


def test_lookahead_logits_take_masks_and_start_and_end_scores():
    f, g, y, mask = padded([6, 1, 4])
    s, e = normal(4, seed=5), normal(4, seed=6)
    logits = lookahead_logits(f, g, mask=mask, start=s, end=e)
    want = crf.sequence_nll(f, g, y, mask=mask, start=s, end=e)
    torch.testing.assert_close(memm_nll(logits, g, y, mask=mask, direction="forward"), want, rtol=1e-12, atol=0)
    assert not logits[~mask].any()
    torch.testing.assert_close(lookahead_logits(f, g, mask=mask)[1, 0], f[1, 0], rtol=0, atol=0)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_log_partition_of_the_potentials_is_log_const(direction):
    f, g, _, mask = padded([9, 1, 4, 2])
    emissions, transitions, log_const = memm_potentials(f, g, mask=mask, direction=direction)
    torch.testing.assert_close(crf.log_partition(emissions, transitions, mask=mask), log_const, rtol=0, atol=1e-10)


def test_bhattacharyya_coefficient_is_that_of_enumeration_and_at_most_one():
    for seed in range(20):
        f, g, paths = chain(seed=seed)
        root = torch.stack([memm_nll(f, g, paths, direction=d) for d in ("forward", "backward")]).mean(0).neg().exp()
        emissions, transitions, log_const = memm_potentials(f[:1], g)
        got = (crf.log_partition(emissions, transitions) - log_const).exp().item()
        assert got == pytest.approx(root.sum().item(), abs=1e-12)
        assert 0 < got < 1


def test_coefficient_is_one_for_a_stationary_chain_even_if_it_is_not_reversible():
    step = normal(4, 4, seed=3).softmax(1)
    pi = torch.linalg.matrix_power(step, 1000)[0]
    joint = pi[:, None] * step
    g = (joint / torch.outer(pi, pi)).log()
    f = pi.log().expand(1, 8, 4)
    emissions, transitions, log_const = memm_potentials(f, g)
    torch.testing.assert_close(crf.log_partition(emissions, transitions), log_const, rtol=0, atol=1e-12)
    y = torch.tensor([[0, 3, 1, 1, 2, 0, 3, 2]])
    torch.testing.assert_close(memm_nll(f, g, y, direction="forward"), memm_nll(f, g, y, direction="backward"), rtol=0, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_both_directions_are_piecewise_pseudolikelihood(seed):
    f, g, paths = chain(seed=seed)
    total = torch.log_softmax(f[0, 0], 0)[paths[:, 0]] + torch.log_softmax(f[0, -1], 0)[paths[:, -1]]
    for k in range(1, paths.shape[1]):
        edge = g + f[0, k - 1, :, None] + f[0, k]
        total = total + sum(torch.log_softmax(edge, d)[paths[:, k - 1], paths[:, k]] for d in (0, 1))
    torch.testing.assert_close(2 * memm_nll(f, g, paths), -total, rtol=0, atol=1e-12)


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_a_prefix_does_not_depend_on_later_scores(keep):
    f, g, paths = chain()
    other = f.clone()
    other[:, keep:] = normal(1, 5 - keep, 3, seed=9, size=4)

    def prefix(x):
        p = memm_nll(x, g, paths, direction="forward").neg().exp()
        return p.view([3] * keep + [-1]).sum(-1)

    torch.testing.assert_close(prefix(f), prefix(other), rtol=0, atol=1e-14)


def test_reversing_a_sequence_exchanges_the_directions():
    f, g, y, _ = padded([6, 6])
    want = memm_nll(f.flip(1), g.T, y.flip(1), direction="forward")
    torch.testing.assert_close(memm_nll(f, g, y, direction="backward"), want, rtol=1e-14, atol=0)
    emissions, _, log_const = memm_potentials(f.flip(1), g.T, direction="forward")
    backward, _, const = memm_potentials(f, g, direction="backward")
    torch.testing.assert_close(backward, emissions.flip(1), rtol=0, atol=1e-13)
    torch.testing.assert_close(const, log_const, rtol=0, atol=1e-14)


def test_ancestral_samples_have_the_marginals_of_the_equivalent_chain():
    f, g, _ = chain(4, 3, seed=2)
    draws, generator = 20_000, torch.Generator().manual_seed(0)
    y = torch.multinomial(f[0, 0].softmax(0), draws, replacement=True, generator=generator)
    for k in range(1, 4):
        y = torch.multinomial((g[y] + f[0, k]).softmax(1), 1, generator=generator)[:, 0]
    emissions, transitions, _ = memm_potentials(f[:1], g, direction="forward")
    p = crf.marginals(emissions, transitions).node[0, -1]
    assert scipy.stats.chisquare(y.bincount(minlength=3).numpy(), (draws * p).numpy()).pvalue > 1e-3


def test_optimum_is_that_of_logistic_regression_on_the_previous_tag():
    generator = torch.Generator().manual_seed(1)
    x, y = normal(40, 8, 2, seed=1), torch.randint(3, (40, 8), generator=generator)
    w, g = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True), torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([w, g], max_iter=200, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = memm_nll(x @ w, g, y, direction="forward").sum() + (w.square().sum() + g.square().sum()) / 2
        value.backward()
        return value

    optimizer.step(loss)
    previous = torch.cat([torch.zeros(40, 1, 3), F.one_hot(y[:, :-1], 3)], 1)
    design = torch.cat([x, previous], 2).reshape(-1, 5).numpy()
    peer = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-10, max_iter=1000).fit(design, y.reshape(-1).numpy())
    torch.testing.assert_close(torch.cat([w, g]).detach(), torch.from_numpy(peer.coef_.T), rtol=0, atol=1e-5)


def test_pseudolikelihood_is_consistent_where_the_bidirectional_loss_is_not():
    """Expected losses under the true CRF: the gradient vanishes at the truth for pseudolikelihood only."""
    f, g, paths = chain(4, 2, seed=4)
    p = torch.softmax(score(f, g, paths), 0)
    for loss, consistent in ((pseudo_nll, True), (memm_nll, False)):
        free = [f[:1].clone().requires_grad_(), g.clone().requires_grad_()]
        value = (p * loss(free[0].expand_as(f), free[1], paths)).sum()
        largest = max(x.abs().max().item() for x in torch.autograd.grad(value, free))
        assert largest < 1e-13 if consistent else largest > 1e-2


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_nothing_under_padding_matters(direction):
    f, g, y, mask = padded([6, 1, 4])
    other_f, other_y = f.clone(), y.clone()
    other_f[~mask], other_y[~mask] = math.nan, -100
    options = {"mask": mask, "direction": direction}
    assert torch.equal(memm_nll(f, g, y, **options), memm_nll(other_f, g, other_y, **options))
    assert torch.equal(pseudo_nll(f, g, y, mask=mask), pseudo_nll(other_f, g, other_y, mask=mask))
    for a, b in zip(memm_potentials(f, g, **options), memm_potentials(other_f, g, **options), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(lookahead_logits(f, g, mask=mask), lookahead_logits(other_f, g, mask=mask))
    other_f.requires_grad_()
    memm_nll(other_f, g, y, **options).sum().backward()
    assert torch.isfinite(other_f.grad).all() and not other_f.grad[~mask].any()
    for b, n in enumerate((6, 1, 4)):
        alone = memm_nll(f[b : b + 1, :n], g, y[b : b + 1, :n], direction=direction)
        torch.testing.assert_close(memm_nll(f, g, y, **options)[b], alone[0], rtol=1e-14, atol=0)
        emissions, _, const = memm_potentials(f[b : b + 1, :n], g, direction=direction)
        torch.testing.assert_close(memm_potentials(f, g, **options)[0][b, :n], emissions[0], rtol=0, atol=1e-14)
        torch.testing.assert_close(memm_potentials(f, g, **options)[2][b], const[0], rtol=1e-14, atol=0)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradcheck_with_padding(direction):
    f, g, y, mask = padded([3, 1], tags=3)
    f, g = f.requires_grad_(), g.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: memm_nll(a, b, y, mask=mask, direction=direction), (f, g))
    assert torch.autograd.gradcheck(lambda a, b: pseudo_nll(a, b, y, mask=mask), (f, g))
    assert torch.autograd.gradcheck(lambda a, b: memm_potentials(a, b, mask=mask, direction=direction), (f, g))
    assert torch.autograd.gradcheck(lambda a, b: lookahead_logits(a, b, mask=mask), (f, g))


def test_forbidden_transitions_give_finite_losses_and_zero_gradients():
    f, g, y, _ = padded([5], tags=3)
    y = torch.tensor([[0, 1, 0, 1, 0]])
    g = g[:3, :3].clone()
    g[0, 2] = g[2, 0] = -INF
    f[0, 3, 2] = -INF
    f, g = f.requires_grad_(), g.requires_grad_()
    (memm_nll(f, g, y).sum() + pseudo_nll(f, g, y).sum()).backward()
    assert torch.isfinite(f.grad).all() and torch.isfinite(g.grad).all()
    assert g.grad[0, 2] == g.grad[2, 0] == f.grad[0, 3, 2] == 0
    with pytest.raises(ValueError, match="tags must have positive probability, got tag 2 with none at step 1 of sequence 0"):
        memm_nll(f, g, torch.tensor([[0, 2, 1, 1, 1]]), direction="forward")


def test_a_state_without_exit_matters_only_to_paths_that_visit_it():
    f, g, _ = chain(4, 3, seed=7)
    f, g = f[:1].clone(), g.clone()
    g[2] = -INF  # nothing follows tag 2
    fine, dead, at_end = (torch.tensor([p]) for p in ([0, 1, 1, 0], [0, 2, 1, 0], [0, 1, 1, 2]))
    assert torch.isfinite(memm_nll(f, g, fine)) and torch.isfinite(memm_nll(f, g, at_end, direction="forward"))
    with pytest.raises(ValueError, match="positive probability"):
        memm_nll(f, g, dead, direction="forward")
    f, g = f.requires_grad_(), g.requires_grad_()
    emissions, transitions, log_const = memm_potentials(f, g, direction="forward")
    assert (emissions[0, :3, 2] == -INF).all() and torch.isfinite(emissions[0, 3]).all() and torch.isfinite(emissions[0, :, :2]).all()
    got = crf.path_score(emissions, transitions, at_end) - log_const
    torch.testing.assert_close(got, -memm_nll(f, g, at_end, direction="forward"), rtol=0, atol=1e-12)
    got.sum().backward()
    assert torch.isfinite(f.grad).all() and torch.isfinite(g.grad).all() and not g.grad[2].any()
    lost = crf.log_partition(emissions, transitions) - log_const
    assert lost.item() < -1e-3  # the mass that the steps hand to tag 2 is gone
    backward = memm_potentials(f, g.mT, direction="backward")[0]
    assert (backward[0, 1:, 2] == -INF).all() and torch.isfinite(backward[0, 0]).all()


def test_scores_far_apart_keep_their_digits():
    f, g, paths = chain(4, 3, seed=1, size=300.0)
    emissions, transitions, log_const = memm_potentials(f, g, direction="forward")
    torch.testing.assert_close(
        score(emissions, transitions, paths) - log_const, -memm_nll(f, g, paths, direction="forward"), rtol=1e-12, atol=1e-10
    )
    logits = lookahead_logits(f, g)
    log_p = torch.log_softmax(score(f, g, paths), 0)
    torch.testing.assert_close(-memm_nll(logits, g, paths, direction="forward"), log_p, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    f, g, y, mask = padded([5, 2])
    got = memm_nll(f.to(dtype), g.to(dtype), y, mask=mask)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, memm_nll(f.to(dtype).float(), g.to(dtype).float(), y, mask=mask), rtol=0, atol=0)
    assert memm_potentials(f.to(dtype), g.to(dtype))[0].dtype == lookahead_logits(f.to(dtype), g.to(dtype)).dtype == torch.float32


def test_mixed_precision_takes_the_wider_one_and_small_integers_are_tags():
    f, g, y, _ = padded([4])
    assert memm_nll(f.float(), g, y).dtype == torch.float64
    torch.testing.assert_close(memm_nll(f, g, y.to(torch.int32)), memm_nll(f, g, y), rtol=0, atol=0)
    torch.testing.assert_close(memm_nll(f.mT.contiguous().mT, g, y), memm_nll(f, g, y), rtol=1e-15, atol=0)
    assert memm_nll(f[:0], g, y[:0]).shape == (0,)


def test_one_step_is_a_softmax():
    f, g, y, _ = padded([1, 1])
    want = F.cross_entropy(f[:, 0], y[:, 0], reduction="none")
    for direction in DIRECTIONS:
        torch.testing.assert_close(memm_nll(f, g, y, direction=direction), want, rtol=1e-15, atol=0)
    torch.testing.assert_close(pseudo_nll(f, g, y), want, rtol=1e-15, atol=0)
    emissions, _, log_const = memm_potentials(f, g)
    torch.testing.assert_close(emissions, f, rtol=0, atol=0)
    torch.testing.assert_close(log_const, f[:, 0].logsumexp(1), rtol=1e-15, atol=0)


def test_refusals_name_the_argument():
    f, g, y, mask = padded([3, 2])
    left = mask.flip(1)
    for call, message in [
        (lambda: memm_nll(f, g, y, direction="sideways"), "direction must be 'forward', 'backward' or 'both', got 'sideways'"),
        (lambda: memm_potentials(f, g, direction="sideways"), "direction must be"),
        (lambda: memm_nll(f[:, :0], g, y[:, :0]), r"emissions must have at least one step and one tag, got shape \(2, 0, 4\)"),
        (lambda: memm_nll(f, g, y, mask=left), "mask must be True from the first step"),
        (lambda: lookahead_logits(f, g, mask=torch.zeros_like(mask)), "mask must be True from the first step"),
        (lambda: memm_nll(f, g, y.clone().fill_(4), mask=mask), r"tags must lie in 0\.\.3 where the mask is True, got 0 to 4"),
        (lambda: memm_nll(f, g, y.clone().fill_(-1)), r"tags must lie in 0\.\.3"),
        (lambda: memm_nll(f * math.nan, g, y), "positive probability"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_refusals_of_shapes_name_the_argument():
    nll, logits = (getattr(function, "__wrapped__", function) for function in (memm_nll, lookahead_logits))  # beartype would speak first
    f, g, y, mask = padded([3, 2])
    with pytest.raises(ValueError, match=r"transitions must be square over the 4 tags of emissions, got shape \(4, 3\)"):
        nll(f, g[:, :3], y)
    with pytest.raises(ValueError, match=r"tags must have the shape \(2, 3\) of emissions, got \(2, 2\)"):
        nll(f, g, y[:, :2])
    with pytest.raises(ValueError, match=r"mask must have the shape \(2, 3\) of emissions, got \(2, 2\)"):
        logits(f, g, mask=mask[:, :2])
    with pytest.raises(ValueError, match=r"start must have a score for each of the 4 tags of emissions, got shape \(1,\)"):
        logits(f, g, start=f[0, 0, :1])
    with pytest.raises(ValueError, match=r"end must have a score for each of the 4 tags of emissions, got shape \(3,\)"):
        logits(f, g, end=f[0, 0, :3])
