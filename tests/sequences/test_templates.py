"""Templates against the original package, and parses against enumeration."""

import collections
import collections.abc
import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.sequences.templates import find_templates, parse

clauses = st.lists(st.lists(st.sampled_from("abcde"), min_size=1, max_size=7), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def package():
    patch = pytest.MonkeyPatch()
    patch.setattr(collections, "Iterable", collections.abc.Iterable, raising=False)
    import nlp_zero

    yield nlp_zero  # its classes look the name up when they are called
    patch.undo()


@given(clauses, st.integers(1, 4), st.sampled_from([0.05, 0.3, 1.0]), st.sampled_from([0.0, 0.02, 0.07]))
@settings(deadline=None)
def test_templates_equal_the_package(package, tokenized, window, min_pmi, min_proba):
    finder = package.Template_Finder(str.split, window=window, min_proba=max(min_proba, 1e-9), min_pmi=min_pmi)
    sentences = [" ".join(words) for words in tokenized]
    finder.texts = lambda sents, filtering=True: ([sent.split()] for sent in sents)
    finder.train(sentences)
    finder.find(sentences, remove_weak_grams=False)
    ours = find_templates(tokenized, window=window, min_pmi=min_pmi, min_proba=min_proba)
    assert ours == {tuple(template.words): count for template, count in finder.templates.items()}


def test_a_frame_with_a_gap_is_found():
    tokenized = [["the", x, "of", y] for x, y in zip("abcdefgh", "stuvwxyz", strict=True)]
    found = find_templates(tokenized, window=3, min_pmi=0.5, min_proba=0)
    assert max(found, key=found.get)[0] == "the" and sum(found.values()) >= 8


def matches(template, words, i, j):
    """Every way to lay a template over words[i:j], as a list of gap spans."""
    if not template:
        return [[]] if i == j else []
    if template[0] is None:
        return [[(i, q), *rest] for q in range(i + 1, j + 1) for rest in matches(template[1:], words, q, j)]
    return matches(template[1:], words, i + 1, j) if i < j and words[i] == template[0] else []


def best_score(templates, words, i, j, skip):
    total = sum(templates.values())
    scores = [skip * (j - i - 1)]
    for template, count in templates.items():
        for gaps in matches(template, words, i, j):
            scores.append(math.log(count / total) + sum(best_score(templates, words, p, q, skip) for p, q in gaps))
    return max(scores)


part = st.sampled_from(["a", "b", "c", None])
valid = (
    st.lists(part, min_size=1, max_size=4)
    .map(tuple)
    .filter(lambda t: any(p is not None for p in t) and not any(a is None and b is None for a, b in itertools.pairwise(t)))
)


def check(tree, templates, words, skip):
    """Recompute the score of a tree from its parts."""
    assert 0 <= tree.start < tree.stop
    if tree.template is None:
        assert tree.gaps == ()
        return skip * (tree.stop - tree.start - 1)
    assert [(g.start, g.stop) for g in tree.gaps] in matches(tree.template, words, tree.start, tree.stop)
    return math.log(templates[tree.template] / sum(templates.values())) + sum(check(g, templates, words, skip) for g in tree.gaps)


@given(st.dictionaries(valid, st.integers(1, 9), min_size=1, max_size=4), st.lists(st.sampled_from("abcd"), min_size=1, max_size=6))
@settings(deadline=None)
def test_parse_is_the_best_of_all_nestings(templates, words):
    tree = parse(templates, words, skip=-2)
    assert (tree.start, tree.stop) == (0, len(words))
    assert tree.score == pytest.approx(best_score(templates, words, 0, len(words), -2), abs=1e-9)
    assert check(tree, templates, words, -2) == pytest.approx(tree.score, abs=1e-9)


def test_parse_nests():
    templates = {(None, "of", None): 6, ("the", None): 3, (None, "and", None): 1}
    tree = parse(templates, ["the", "king", "of", "the", "hill", "and", "sea"])
    assert tree.template is not None and len(tree.gaps) >= 1
    assert parse(templates, ["alone"]) == (0, 1, None, (), 0)


def test_a_long_sentence_is_parsed():
    words = ["a", "b"] * 40
    tree = parse({("a", "b", None): 1, ("a", "b"): 1}, words)
    assert tree.score == pytest.approx(40 * math.log(0.5))


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="window must be at least 1"):
        find_templates([["a"]], window=0)
    with pytest.raises(ValueError, match="min_proba in"):
        find_templates([["a"]], min_proba=1.0)
    good = {("a", None): 1}
    for words in ([], ["a"] * 151):
        with pytest.raises(ValueError, match="words must hold 1 to 150 words"):
            parse(good, words)
    with pytest.raises(ValueError, match="skip must not be positive"):
        parse(good, ["a"], skip=1)
    with pytest.raises(ValueError, match="at least one template"):
        parse({}, ["a"])
    with pytest.raises(ValueError, match="counts of templates must be positive"):
        parse({("a",): 0}, ["a"])
    for bad in ((), (None,), ("a", None, None)):
        with pytest.raises(ValueError, match="a template must hold a word and no two gaps in a row"):
            parse({bad: 1}, ["a"])
