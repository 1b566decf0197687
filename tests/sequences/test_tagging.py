"""Tests of kexue.sequences.tagging: n-gram features, padding, and training against a solved convex problem."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from kexue.sequences.segmentation import sbme_tags
from kexue.sequences.tagging import FULL_WINDOW, LEFT_WINDOW, LinearTagger, _batches, emissions_of, encode, fit_tagger, pad, window


def softmax_loss(emissions, tags, mask):
    return (F.cross_entropy(emissions.transpose(1, 2), tags, reduction="none") * mask).sum(1)


def test_windows_are_those_of_the_experiment():
    assert len(FULL_WINDOW) == 10 and (-1, 1) in FULL_WINDOW
    assert LEFT_WINDOW == ((-2,), (-1,), (0,), (-2, -1), (-1, 0), (-2, 0))
    assert window(0, 0) == ((0,),) and window(0, 2)[-1] == (0, 2)
    assert window(1, 1) == ((-1,), (0,), (1,), (-1, 0), (0, 1), (-1, 1))


def test_features_agree_exactly_where_the_characters_do():
    """With 2^40 buckets no two of these n-grams collide: rows are equal if and only if what the template sees is equal."""
    texts = ["天地玄黄宇宙", "玄黄天地", "地", "天天天地地"]
    for templates in (FULL_WINDOW, LEFT_WINDOW, ((3,), (-3, 3))):
        rows = encode([[text] for text in texts], templates, buckets=2**40).features
        seen = [
            tuple(tuple(text[i + o] if 0 <= i + o < len(text) else "" for o in template) for template in templates)
            for text in texts
            for i in range(len(text))
        ]
        for j in range(len(templates)):
            for a in range(len(seen)):
                for b in range(len(seen)):
                    assert bool(rows[a, j] == rows[b, j]) == (seen[a][j] == seen[b][j])
        assert len(set(rows.flatten().tolist())) == len({(j, s[j]) for s in seen for j in range(len(templates))})


def test_features_do_not_depend_on_the_other_clauses():
    alone, among = encode([["玄黄", "天"]]), encode([["地"], ["玄黄", "天"], ["宇宙", "洪荒"]])
    assert torch.equal(alone.features, among.features[1:4])
    assert among.lengths.tolist() == [1, 3, 4] and torch.equal(among.tags, sbme_tags(["地", "玄黄", "天", "宇宙", "洪荒"]))


def test_hashing_spreads_over_all_buckets():
    """20 000 distinct keys in 1024 buckets: the occupation's chi-square lies within five standard deviations of its mean."""
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 20_000)))
    rows = encode([[text]], ((0,),), buckets=1024).features.flatten()
    counts = torch.bincount(rows, minlength=1024).double()
    chi2 = float(((counts - 20_000 / 1024) ** 2).sum() / (20_000 / 1024))
    assert abs(chi2 - 1023) < 5 * (2 * 1023) ** 0.5


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_padding_round_trips(sizes):
    lengths = torch.tensor(sizes)
    flat = torch.arange(1.0, 2 * int(lengths.sum()) + 1).reshape(-1, 2)
    padded, mask = pad(flat, lengths)
    assert padded.shape == (len(sizes), max(sizes), 2) and mask.sum(1).tolist() == sizes
    assert torch.equal(padded[mask], flat) and (padded[~mask] == 0).all()
    assert (mask[:, :-1] >= mask[:, 1:]).all()


def test_batches_hold_every_clause_once():
    text = encode([["天" * (1 + i % 7)] for i in range(200)])
    text = text._replace(features=torch.arange(len(text.tags))[:, None])
    batches = list(_batches(text, 50, torch.Generator().manual_seed(1)))
    assert sorted(torch.cat([b.features.flatten() for b in batches]).tolist()) == list(range(len(text.tags)))
    assert all(len(b.tags) <= 50 + 7 and int(b.lengths.sum()) == len(b.tags) for b in batches)
    assert all(int(b.lengths.max() - b.lengths.min()) <= 4 for b in batches)
    starts = text.lengths.cumsum(0) - text.lengths
    for b in batches:
        first = b.features.flatten()[b.lengths.cumsum(0) - b.lengths]
        assert torch.isin(first, starts).all()
        assert torch.equal(text.tags[b.features.flatten()], b.tags)


def test_training_reaches_the_optimum_of_a_problem_with_a_closed_form():
    """One feature per character: the best softmax predicts the frequencies of the tags given the character."""
    generator = torch.Generator().manual_seed(0)
    text = encode([["天", "天天", "地地地"], ["天"], ["地地"]] * 4, ((0,),))
    tagger = fit_tagger(LinearTagger(), text, softmax_loss, epochs=400, lr=0.5, characters=10**6, generator=generator)
    predicted = tagger(text.features).softmax(1)
    for character in torch.unique(text.features):
        here = text.features[:, 0] == character
        frequencies = torch.bincount(text.tags[here], minlength=4) / here.sum()
        assert torch.allclose(predicted[here][0], frequencies, atol=0.01)


def test_the_same_generator_gives_the_same_tagger_and_parameters_are_trained_along():
    text = encode([["天", "天地"], ["地天地", "天"]] * 5)
    bias = torch.nn.Parameter(torch.zeros(4))

    def run(parameters=()):
        objective = (lambda e, y, m: softmax_loss(e + bias, y, m)) if parameters else softmax_loss
        return fit_tagger(
            LinearTagger(), text, objective, parameters=parameters, characters=10, generator=torch.Generator().manual_seed(5)
        ).weight.detach()

    assert torch.equal(run(), run())
    run([bias])
    assert (bias != 0).all()


def test_emissions_are_the_tagger_s_scores_without_a_graph():
    text = encode([["天", "天地"], ["地天地", "天"]])
    tagger = LinearTagger()
    torch.nn.init.normal_(tagger.weight, generator=torch.Generator().manual_seed(2))
    emissions, mask = emissions_of(tagger, text)
    assert not emissions.requires_grad and mask.sum() == 7
    expected = tagger.weight[text.features].sum(1)
    assert torch.allclose(emissions[mask], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: window(-1, 0), "left and right must be at least 0, got -1 and 0"),
        (lambda: encode([]), "clauses must be at least one and none empty, got 0"),
        (lambda: encode([["天"], []]), "none empty"),
        (lambda: encode([["天"]], []), "templates must be at least one"),
        (lambda: encode([["天"]], [()]), "templates must be at least one and none empty"),
        (lambda: encode([["天"]], buckets=1000), "power of two, at least 2, got 1000"),
        (lambda: encode([["天", ""]]), "words must not be empty"),
        (lambda: LinearTagger(0), "tags and buckets must be at least 1, got 0"),
        (lambda: pad(torch.zeros(3), torch.tensor([1, 1])), "sum to the 3 rows of flat, got a sum of 2"),
        (lambda: fit_tagger(LinearTagger(), encode([["天"]]), softmax_loss, epochs=0), "must be positive, got 0, 6000 and 0.1"),
        (lambda: fit_tagger(LinearTagger(), encode([["天"]]), softmax_loss, lr=0.0), "must be positive"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
