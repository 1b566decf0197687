"""Unigram segmentation against enumeration of all segmentations."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.sequences.unigram import UnigramSegmenter

models = st.dictionaries(st.text("abc", min_size=1, max_size=4), st.integers(1, 50), min_size=1, max_size=10)
strings = st.text("abcd", min_size=1, max_size=9)


def segmentations(string):
    for marks in itertools.product((False, True), repeat=len(string) - 1):
        words = [string[0]]
        for c, new in zip(string[1:], marks, strict=True):
            if new:
                words.append(c)
            else:
                words[-1] += c
        yield words


def log_probability(words, counts):
    total, score = sum(counts.values()), 0.0
    for word in words:
        if word in counts:
            score += math.log(counts[word] / total)
        elif len(word) == 1:
            score -= math.log(total + len(counts))
        else:
            return -math.inf
    return score


def all_scores(string, counts):
    return sorted((s for words in segmentations(string) if (s := log_probability(words, counts)) > -math.inf), reverse=True)


@given(models, strings)
@settings(deadline=None)
def test_segment_is_the_best_of_all(counts, string):
    (words,) = UnigramSegmenter(counts).segment([string])
    assert "".join(words) == string
    assert log_probability(words, counts) == pytest.approx(all_scores(string, counts)[0], abs=1e-9)


@given(models, st.lists(strings, min_size=1, max_size=4))
@settings(deadline=None)
def test_log_likelihood_is_the_sum_over_all(counts, several):
    expected = sum(np.logaddexp.reduce(all_scores(s, counts)) for s in several)
    assert UnigramSegmenter(counts).log_likelihood([", ".join(several), ""]) == pytest.approx(expected, abs=1e-8)
    assert UnigramSegmenter(counts).log_likelihood(several) == pytest.approx(expected, abs=1e-8)


@given(models, strings, st.integers(1, 7))
@settings(deadline=None)
def test_n_best_are_the_best_and_distinct(counts, string, k):
    found = UnigramSegmenter(counts).n_best(string, k)
    assert [score for _, score in found] == pytest.approx(all_scores(string, counts)[:k], abs=1e-9)
    assert len({tuple(words) for words, _ in found}) == len(found)
    for words, score in found:
        assert "".join(words) == string and log_probability(words, counts) == pytest.approx(score, abs=1e-9)


@given(models, st.lists(strings, min_size=1, max_size=4))
@settings(deadline=None)
def test_one_step_of_em_gives_expected_counts(counts, several):
    expected = dict.fromkeys(counts, 0.0)
    for string in several:
        options = [(words, log_probability(words, counts)) for words in segmentations(string)]
        total = np.logaddexp.reduce([s for _, s in options])
        for words, score in options:
            for word in words:
                if word in expected:
                    expected[word] += math.exp(score - total)
    model = UnigramSegmenter(counts)
    if sum(expected.values()) == 0:
        with pytest.raises(ValueError, match="at least one word of the vocabulary"):
            model.fit_em(several)
        return
    before = model.log_likelihood(several)
    values = model.fit_em(several)
    share = np.array([max(expected[w], 1e-12) for w in model.words])
    assert np.exp(model.log_probability) == pytest.approx(share / share.sum(), rel=1e-7, abs=1e-13)
    assert values == pytest.approx([before, model.log_likelihood(several)], abs=1e-8)


@given(models, st.lists(strings, min_size=1, max_size=5))
@settings(deadline=None)
def test_em_never_lowers_the_likelihood(counts, several):
    model = UnigramSegmenter({**dict.fromkeys("abc", 1), **counts})
    if any(c in "abc" for s in several for c in s):
        values = model.fit_em(several, 6)
        assert len(values) == 7 and all(b >= a - 1e-8 for a, b in itertools.pairwise(values))


def test_separators_stand_alone_and_lines_are_kept():
    model = UnigramSegmenter({"ab": 5, "a": 1, "b": 1})
    assert model.segment(["ab, xab!", "", "b"]) == [["ab", ",", " ", "x", "ab", "!"], [], ["b"]]
    assert model.segment([]) == [] and model.log_likelihood(["", "!"]) == 0


def test_ties_take_the_shorter_last_word():
    assert UnigramSegmenter({"ab": 1, "c": 1, "a": 1, "bc": 1}).segment(["abc"]) == [["ab", "c"]]


def test_long_runs_and_long_words():
    model = UnigramSegmenter({"a" * 30: 1, "a": 1})
    assert model.segment(["a" * 61]) in ([["a" * 30, "a" * 30, "a"]], [["a", "a" * 30, "a" * 30]])


def test_words_with_separators_are_never_found():
    model = UnigramSegmenter({"a\nb": 9, "a,b": 9, "a": 1, "b": 1})
    assert model.segment(["a,b", "a\nb", "a.b"]) == [["a", ",", "b"], ["a", "\n", "b"], ["a", ".", "b"]]


def test_n_best_of_nothing_is_the_empty_segmentation():
    assert UnigramSegmenter({"a": 1}).n_best("", 3) == [([], 0.0)]


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="at least one word, got none"):
        UnigramSegmenter({})
    for bad in ({"": 1}, {"a": 0}, {"a": -2.0}, {"a": math.inf}, {"a": math.nan}):
        with pytest.raises(ValueError, match="positive counts"):
            UnigramSegmenter(bad)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        UnigramSegmenter({"a": 1}).n_best("a", 0)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        UnigramSegmenter({"a": 1}).fit_em(["a"], 0)
