"""Word discovery against plain loops, and the original's vocabulary against the original package."""

import collections
import collections.abc
import math
from collections import Counter
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue import data
from kexue.sequences import word_discovery
from kexue.sequences._word_trie import words_inside_words
from kexue.sequences.word_discovery import discover_words, pruned_vocabulary, segment_by_cohesion


@pytest.fixture(scope="module")
def newspaper():
    lines = []
    for line in data.peoples_daily():
        lines.append("".join(line.words))
        if sum(map(len, lines)) > 100_000:
            return lines


@pytest.fixture(scope="module")
def package():
    """nlp-zero 0.1.6 imports a name that moved in Python 3.10; it is given back for the time of the import."""
    patch = pytest.MonkeyPatch()
    patch.setattr(collections, "Iterable", collections.abc.Iterable, raising=False)
    import nlp_zero

    patch.undo()
    return nlp_zero


def strong_ngrams(line_runs, order, min_count, min_pmi):
    counts = [Counter(run[i : i + n] for run in line_runs for i in range(len(run) - n + 1)) for n in range(1, order + 1)]
    total = sum(map(len, line_runs))
    return {
        w
        for n in range(2, order + 1)
        for w, c in counts[n - 1].items()
        if c >= min_count
        and all(math.log(total * c / (counts[i - 1][w[:i]] * counts[n - i - 1][w[i:]])) >= min_pmi[n - 1] for i in range(1, n))
    }


def joined_pieces(run, strong, order):
    covered = {i + j for n in range(2, order + 1) for i in range(len(run) - n + 1) if run[i : i + n] in strong for j in range(1, n)}
    pieces = []
    for i, c in enumerate(run):
        if i in covered:
            pieces[-1] += c
        else:
            pieces.append(c)
    return pieces


texts = st.lists(st.text("aabbcd", min_size=1, max_size=20), min_size=1, max_size=5)


@given(texts, st.integers(1, 4), st.integers(1, 3), st.sampled_from([(0, 0.1, 0.2, 0.3), (0, 0.5, 1.0, 1.5)]))
@settings(deadline=None)
def test_cohesion_matches_plain_loops(lines, order, least, min_pmi):
    options = {"order": order, "min_count": least, "min_pmi": min_pmi[:order]}
    strong = strong_ngrams(lines, **options)
    pieces = [joined_pieces(line, strong, order) for line in lines]
    assert segment_by_cohesion(lines, **options) == pieces
    windows = {p: [p[i : i + n] for n in range(2, min(order, len(p)) + 1) for i in range(len(p) - n + 1)] for line in pieces for p in line}
    counted = Counter(p for line in pieces for p in line)
    assert discover_words(lines, **options) == {p: c for p, c in counted.items() if c >= least and strong.issuperset(windows[p])}


def test_words_come_by_count_then_code_point():
    assert list(discover_words(["b a b c a"], order=1, min_count=1, min_pmi=(0,)).items()) == [("a", 2), ("b", 2), ("c", 1)]


def test_separators_are_pieces_of_their_own():
    assert segment_by_cohesion(["ab, ab", ""], order=2, min_count=2, min_pmi=(0, 0.1)) == [["ab", ",", " ", "ab"], []]


def test_empty_texts_have_no_words():
    for lines in ([], [""], ["，。！"]):
        assert discover_words(lines) == {} and pruned_vocabulary(lines) == {}
        assert segment_by_cohesion(lines) == [list(line) for line in lines]


@pytest.mark.parametrize("min_proba", [1e-7, 3e-5, 2e-4])
def test_pruned_vocabulary_equals_the_package(newspaper, package, min_proba):
    finder = package.Word_Finder(min_proba=min_proba, min_pmi=1)
    finder.train(newspaper)
    finder.find(newspaper, remove_weak_pairs=False)
    ours = pruned_vocabulary(newspaper, min_proba=min_proba)
    assert ours == finder.words and len(ours) > 500


def test_pruned_vocabulary_keeps_latin_words_like_the_package(package):
    lines = ["the cat sat on the mat the cat", "WTO and GDP 1998 WTO", "中国WTO中国 1.5"] * 3
    for min_pmi in (0.2, 1):
        finder = package.Word_Finder(min_proba=1e-3, min_pmi=min_pmi)
        finder.train(lines)
        finder.find(lines, remove_weak_pairs=False)
        assert pruned_vocabulary(lines, min_proba=1e-3, min_pmi=min_pmi) == finder.words


def test_equally_probable_splits_are_chosen_as_by_the_package(package):
    """Which of two splits with the same product of counts wins hangs on the last bit of the sums."""
    lines = ["国人国人中", "国国国人民国民", "中中人民国国民民民", "人民中国中国民民中民"]
    finder = package.Word_Finder(min_proba=1e-4, min_pmi=0.2)
    finder.train(lines)
    finder.find(lines, remove_weak_pairs=False)
    assert pruned_vocabulary(lines, min_proba=1e-4, min_pmi=0.2) == finder.words


