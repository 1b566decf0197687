"""Code length, mutual information and the exact saving of a merge."""

import math
from collections import Counter

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.sequences.entropy_words import code_length, merge_gain, pmi, two_part_lengths
from kexue.sequences.merging import EntropyMerger


def length_of(tokens) -> float:
    counts = Counter(tokens)
    return sum(n * math.log(len(tokens) / n) for n in counts.values())


def replaced(tokens: list[str], gram: list[str]) -> tuple[list[str], int]:
    out, i, m = [], 0, 0
    while i < len(tokens):
        if tokens[i : i + len(gram)] == gram:
            out.append("".join(gram))
            i, m = i + len(gram), m + 1
        else:
            out.append(tokens[i])
            i += 1
    return out, m


@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=60))
@settings(deadline=None)
def test_code_length_is_n_times_entropy(tokens):
    assert code_length(list(Counter(tokens).values())) == pytest.approx(length_of(tokens), rel=1e-12, abs=1e-12)


def test_code_length_of_uniform_and_of_nothing():
    assert code_length([7] * 8) == pytest.approx(56 * math.log(8), rel=1e-14)
    assert code_length([]) == code_length([0, 5]) == 0


@given(st.lists(st.sampled_from("abcde"), min_size=4, max_size=80), st.sampled_from(["ab", "ba", "abc", "cab", "abcd"]))
@settings(deadline=None)
def test_merge_gain_equals_recomputed_lengths(tokens, gram):
    after, m = replaced(tokens, list(gram))
    if m and len(after) > 1:
        counts = [tokens.count(c) for c in gram]
        gain = merge_gain(len(tokens), counts, m)
        assert gain == pytest.approx(length_of(tokens) - length_of(after), rel=1e-9, abs=1e-9)


@given(st.lists(st.sampled_from("ab"), min_size=4, max_size=80))
@settings(deadline=None)
def test_self_merge_gain_equals_recomputed_lengths(tokens):
    after, m = replaced(tokens, ["a", "a"])
    if m and len(after) > 1:
        gain = merge_gain(len(tokens), [tokens.count("a")] * 2, m, same=True)
        assert gain == pytest.approx(length_of(tokens) - length_of(after), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("joint", "saved"), [(5, -5.90), (20, 4.25), (80, 129.9)])
def test_merge_gain_known_values(joint, saved):
    assert merge_gain(10**6, [2000, 3000], joint) == pytest.approx(saved, rel=1e-3)


def test_merge_gain_keeps_its_digits_for_huge_texts():
    mpmath.mp.dps = 60

    def phi(x):
        return x * mpmath.log(x)

    total, a, b, m = 10**17, 3 * 10**11, 2 * 10**11, 10**6
    exact = phi(mpmath.mpf(total)) - phi(mpmath.mpf(total - m)) - phi(a) + phi(a - m) - phi(b) + phi(b - m) + phi(mpmath.mpf(m))
    assert merge_gain(total, [a, b], m) == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_error_of_first_order_is_quadratic(k):
    total, n = 10**7, [20_000, 30_000, 50_000, 40_000][:k]
    m = np.array([40.0, 80.0, 160.0])
    error = merge_gain(np.full(3, total), np.tile(n, (3, 1)), m) - m * (pmi(np.full(3, total), np.tile(n, (3, 1)), m) - 1)
    second = m**2 / 2 * (sum(1 / x for x in n) - (k - 1) ** 2 / total)
    assert np.diff(np.log(error)) / math.log(2) == pytest.approx(2, abs=0.01)
    assert error == pytest.approx(second, rel=0.01)


def test_pmi_is_symmetric_zero_for_independence_and_scales():
    assert pmi(1000, [100, 50], 5) == pytest.approx(0, abs=1e-12)
    assert pmi(1000, [100, 50], 7) == pytest.approx(pmi(1000, [50, 100], 7), rel=1e-12)
    assert pmi(2000, [200, 100], 14) == pytest.approx(pmi(1000, [100, 50], 7), rel=1e-12)
    assert pmi(1000, [100, 50, 20], 7) == pytest.approx(math.log(7 * 1000**2 / (100 * 50 * 20)), rel=1e-12)
    assert pmi([1000, 2000], [[100, 50], [100, 50]], [5, 5]).shape == (2,)


def test_using_up_a_piece_is_allowed():
    assert merge_gain(10, [3, 3], 3) == pytest.approx(length_of("abababcdef") - length_of(["ab"] * 3 + list("cdef")), rel=1e-12)


def test_two_part_length_is_text_plus_dictionary():
    lines = ["abababcab", "abcabd", "ddabab"]
    merger = EntropyMerger().fit(lines, 3)
    characters = Counter("".join(lines))
    price = {c: math.log(sum(characters.values()) / n) for c, n in characters.items()}
    lengths = two_part_lengths(merger.history, characters)
    assert len(lengths) == len(merger.history) + 1
    for step in range(len(lengths)):
        tokens = [w for line in lines for w in EntropyMerger().fit(lines, step).tokenize(line)]
        dictionary = sum(sum(price[c] for c in w) + math.log(len(tokens)) / 2 for w in set(tokens))
        assert lengths[step] == pytest.approx(length_of(tokens) + dictionary, rel=1e-12)


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="counts must be finite and not negative, got -1"):
        code_length([3, -1])
    for bad, name in (((0, [1, 1], 1), "total"), ((9, [2, 0], 1), "counts"), ((9, [2, 2], math.nan), "joint")):
        with pytest.raises(ValueError, match=f"{name} must be positive and finite"):
            pmi(*bad)
        with pytest.raises(ValueError, match=f"{name} must be positive and finite"):
            merge_gain(*bad)
    for counts in (5, [5]):
        with pytest.raises(ValueError, match="at least two pieces"):
            pmi(9, counts, 1)
    for arguments in ((9, [2, 5], 3), (6, [5, 5], 6), (4, [4, 4, 4], 2)):
        with pytest.raises(ValueError, match="joint must not exceed"):
            merge_gain(*arguments)
    with pytest.raises(ValueError, match="joint must not exceed"):
        merge_gain(9, [5, 5], 3, same=True)
    for counts in ([5, 4], [5, 5, 5]):
        with pytest.raises(ValueError, match="same=True needs the count of the one piece twice"):
            merge_gain(20, counts, 1, same=True)
    with pytest.raises(ValueError, match="characters must hold"):
        two_part_lengths([], {})
    with pytest.raises(ValueError, match="merges use 'a' 3 times, there are 2"):
        two_part_lengths([("a", "b", 3, 0.0, 5, 1.0)], {"a": 2, "b": 3})


@given(
    st.lists(st.integers(1, 10**6), min_size=2, max_size=6),
    st.floats(0.0, 1.0),
    st.floats(1.0, 50.0),
)
@settings(deadline=None)
def test_law_a_merge_saves_more_than_its_information_minus_one_nat(counts, share, room):
    m = 1 + round(share * (min(counts) - 1))
    total = float(round(room * sum(counts)))
    saving, first_order = merge_gain(total, counts, m), m * (pmi(total, counts, m) - 1)
    assert saving - first_order > -1e-12 * (abs(saving) + m)  # the surplus is positive; rounding may hide a tiny one
