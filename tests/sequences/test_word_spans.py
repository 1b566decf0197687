"""Segmentations as marks, and the words that one shares with another."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.sequences.ngrams import encode_text
from kexue.sequences.word_spans import cut, segmentation_f1, word_starts, words_found

segmented_lines = st.lists(st.lists(st.text("ab,", min_size=1, max_size=4), max_size=6), max_size=5)


def spans(words):
    found, start = set(), 0
    for word in words:
        if "," not in word:
            found.add((start, start + len(word)))
        start += len(word)
    return found


@given(segmented_lines)
@settings(deadline=None)
def test_cut_inverts_word_starts(segmented):
    lines = ["".join(words) for words in segmented]
    assert cut(lines, word_starts(segmented)) == segmented


@given(st.data(), segmented_lines)
@settings(deadline=None)
def test_words_found_match_sets_of_spans(draw, gold):
    lines = ["".join(words) for words in gold]
    predicted = []
    for line in lines:
        marks = draw.draw(st.lists(st.booleans(), min_size=len(line), max_size=len(line)))
        words = []
        for c, new in zip(line, marks, strict=True):
            if new or not words:
                words.append(c)
            else:
                words[-1] += c
        predicted.append(words)
    table = words_found(encode_text(lines), word_starts(predicted), word_starts(gold))
    expected = [[len(spans(p) & spans(g)), len(spans(p)), len(spans(g))] for p, g in zip(predicted, gold, strict=True)]
    assert table.tolist() == expected


def test_scores_of_a_known_case():
    scores = segmentation_f1([["中国", "人", "民", "，", "好"]], [["中国", "人民", "，", "好"]])
    assert (scores.precision, scores.recall) == (2 / 4, 2 / 3)
    assert scores.f1 == pytest.approx(4 / 7)
    assert segmentation_f1([["a"]], [["a"]]).f1 == 1
    assert segmentation_f1([], []).f1 == 0


def test_unequal_texts_are_refused():
    with pytest.raises(ValueError, match="segmentations of the same lines"):
        segmentation_f1([["a"]], [["b"]])
    with pytest.raises(ValueError, match="a word of segmented is empty"):
        word_starts([["a", ""]])
    with pytest.raises(ValueError, match="starts must mark 3 characters and line ends, got 4"):
        cut(["ab"], word_starts([["ab", "c"]]))
    with pytest.raises(ValueError, match="must mark the 3 positions of text, got 3 and 4"):
        words_found(encode_text(["ab"]), word_starts([["ab"]]), word_starts([["ab", "c"]]))