@given(lines=texts)
@settings(deadline=None)
def test_pruned_vocabulary_equals_the_package_on_other_characters(lines, package):
    chinese = ["".join("中国人民"["abcd".index(c)] for c in line) for line in lines]
    finder = package.Word_Finder(min_proba=1e-4, min_pmi=0.2)
    finder.train(chinese)
    finder.find(chinese, remove_weak_pairs=False)
    assert pruned_vocabulary(chinese, min_proba=1e-4, min_pmi=0.2) == finder.words


@pytest.mark.parametrize(
    "lines", [["ab" * 60], ["ab" * 50], ["ab" * 60, "ab", "a", "b"], ["中国" * 60, "中国"], ["中国" * 60 + "国民", "中国"]]
)
def test_very_long_words_end_as_in_the_package(lines, package):
    """Beyond 101 characters even a part that is no word can explain a word: the run of 120 letters is dropped, that of 100 is kept."""
    finder = package.Word_Finder(min_proba=1e-4, min_pmi=0.2)
    finder.train(lines)
    finder.find(lines, remove_weak_pairs=False)
    assert pruned_vocabulary(lines, min_proba=1e-4, min_pmi=0.2) == finder.words


def test_parts_that_were_no_words_become_words():
    """The package stops here with a KeyError."""
    lines = ["中国" * 150 + "民", "中国", "中国"]
    assert pruned_vocabulary(lines, min_proba=1e-4, min_pmi=-1) == {"中国": 152, "民": 1}


lexicons = st.dictionaries(st.text("国人民a1", min_size=1, max_size=7), st.integers(1, 2000), max_size=25)


@given(lexicons)
@settings(deadline=None)
def test_words_that_the_bound_spares_are_kept(words):
    result = word_discovery._dissolve(dict(words))
    with patch.object(word_discovery, "_perhaps_explained", lambda words: [word for word in words if len(word) > 1]):
        assert word_discovery._dissolve(dict(words)) == result


def test_the_bound_spares_almost_all_words_that_are_kept(newspaper):
    """Were it loose, no value would change, only the time."""
    with patch.object(word_discovery, "_dissolve", dict):
        words = pruned_vocabulary(newspaper)
    longer, perhaps = {word for word in words if len(word) > 1}, set(word_discovery._perhaps_explained(words))
    dissolved = longer - set(word_discovery._dissolve(dict(words)))
    assert dissolved <= perhaps <= longer
    assert len(perhaps) < 3 * len(dissolved) < len(longer) / 10


@given(st.lists(st.text("ab民𠀀", min_size=1, max_size=6), min_size=1, max_size=12, unique=True))
@settings(deadline=None)
def test_words_inside_words_matches_enumeration(words):
    expected, base = set(), 0
    for holder in words:
        expected |= {(base + i, words.index(w)) for w in words for i in range(len(holder)) if w != holder and holder.startswith(w, i)}
        base += len(holder) + 1
    found = list(zip(*words_inside_words(words).tolist(), strict=True))
    assert len(found) == len(expected) and set(found) == expected


def test_pieces_are_counted_in_blocks(newspaper):
    whole = pruned_vocabulary(newspaper[:50])
    for size in (1, 2, 1000):
        with patch.object(word_discovery, "_BLOCK", size):
            assert pruned_vocabulary(newspaper[:50]) == whole


def test_the_package_empties_its_pair_table(newspaper, package):
    finder = package.Word_Finder()
    finder.train(newspaper)
    assert len(finder.pairs) > 10_000
    finder.find(newspaper[:10])
    assert len(finder.pairs) == 0


def test_shortest_path_of_the_package_misses_a_null_edge(package):
    graph = package.DAG(3)
    graph[0, 2], graph[2, 3] = -300, -1
    assert graph.optimal_path() == [(0, 2), (2, 3)]  # -301, though three null edges at -100 give -300 and two with (2, 3) give -201


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="min_pmi must have one entry for each order up to 3, got 4"):
        segment_by_cohesion(["ab"], order=3)
    with pytest.raises(ValueError, match="order must be at least 1"):
        discover_words(["ab"], order=0, min_pmi=())
    for bad in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"min_proba must be in \[0, 1\)"):
            pruned_vocabulary(["ab"], min_proba=bad)


def test_the_packages_shortest_path_is_not_optimal(package):
    graph = package.DAG(5)
    graph[0, 4] = graph[3, 5] = -1.0  # the words 甲乙丙丁 and 丁戊 in 甲乙丙丁戊
    found = [tuple(edge) for edge in graph.optimal_path()]
    assert found == [(0, 1), (1, 2), (2, 3), (3, 5)]  # three unknown characters, where (0, 4), (4, 5) has one
