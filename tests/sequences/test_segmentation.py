"""Tests of kexue.sequences.segmentation: tags and words, illegal sequences, span scores against sets of spans, the bootstrap."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kexue.sequences.segmentation import (
    bootstrap_f1,
    clauses,
    held_out_clauses,
    illegal,
    sbme_tags,
    span_counts,
    span_scores,
    words_of,
)

words = st.lists(st.text("天地玄黄", min_size=1, max_size=5), min_size=1, max_size=6)
any_tags = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=7), min_size=1, max_size=4)


def flat(sequences):
    return torch.tensor([tag for sequence in sequences for tag in sequence]), torch.tensor([len(sequence) for sequence in sequences])


def spans(tags):
    """The same rule, written again: a cut where the left tag ends a word or the right one begins it."""
    cuts = [0, *(i for i in range(1, len(tags)) if tags[i - 1] in (0, 3) or tags[i] in (0, 1)), len(tags)]
    return set(itertools.pairwise(cuts))


@given(words)
def test_tags_and_words_round_trip(clause):
    text = "".join(clause)
    tags = sbme_tags(clause)
    assert words_of(text, tags) == clause
    assert not illegal(tags, torch.tensor([len(text)])).any()


def test_tags_of_a_clause_by_hand():
    assert sbme_tags(["我", "喜欢", "科学空间"]).tolist() == [0, 1, 3, 1, 2, 2, 3]
    assert sbme_tags([]).tolist() == [] and words_of("", sbme_tags([])) == []


def test_illegal_matches_the_grammar_enumerated():
    """Every sequence of up to four tags: legal exactly if some segmentation has it as its code."""
    for n in range(1, 5):
        codes = {
            tuple(sbme_tags([size * "字" for size in sizes]).tolist())
            for k in range(1, n + 1)
            for sizes in itertools.product(range(1, n + 1), repeat=k)
            if sum(sizes) == n
        }
        every = list(itertools.product(range(4), repeat=n))
        found = illegal(*flat(every))
        assert [bool(x) for x in found] == [sequence not in codes for sequence in every]
        assert len(codes) == 2 ** (n - 1)


@given(any_tags, st.randoms())
def test_span_counts_match_sets_of_spans(gold, random):
    predicted = [[random.randint(0, 3) for _ in sequence] for sequence in gold]
    counts = span_counts(flat(predicted)[0], *flat(gold))
    expected = [[len(spans(p) & spans(g)), len(spans(p)), len(spans(g))] for p, g in zip(predicted, gold, strict=True)]
    assert counts.tolist() == expected


def test_scores_by_hand_and_at_the_extremes():
    counts = torch.tensor([[2, 3, 4], [1, 1, 2]])
    assert span_scores(counts) == pytest.approx((3 / 4, 3 / 6, 6 / 10))
    assert span_scores(torch.tensor([[0, 2, 3]])) == (0.0, 0.0, 0.0)
    assert span_scores(torch.zeros(0, 3, dtype=torch.int64)) == (0.0, 0.0, 0.0)
    same, lengths = flat([[1, 2, 3, 0], [0]])
    assert span_scores(span_counts(same, same, lengths)) == (1.0, 1.0, 1.0)


def test_bootstrap_has_the_delta_method_s_standard_deviation():
    """F1 = 2 sum(c) / sum(p + g): to first order its error is that of the mean residual 2c - F (p + g) over the mean of p + g."""
    generator = torch.Generator().manual_seed(3)
    gold = torch.randint(5, 40, (2000,), generator=generator)
    correct = (gold * (0.7 + 0.3 * torch.rand(2000, generator=generator))).long()
    counts = torch.stack([correct, gold, gold], 1)
    f1 = span_scores(counts).f1
    residual = 2 * counts[:, 0] - f1 * (counts[:, 1] + counts[:, 2])
    expected = float(residual.double().std() / 2000**0.5 / (2 * gold.double().mean()))
    draws = bootstrap_f1(counts, draws=2000, generator=generator)
    assert float(draws.mean()) == pytest.approx(f1, abs=4 * expected / 2000**0.5 + expected**2)
    assert float(draws.std()) == pytest.approx(expected, rel=4 / (2 * 2000) ** 0.5)  # four standard errors of a standard deviation


def test_paired_bootstrap_of_equal_taggers_is_zero():
    counts = torch.tensor([[2, 3, 4], [1, 1, 2], [5, 6, 5]])
    generator = torch.Generator().manual_seed(0)
    assert (bootstrap_f1(counts, counts, draws=20, generator=generator) == 0).all()
    better = counts + torch.tensor([1, 0, 0])
    assert (bootstrap_f1(better, counts, draws=20, generator=generator) > 0).all()


def test_clauses_end_at_their_marks():
    lines = [["今天", "。", "明天", "好", "！", "再见"], ["。"], []]
    assert clauses(lines) == [("今天", "。"), ("明天", "好", "！"), ("再见",), ("。",)]
    assert clauses(lines, ends="好") == [("今天", "。", "明天", "好"), ("！", "再见"), ("。",)]


def test_held_out_clauses_leave_out_what_training_contains():
    lines = [["甲", "。"], ["乙丙"], ["丁"]] * 3 + [["乙", "丙", "。", "甲", "。", "戊"]]
    train, test = held_out_clauses(lines, train=0.9, test=0.1)
    assert len(train) == 9 and test == [("乙", "丙", "。"), ("戊",)]
    train, test = held_out_clauses(lines, train=0.1, test=0.1)
    assert train == [("甲", "。")] and test == [("乙", "丙", "。"), ("戊",)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clauses([["甲"]], ends=""), "ends must name at least one character"),
        (lambda: clauses([["甲", ""]]), "a word of lines is empty"),
        (lambda: held_out_clauses([["甲"]], train=0.9, test=0.2), "at most 1 together, got 0.9 and 0.2"),
        (lambda: held_out_clauses([["甲"]], train=0.0), "train and test must be positive"),
        (lambda: sbme_tags(["甲", ""]), "words must not be empty"),
        (lambda: words_of("甲乙", torch.tensor([0])), "got 1 tags for 2 characters"),
        (lambda: words_of("甲", torch.tensor([4])), "got values from 4 to 4"),
        (lambda: illegal(torch.tensor([0, -1]), torch.tensor([2])), "got values from -1 to 0"),
        (lambda: illegal(torch.tensor([0]), torch.tensor([2])), r"sum to the 1 characters, got \[2\]"),
        (lambda: illegal(torch.tensor([0]), torch.tensor([1, 0])), "lengths must be at least 1"),
        (lambda: span_counts(torch.tensor([0]), torch.tensor([0, 0]), torch.tensor([2])), "got 1 and 2"),
        (lambda: bootstrap_f1(torch.ones(2, 3, dtype=torch.int64), draws=0), "must be at least 1, got 0 and 2"),
        (lambda: bootstrap_f1(torch.ones(0, 3, dtype=torch.int64)), "got 1000 and 0"),
        (lambda: bootstrap_f1(torch.ones(2, 3, dtype=torch.int64), torch.ones(3, 3, dtype=torch.int64)), "the same 2 clauses, got 3"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
