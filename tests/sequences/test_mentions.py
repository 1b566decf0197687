"""Tests of kexue.sequences.mentions: names joined and marked, their tags, and their count against sets of spans."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kexue.sequences.crf import path_score, tag_constraints
from kexue.sequences.mentions import KINDS, MarkedClause, held_out_mentions, marked_clauses, mention_counts, mention_tags
from kexue.sequences.segmentation import held_out_clauses, span_scores


def spans(tags):
    """Mentions of one clause, read off tag by tag: (first, last, kind)."""
    found, current = set(), None
    for k, tag in enumerate([*tags, 0]):
        kind = (tag + 1) // 2
        if current and (tag == 0 or tag % 2 == 1 or kind != current[1]):
            found.add((current[0], k - 1, current[1]))
            current = None
        if tag and current is None:
            current = (k, kind)
    return found


def test_family_and_given_name_are_one_mention():
    words = ["江", "泽民", "在", "北京", "会见", "李", "鹏", "。", "王", "克林顿", "国务院", "；", "李"]
    tags = ["nr", "nr", "p", "ns", "v", "nr", "nr", "w", "nr", "nr", "nt", "w", "nr"]
    first, second, third = marked_clauses(words, tags)
    assert first == (("江泽民", "在", "北京", "会见", "李鹏", "。"), ("nr", "", "ns", "", "nr", ""))
    assert second == (("王", "克林顿", "国务院", "；"), ("nr", "nr", "nt", ""))  # a word of three characters is a name of its own
    assert third == (("李",), ("nr",))


def test_a_joined_name_takes_no_third_word_along():
    assert marked_clauses(["李", "鹏", "朱", "镕基"], ["nr"] * 4)[0].words == ("李鹏", "朱镕基")
    assert marked_clauses(["李", "鹏"], ["nr", "n"])[0] == (("李", "鹏"), ("nr", ""))


def test_tags_are_those_of_the_constraints():
    clause = MarkedClause(("江泽民", "在", "京", "外交部"), ("nr", "", "ns", "nt"))
    coded = mention_tags(clause)
    assert coded.tolist() == [1, 2, 2, 0, 3, 5, 6, 6]
    rules = tag_constraints("BIO", KINDS)
    assert [rules.names[t] for t in coded.tolist()][:4] == ["B-nr", "I-nr", "I-nr", "O"]
    transitions, start, end = rules.scores()
    assert path_score(torch.zeros(1, 8, 7), transitions, coded[None], start=start, end=end) == 0


@given(st.lists(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=9), min_size=1, max_size=4))
def test_counts_match_sets_of_spans(clauses):
    lengths = torch.tensor([len(c) for c in clauses])
    predicted, gold = (torch.tensor([pair[i] for c in clauses for pair in c]) for i in (0, 1))
    counts = mention_counts(predicted, gold, lengths)
    for row, clause in zip(counts.tolist(), clauses, strict=True):
        guess, truth = (spans([pair[i] for pair in clause]) for i in (0, 1))
        assert row == [len(guess & truth), len(guess), len(truth)]


def test_counts_by_hand():
    gold = torch.tensor([1, 2, 2, 0, 3, 0, 1, 2])
    predicted = torch.tensor([1, 2, 0, 0, 5, 0, 2, 2])  # too short, wrong kind, and found by two I without a B
    counts = mention_counts(predicted, gold, torch.tensor([4, 4]))
    assert counts.tolist() == [[0, 1, 1], [1, 2, 2]]
    assert span_scores(counts).f1 == pytest.approx(1 / 3)


def test_nothing_predicted_and_nothing_to_find():
    none, some = torch.zeros(3, dtype=torch.int64), torch.tensor([1, 2, 0])
    assert mention_counts(none, none, torch.tensor([2, 1])).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert mention_counts(none, some, torch.tensor([3])).tolist() == [[0, 0, 1]]
    assert mention_counts(some, none, torch.tensor([3])).tolist() == [[0, 1, 0]]


def test_the_split_is_that_of_segmentation_where_no_name_is_joined():
    lines = [(("天", "。", f"第{i % 7}", "国"), ("n", "w", "m", "ns")) for i in range(40)]
    seen, fresh = held_out_mentions(lines)
    words, left = held_out_clauses([line[0] for line in lines])
    assert [c.words for c in seen] == words and [c.words for c in fresh] == left
    lines[-1] = (("地", "北京"), ("n", "ns"))
    assert held_out_mentions(lines)[1] == [(("地", "北京"), ("", "ns"))]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: marked_clauses(["天"], []), "tags must be one a word, got 0 tags for 1 words"),
        (lambda: held_out_mentions([], train=0.0), "train and test must be positive and at most 1 together, got 0.0 and 0.1"),
        (lambda: held_out_mentions([], train=0.95), "got 0.95 and 0.1"),
        (lambda: mention_counts(torch.tensor([0]), torch.tensor([0, 0]), torch.tensor([2])), "each of the 2 characters, got 1 and 2"),
        (lambda: mention_counts(torch.tensor([0]), torch.tensor([0]), torch.tensor([2])), "each of the 2 characters, got 1 and 1"),
        (lambda: mention_counts(torch.tensor([-1]), torch.tensor([0]), torch.tensor([1])), "tags must be at least 0, got -1"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
