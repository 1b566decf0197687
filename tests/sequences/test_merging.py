"""Merging with a queue against a recount after every step."""

import itertools
import math
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue import data
from kexue.sequences.entropy_words import code_length, merge_gain
from kexue.sequences.merging import EntropyMerger
from kexue.sequences.ngrams import encode_text
from kexue.sequences.word_spans import cut

CRITERIA = ("entropy", "frequency", "pmi")
texts = st.lists(st.text("aabbc,", max_size=25), min_size=1, max_size=4)


def places(tokens, pair):
    count, i = 0, 0
    while i < len(tokens) - 1:
        if (tokens[i], tokens[i + 1]) == pair:
            count, i = count + 1, i + 2
        else:
            i += 1
    return count


def recounted(lines, merges, criterion, *, min_count=2, max_length=16):
    """The plain algorithm: count everything, take the best, replace it, repeat."""
    runs = [list(run) for line in lines for run in re.split(r"[\W_]+", line) if run]
    made, history = set(), []
    for _ in range(merges):
        counts = Counter(itertools.chain(*runs))
        total, best = counts.total(), None
        neighbours = Counter(pair for run in runs for pair in itertools.pairwise(run))
        for pair in sorted(neighbours):
            if neighbours[pair] < min_count:
                continue
            m = neighbours[pair] if pair[0] != pair[1] else sum(places(run, pair) for run in runs)
            if m < min_count or len("".join(pair)) > max_length or "".join(pair) in made:
                continue
            a, b = counts[pair[0]], counts[pair[1]]
            gain = float(merge_gain(total, [a, b], m, same=pair[0] == pair[1]))
            value = {"entropy": round(gain, 9), "frequency": m, "pmi": m / (a * b)}[criterion]
            if value <= 0:
                continue
            if best is None or value > best[0]:
                best = (value, pair, m, gain)
        if best is None:
            break
        _, pair, m, gain = best
        made.add("".join(pair))
        for run in runs:
            i = 0
            while i < len(run) - 1:
                if (run[i], run[i + 1]) == pair:
                    run[i : i + 2] = ["".join(pair)]
                i += 1
        history.append((*pair, m, gain))
    return history, runs


@pytest.mark.parametrize("criterion", CRITERIA)
@given(lines=texts, merges=st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_history_matches_a_recount_after_every_merge(criterion, lines, merges):
    if not encode_text(lines).alphabet:
        return
    history, runs = recounted(lines, merges, criterion)
    merger = EntropyMerger(criterion).fit(lines, merges)
    assert [merge[:3] for merge in merger.history] == [step[:3] for step in history]
    assert [merge.gain for merge in merger.history] == pytest.approx([step[3] for step in history], rel=1e-9, abs=1e-9)
    words = [w for line in cut(lines, merger.word_starts()) for w in line if w[0] not in ","]
    assert words == list(itertools.chain(*runs))
    if history:
        assert merger.history[-1].tokens == len(words)
        assert merger.history[-1].code_length == pytest.approx(code_length(list(Counter(words).values())), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_newspaper_matches_a_recount(criterion):
    lines = ["".join(line.words) for line in data.peoples_daily()[:40]]
    limits = {"min_count": 6, "max_length": 4}
    history, _ = recounted(lines, 60, criterion, **limits)
    assert [m[:3] for m in EntropyMerger(criterion, **limits).fit(lines, 60).history] == [step[:3] for step in history]


@pytest.mark.parametrize("criterion", CRITERIA)
@given(lines=texts)
@settings(deadline=None, max_examples=40)
def test_tokenizing_a_training_line_gives_its_segmentation(criterion, lines):
    if not encode_text(lines).alphabet:
        return
    merger = EntropyMerger(criterion).fit(lines, 8)
    for step in range(len(merger.history) + 1):
        partial = EntropyMerger(criterion).fit(lines, step)
        assert (partial.word_starts() == merger.word_starts(step)).all()
        assert [partial.tokenize(line) for line in lines] == cut(lines, partial.word_starts())


@given(st.text(max_size=30))
@settings(deadline=None)
def test_decode_inverts_encode_for_every_string(text):
    merger = EntropyMerger("frequency").fit(["中国人民中国", "ab ab ab"], 4)
    assert merger.decode(merger.encode(text)) == text
    assert merger.decode(merger.encode("𠀀中国\ud800ab" + text)) == "𠀀中国\ud800ab" + text


def test_encoding_uses_the_vocabulary():
    merger = EntropyMerger("frequency").fit(["abab ab"], 1)
    assert merger.vocabulary == ["a", "b", "ab"]
    assert merger.encode("abaxb") == [2, 0, 3 + ord("x"), 1]
    assert merger.tokenize("") == [] and merger.encode("") == []


def test_limits_are_kept():
    lines = ["abcabcabcabc"] * 3
    assert max(map(len, EntropyMerger("frequency", max_length=2).fit(lines, 50).vocabulary)) == 2
    assert min(m.count for m in EntropyMerger("pmi", min_count=10).fit([*lines, "xyz", "xyz"], 50).history) >= 10
    assert EntropyMerger("frequency", min_count=1).fit(["ab"], 9).history[0].count == 1


def test_equal_values_go_to_the_first_pair_by_code_point():
    assert [m[:2] for m in EntropyMerger("frequency").fit(["cd cd ab ab"], 2).history] == [("a", "b"), ("c", "d")]


def test_a_run_of_one_character_is_merged_from_the_left():
    merger = EntropyMerger("frequency").fit(["aaaaa"], 1)
    assert merger.history[0].count == 2 and merger.tokenize("aaaaa") == ["aa", "aa", "a"]


def test_entropy_stops_when_nothing_is_saved():
    merger = EntropyMerger().fit(["abcd" * 5, "dcba"], 1000)
    assert 0 < len(merger.history) < 1000 and min(m.gain for m in merger.history) > 0
    assert EntropyMerger().fit(["ab"], 5).history == [] and math.isfinite(code_length([1, 1]))


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="merges must not be negative, got -1"):
        EntropyMerger().fit(["ab"], -1)
    with pytest.raises(ValueError, match="lines must hold at least one character"):
        EntropyMerger().fit(["，。"], 3)
    for bad in ({"min_count": 0}, {"max_length": 0}):
        with pytest.raises(ValueError, match="min_count and max_length must be at least 1"):
            EntropyMerger(**bad)
    with pytest.raises(Exception, match="criterion"):  # the type checker of the tests speaks first
        EntropyMerger("bpe")
    merger = EntropyMerger().fit(["ab ab"], 1)
    with pytest.raises(ValueError, match="merges must not be negative"):
        merger.word_starts(-1)
    for bad in (-1, 3 + 0x110000):
        with pytest.raises(ValueError, match=f"ids must lie between 0 and {2 + 0x110000}"):
            merger.decode([bad])
