"""Best paths against enumeration and pytorch-crf, the two risks that the two decoders minimize, and samples against probabilities."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.sequences import crf_decode, crf_sums
from kexue.sequences.crf import log_partition, marginals, path_score, posterior_decode, sample, viterbi
from scipy.stats import chisquare

DOUBLE = {"dtype": torch.float64}
INF = float("inf")


def problem(seed, batch=3, time=5, tags=3, *, shared=True, forbidden=0.0, dtype=torch.float64, spread=1.0):
    generator = torch.Generator().manual_seed(seed)

    def scores(*shape):
        x = spread * torch.randn(*shape, generator=generator, **DOUBLE)
        return torch.where(torch.rand(*shape, generator=generator) < forbidden, -INF, x).to(dtype)

    lengths = torch.randint(1, time + 1, (batch,), generator=generator)
    lengths[-1] = time
    g = scores(tags, tags) if shared else scores(batch, time - 1, tags, tags)
    mask = torch.arange(time) < lengths[:, None]
    return {"emissions": scores(batch, time, tags), "transitions": g, "mask": mask, "start": scores(tags), "end": scores(tags)}


def ranked(p, row):
    """All paths of one sequence, padded with -1, by falling score; their scores come from path_score, which has its own oracle."""
    time, tags = p["emissions"].shape[1:]
    n = int(p["mask"][row].sum())
    paths = torch.tensor([[*y, *[-1] * (time - n)] for y in itertools.product(range(tags), repeat=n)])
    one = {k: v[row : row + 1] if k in ("emissions", "mask") or v.dim() == 4 else v for k, v in p.items()}
    many = {k: v.expand(len(paths), *v.shape[1:]) if k in ("emissions", "mask") or v.dim() == 4 else v for k, v in one.items()}
    scores = path_score(**many, tags=paths)
    order = scores.argsort(descending=True, stable=True)
    return paths[order], scores[order]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("time", "tags"), [(1, 1), (1, 4), (6, 1), (2, 3), (5, 3)])
def test_best_paths_match_enumeration_in_order(shared, time, tags):
    p = problem(time + 10 * tags, time=time, tags=tags, shared=shared)
    for n_best in (1, 2, 7):
        found = viterbi(**p, n_best=n_best)
        for row in range(3):
            paths, scores = ranked(p, row)
            m = min(n_best, len(paths))
            torch.testing.assert_close(found.scores[row, :m], scores[:m], rtol=0, atol=1e-12)
            assert torch.equal(found.tags[row, :m], paths[:m])
            assert (found.scores[row, m:] == -INF).all() and (found.tags[row, m:] == -1).all()


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), forbidden=st.sampled_from([0.0, 0.3, 0.6]), shared=st.booleans(), time=st.integers(1, 30))
def test_the_tree_the_recursion_and_the_best_of_many_agree(seed, forbidden, shared, time):
    p = problem(seed, batch=4, time=time, forbidden=forbidden, shared=shared)
    inputs = crf_sums.prepare(p["emissions"], p["transitions"], p["start"], p["end"])
    lengths = p["mask"].sum(1)
    lattice, order = crf_sums.build_lattice(*inputs, lengths)
    rest = {"mask": p["mask"], "start": p["start"], "end": p["end"]}
    best = viterbi(**p, n_best=3)
    possible = best.scores[:, 0] > -INF
    assert torch.equal(possible, log_partition(**p) > -INF)
    for form in (crf_decode._best_path, crf_decode._best_path_scan):
        path = form(lattice).T[order.argsort()].clamp_min(0)
        score = path_score(p["emissions"], p["transitions"], path, **rest)
        torch.testing.assert_close(score[possible], best.scores[possible, 0], rtol=0, atol=1e-11)
    assert torch.equal(viterbi(**p).tags[:, 0], best.tags[:, 0])
    assert (best.scores[:, :-1] >= best.scores[:, 1:]).all()
    assert ((best.tags >= 0) == (p["mask"][:, None] & (best.scores > -INF)[:, :, None])).all()


@pytest.mark.parametrize(("batch", "time", "tags"), [(4, 20, 5), (2, 100, 4), (3, 70, 30)])
def test_decoding_matches_pytorch_crf(batch, time, tags):
    from torchcrf import CRF

    p = problem(3, batch=batch, time=time, tags=tags, dtype=torch.float32)
    peer = CRF(tags, batch_first=True)
    with torch.no_grad():
        peer.transitions.copy_(p["transitions"]), peer.start_transitions.copy_(p["start"]), peer.end_transitions.copy_(p["end"])
    found = viterbi(**p).tags[:, 0]
    assert [row[m].tolist() for row, m in zip(found, p["mask"], strict=True)] == peer.decode(p["emissions"], p["mask"])


@pytest.mark.parametrize("tags", [3, 40])
def test_long_sequences_with_huge_scores_in_single_precision(tags):
    """Scores add up to 5e6, where float32 counts in halves; the scores themselves are multiples of 1/4096 and exact."""
    f = torch.randint(-20_000, 20_000, (1, 5000, tags), generator=torch.Generator().manual_seed(0)).float() / 4096 + 1000
    g = torch.randint(-20_000, 20_000, (tags, tags), generator=torch.Generator().manual_seed(1)).float() / 4096
    exact = viterbi(f.double(), g.double())
    assert path_score(f.double(), g.double(), viterbi(f, g).tags[:, 0]) == exact.scores[:, 0]


@pytest.mark.parametrize("time", [1, 2, 7, 64, 100])
def test_halving_with_ties_gives_a_path_of_the_best_score(time):
    """Integer scores tie all the time, half of the transitions are forbidden, and each middle must fit to both of its ends."""
    generator = torch.Generator().manual_seed(time)
    f = torch.randint(0, 2, (6, time, 4), generator=generator).double()
    stay = torch.eye(4, dtype=torch.bool)
    g = torch.randint(0, 2, (4, 4), generator=generator).double().masked_fill_(~(stay | stay.roll(1, 0)), -INF)
    lengths = torch.arange(6).mul(17).remainder(time) + 1
    lattice, order = crf_sums.build_lattice(*crf_sums.prepare(f, g, None, None), lengths)
    path = crf_decode._best_path_scan(lattice).T[order.argsort()]
    options = {"mask": torch.arange(time) < lengths[:, None]}
    assert torch.equal(path_score(f, g, path, **options), viterbi(f, g, n_best=2, **options).scores[:, 0])


def test_viterbi_is_the_limit_of_low_temperature():
    p = problem(9)
    p |= {k: 200 * v for k, v in p.items() if k != "mask"}
    assert torch.equal(viterbi(**p).tags[:, 0], posterior_decode(**p))
    torch.testing.assert_close(viterbi(**p).scores[:, 0], log_partition(**p))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_each_decoder_minimizes_its_own_risk(seed):
    p = problem(seed, batch=2, time=4)
    node, log_z = marginals(**p).node, log_partition(**p)
    tokens, sequence = posterior_decode(**p), viterbi(**p).tags[:, 0]
    for row in range(2):
        paths, scores = ranked(p, row)
        probability = (scores - log_z[row]).exp()
        n = int(p["mask"][row].sum())
        right = torch.stack([sum(node[row, k, y[k]] for k in range(n)) for y in paths])  # expected number of right tags
        expected = sum(node[row, k, tokens[row, k]] for k in range(n))
        torch.testing.assert_close(expected, right.max())
        assert probability[0] == probability.max() and torch.equal(paths[0], sequence[row])


def test_impossible_sequences_and_padding_are_minus_one():
    f = torch.zeros(2, 4, 3)
    f[0, 2] = -INF
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)
    for g in (torch.zeros(3, 3), torch.zeros(2, 3, 3, 3)):
        found = viterbi(f, g, mask=mask, n_best=2)
        assert found.scores[0].tolist() == [-INF, -INF] and found.tags[0].eq(-1).all()
        assert found.tags[1, :, 2:].eq(-1).all() and found.tags[1, :, :2].ge(0).all()
        assert posterior_decode(f, g, mask=mask)[0].eq(-1).all()
        assert viterbi(f, g, mask=mask).tags[0].eq(-1).all()


def test_padding_does_not_matter():
    p = problem(21, batch=5, time=80)
    junk = p | {"emissions": torch.where(p["mask"][:, :, None], p["emissions"], float("nan"))}
    for decode in (viterbi, lambda **x: viterbi(**x, n_best=3), lambda **x: (posterior_decode(**x),)):
        for a, b in zip(decode(**p), decode(**junk), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("shared", [True, False])
def test_samples_have_the_probabilities_of_the_paths(shared):
    """Chi-square over all 27 paths, on a fixed seed; 5 steps and 1 step beside them."""
    p = problem(5, batch=3, time=3, shared=shared)
    p["mask"] = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1]], dtype=torch.bool)
    size = 20_000
    drawn = sample(**p, size=size, generator=torch.Generator().manual_seed(1))
    assert drawn.shape == (3, size, 3)
    for row, z in enumerate(log_partition(**p)):
        paths, scores = ranked(p, row)
        same = (drawn[row][:, None] == paths).all(2)
        assert (same.sum(1) == 1).all()  # every sample is one of the paths, padding included
        assert chisquare(same.sum(0), size * (scores - z).exp()).pvalue > 1e-3


def test_samples_respect_constraints_and_seeds():
    g = torch.zeros(3, 3).fill_diagonal_(-INF)
    drawn = sample(torch.zeros(2, 30, 3), g, size=4, generator=torch.Generator().manual_seed(0))
    assert (drawn[:, :, 1:] != drawn[:, :, :-1]).all()
    assert torch.equal(drawn, sample(torch.zeros(2, 30, 3), g, size=4, generator=torch.Generator().manual_seed(0)))


def test_refusals():
    f, g = torch.zeros(2, 3, 4), torch.zeros(4, 4)
    cases = [
        (lambda: viterbi(f, g, n_best=0), "n_best must be at least 1, got 0"),
        (lambda: sample(f, g, size=0), "size must be at least 1, got 0"),
        (lambda: sample(f, g - INF), "every sequence must have a possible path"),
        (lambda: viterbi(f[:0], g), "emissions must have shape"),
        (lambda: sample(f, g, mask=torch.zeros(2, 3, dtype=torch.bool)), "mask must be true in its first column"),
        (lambda: posterior_decode(f * float("nan"), g), "must be finite or -inf"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
