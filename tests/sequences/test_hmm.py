"""The hidden Markov model against counts by hand, its law of total probability, and what it refuses."""

import itertools
import math

import pytest
import torch
from kexue.sequences.crf import log_partition, path_score, viterbi
from kexue.sequences.hmm import fit_hmm

INF = float("inf")


def tiny():
    """Two sequences, symbols 0..2, tags 0..1: (0:0, 1:1, 1:0) and (2:0, padding)."""
    symbols = torch.tensor([[0, 1, 1], [2, 0, 0]])
    tags = torch.tensor([[0, 1, 0], [0, 1, 1]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]], dtype=torch.bool)
    return symbols, tags, mask


def test_probabilities_are_the_counts():
    hmm = fit_hmm(*tiny(), num_symbols=3, num_tags=2, smoothing=0.5)
    torch.testing.assert_close(hmm.emission.exp(), torch.tensor([[1.5, 1.5, 1.5], [0.5, 1.5, 0.5]]) / torch.tensor([[4.5], [2.5]]))
    torch.testing.assert_close(hmm.transitions.exp(), torch.tensor([[0, 1 / 3], [1, 0]]))
    torch.testing.assert_close(hmm.start.exp(), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(hmm.end.exp(), torch.tensor([2 / 3, 0.0]))


def test_the_default_smoothing_is_a_tenth():
    a, b = fit_hmm(*tiny(), num_symbols=3, num_tags=2), fit_hmm(*tiny(), num_symbols=3, num_tags=2, smoothing=0.1)
    assert torch.equal(a.emission, b.emission)


def test_all_sequences_together_have_probability_one():
    """Sum over all lengths and words: with a mean length of two, lengths up to 60 hold all but a vanishing rest."""
    hmm = fit_hmm(*tiny(), num_symbols=3, num_tags=2)
    total = 0.0
    for n in range(1, 60):  # summing the symbols out leaves emissions of probability 1
        total += log_partition(torch.zeros(1, n, 2), hmm.transitions, start=hmm.start, end=hmm.end).exp().item()
    assert abs(total - 1) < 1e-5


def test_score_is_the_joint_log_probability():
    hmm = fit_hmm(*tiny(), num_symbols=3, num_tags=2)
    symbols, _, mask = tiny()
    for y in itertools.product(range(2), repeat=3):
        score = path_score(hmm.emissions(symbols), hmm.transitions, torch.tensor([y, y]), mask=mask, start=hmm.start, end=hmm.end)
        x = symbols[0].tolist()
        joint = hmm.start[y[0]] + hmm.end[y[2]] + sum(hmm.emission[b, a] for a, b in zip(x, y, strict=True))
        joint = joint + hmm.transitions[y[0], y[1]] + hmm.transitions[y[1], y[2]]
        torch.testing.assert_close(score[0], joint)


def test_it_recovers_tags_that_symbols_reveal():
    symbols = torch.randint(2, (50, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(20) < torch.randint(1, 21, (50, 1), generator=torch.Generator().manual_seed(1))
    hmm = fit_hmm(symbols, symbols, mask, num_symbols=2, num_tags=2)
    found = viterbi(hmm.emissions(symbols), hmm.transitions, mask=mask, start=hmm.start, end=hmm.end).tags[:, 0]
    assert torch.equal(found[mask], symbols[mask])


def test_a_tag_that_never_occurs_is_impossible_not_nan():
    hmm = fit_hmm(*tiny(), num_symbols=3, num_tags=3)
    assert (hmm.transitions[2] == -INF).all() and hmm.start[2] == -INF and hmm.end[2] == -INF
    assert not any(x.isnan().any() for x in hmm) and math.isclose(hmm.emission[2].exp().sum().item(), 1, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smoothing": 0.0}, "smoothing must be positive, got 0.0"),
        ({"num_symbols": 2}, r"symbols must be in 0..1 where mask is true, got 0 to 2"),
        ({"num_tags": 1}, r"tags must be in 0..0 where mask is true, got 0 to 1"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        fit_hmm(*tiny(), **({"num_symbols": 3, "num_tags": 2} | options))
