"""n-gram counts against a dictionary, and the same over a Dask bag."""

import tracemalloc
from collections import Counter

import dask.bag
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.sequences.ngrams import EncodedText, encode_text, find_ngrams, ngram_counts, ngram_counts_dask, occurrences

lines_of = st.lists(st.text(st.sampled_from("ab人民𠀀, \n"), max_size=12), max_size=6)


def counted(lines: list[str], order: int, kept: str = "ab人民𠀀") -> list[dict[str, int]]:
    """Every slice of every line that holds kept characters only."""
    tables = [Counter() for _ in range(order)]
    for line in lines:
        for n in range(1, order + 1):
            slices = (line[i : i + n] for i in range(len(line) - n + 1))
            tables[n - 1].update(s for s in slices if all(c in kept for c in s))
    return [dict(table) for table in tables]


@given(lines_of, st.integers(1, 5))
@settings(deadline=None)
def test_counts_match_dictionary(lines, order):
    assert [table.to_dict() for table in ngram_counts(encode_text(lines), order)] == counted(lines, order)


@given(lines_of)
@settings(deadline=None)
def test_counts_match_dictionary_when_keys_exceed_63_bits(lines):
    order = 24  # five characters need three bits each
    assert [table.to_dict() for table in ngram_counts(encode_text(lines), order)] == counted(lines, order)


@given(lines_of, st.integers(1, 4))
@settings(deadline=None)
def test_min_count_drops_exactly_the_rarer(lines, least):
    expected = [{s: c for s, c in table.items() if c >= least} for table in counted(lines, 3)]
    assert [table.to_dict() for table in ngram_counts(encode_text(lines), 3, min_count=least)] == expected


def test_large_alphabet_uses_several_keys():
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 5000)))
    tables = ngram_counts(encode_text([text, text[10:]]), 6)
    assert tables[5].to_dict() == {text[i : i + 6]: 1 + (i >= 10) for i in range(4995)}
    assert (find_ngrams(tables[5], tables[5].ids) == np.arange(4995)).all()


def test_tables_are_sorted_by_code_point():
    strings = ngram_counts(encode_text(["民人ba𠀀"]), 2)[1].strings()
    assert strings == sorted(strings) == ["a𠀀", "ba", "人b", "民人"]


def test_encoding_numbers_by_code_point_and_marks_lines():
    text = encode_text(["ba, b", "", "人"])
    assert text.ids.tolist() == [2, 1, 0, 0, 2, 0, 0, 3, 0]
    assert (text.alphabet, text.line_starts.tolist()) == ("ab人", [0, 6, 7])
    assert encode_text(["a1_"], keep="[a_]").alphabet == "_a"


def test_surrogates_and_line_breaks_inside_lines_survive():
    assert ngram_counts(encode_text(["a\ud800a\nb"], keep="[a\ud800b]"), 2)[1].to_dict() == {"a\ud800": 1, "\ud800a": 1}


def test_empty_and_separator_only_texts_have_no_ngrams():
    for lines in ([], [""], ["，。", "!"]):
        text = encode_text(lines)
        assert isinstance(text, EncodedText) and text.alphabet == ""
        assert [len(table.counts) for table in ngram_counts(text, 3)] == [0, 0, 0]


def test_find_ngrams_gives_row_or_minus_one():
    text = encode_text(["abab"])
    table = ngram_counts(text, 2)[1]
    rows = find_ngrams(table, text.windows(2))
    assert [table.strings()[r] if r >= 0 else None for r in rows] == ["ab", "ba", "ab", None, None]
    empty = table.select(np.zeros(len(table.counts), dtype=bool))
    assert (find_ngrams(empty, text.windows(2)) == -1).all()


@given(lines_of, st.integers(1, 4), st.integers(1, 3))
@settings(deadline=None)
def test_adding_partitions_equals_counting_at_once(lines, parts, least):
    bag = dask.bag.from_delayed([dask.delayed(lines[i::parts]) for i in range(parts)])
    with dask.config.set(scheduler="synchronous"):
        ours = ngram_counts_dask(bag, 3, min_count=least)
    assert [table.to_dict() for table in ours] == [t.to_dict() for t in ngram_counts(encode_text(lines), 3, min_count=least)]


def test_dask_on_the_newspaper_equals_memory():
    from kexue import data

    lines = ["".join(line.words) for line in data.peoples_daily()[:400]]
    with dask.config.set(scheduler="synchronous"):
        parts = ngram_counts_dask(dask.bag.from_sequence(lines, npartitions=20), 4, min_count=2)
    for ours, theirs in zip(parts, ngram_counts(encode_text(lines), 4, min_count=2), strict=True):
        assert ours.alphabet == theirs.alphabet
        assert (ours.ids == theirs.ids).all() and (ours.counts == theirs.counts).all()


@pytest.mark.parametrize(("order", "least", "name"), [(0, 1, "order"), (2, 0, "min_count")])
def test_counts_refuse_sizes_below_one(order, least, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        ngram_counts(encode_text(["ab"]), order, min_count=least)
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        ngram_counts_dask(dask.bag.from_sequence(["ab"]), order, min_count=least)


def test_wrong_inputs_are_refused_with_the_reason():
    with pytest.raises(ValueError, match="lines must be a sequence of strings"):
        encode_text("ab")
    with pytest.raises(ValueError, match="keep must be a regular expression"):
        encode_text(["ab"], keep="[")
    with pytest.raises(TypeError, match=r"bag must be a dask\.bag\.Bag of lines, got list"):
        ngram_counts_dask(["ab"], 2)
    text = encode_text(["ab"])
    with pytest.raises(ValueError, match="ids must have the 2 columns of the table, got 3"):
        find_ngrams(ngram_counts(text, 2)[1], text.windows(3))
    with pytest.raises(ValueError, match="order must be at least 1"):
        text.windows(0)


@given(lines_of, st.integers(1, 4), st.sampled_from([1, 2, 4, 24]))
@settings(deadline=None)
def test_occurrences_are_the_positions_of_the_chosen_ngrams(lines, least, order):
    text = encode_text(lines, keep="[ab人民𠀀]")
    table = ngram_counts(text, order, min_count=least)[-1]
    joined = "".join(f"{line}\n" for line in lines)
    assert occurrences(table, text).tolist() == [i for i in range(len(joined)) if joined[i : i + order] in set(table.strings())]


def test_occurrences_refuse_numbers_of_another_alphabet():
    with pytest.raises(ValueError, match="table must number the characters as text does"):
        occurrences(ngram_counts(encode_text(["ab"]), 1)[0], encode_text(["ac"]))


def peak_of_counting(parts: int) -> int:
    """Bytes at the worst moment while a text is counted of which each part is made when its turn comes."""

    def part(seed: int) -> list[str]:
        letters = np.random.default_rng(seed).integers(ord("a"), ord("a") + 8, 40_000, dtype=np.uint8)
        return [letters.tobytes().decode()]

    bag = dask.bag.from_delayed([dask.delayed(part)(seed) for seed in range(parts)])
    with dask.config.set(scheduler="synchronous"):
        tracemalloc.start()
        tables = ngram_counts_dask(bag, 3)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert [int(table.counts.sum()) for table in tables] == [parts * (40_000 - n) for n in range(3)]
    return peak


def test_memory_of_counting_parts_does_not_grow_with_their_number():
    """Eight letters have 584 one- to three-grams: tables are small, and one part after the other is all that must be held."""
    peak_of_counting(2)  # imports
    assert peak_of_counting(48) < 2 * peak_of_counting(6)
