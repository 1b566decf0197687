"""Tests of kexue.sequences.encoders: who sees what, padding, the plain recurrences, and learning what a window cannot see."""

import pytest
import torch
import torch.nn.functional as F
from kexue.sequences.encoders import GatedConvolutions, RecurrentEncoder
from kexue.sequences.tagging import TaggedText, emissions_of, fit_tagger

SMALL = {"buckets": 64, "width": 6}
KINDS = {
    "recurrent": lambda causal: RecurrentEncoder(3, layers=2, causal=causal, **SMALL),
    "convolutions": lambda causal: GatedConvolutions(3, dilations=(1, 2, 4), causal=causal, **SMALL),
}


def jacobian(encoder, n=12):
    """Whether the scores at k change when the character at k' does: [k, k']."""
    features = torch.arange(n)[:, None]
    lengths = torch.tensor([n])
    before = encoder(features, lengths)
    moved = []
    for k in range(n):
        other = features.clone()
        other[k] = 50
        moved.append((encoder(other, lengths) - before).abs().amax(1) > 0)
    return torch.stack(moved, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_causal_encoder_does_not_see_what_comes_later_and_another_does(kind, seed):
    torch.manual_seed(seed)
    with torch.no_grad():
        causal, both = (jacobian(KINDS[kind](c)) for c in (True, False))
    assert not causal.triu(1).any() and causal.diagonal().all() and causal.diagonal(-1).all()
    assert both.diagonal(1).all() and both.diagonal(-1).all()


def test_receptive_field_of_the_convolutions():
    torch.manual_seed(0)
    for causal in (False, True):
        with torch.no_grad():
            seen = jacobian(GatedConvolutions(3, dilations=(1, 2), causal=causal, **SMALL), 16)
        k = torch.arange(16)
        back = k[:, None] - k
        expected = (back >= 0) & (back <= 6) if causal else back.abs() <= 3
        assert torch.equal(seen, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("causal", [False, True])
def test_scores_do_not_depend_on_the_other_clauses_or_their_order(kind, causal):
    torch.manual_seed(0)
    encoder, lengths = KINDS[kind](causal), torch.tensor([3, 9, 1, 5])
    features = torch.randint(64, (18, 2))
    together = encoder(features, lengths).split(lengths.tolist())
    for part, scores in zip(features.split(lengths.tolist()), together, strict=True):
        assert scores.shape == (len(part), 3)
        torch.testing.assert_close(encoder(part, torch.tensor([len(part)])), scores, rtol=1e-5, atol=1e-6)


def test_gated_convolution_is_the_formula_position_by_position():
    torch.manual_seed(0)
    for causal in (False, True):
        encoder = GatedConvolutions(3, dilations=(2,), causal=causal, **SMALL).double()
        features = torch.randint(64, (7, 2))
        h = encoder.table.weight[features].sum(1)
        weight, bias = encoder.blocks[0].weight, encoder.blocks[0].bias
        out = []
        for k in range(7):
            places = [k - 4, k - 2, k] if causal else [k - 2, k, k + 2]
            near = [h[p] if 0 <= p < 7 else torch.zeros(6, dtype=torch.float64) for p in places]
            u, v = (bias + sum(weight[:, :, i] @ x for i, x in enumerate(near))).chunk(2)
            out.append(h[k] + u.sigmoid() * (v - h[k]))
        expected = encoder.scores(torch.stack(out))
        torch.testing.assert_close(encoder(features, torch.tensor([7])), expected, rtol=1e-12, atol=1e-12)


def test_recurrent_encoder_is_the_lstm_of_the_summed_rows():
    torch.manual_seed(0)
    encoder, features = RecurrentEncoder(3, layers=1, causal=True, **SMALL).double(), torch.randint(64, (5, 2))
    cell = torch.nn.LSTMCell(6, 6).double()
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        getattr(cell, name).data.copy_(getattr(encoder.recurrence, f"{name}_l0"))
    state, out = None, []
    for x in encoder.table.weight[features].sum(1):
        state = cell(x[None], state)
        out.append(encoder.scores(state[0][0]))
    torch.testing.assert_close(encoder(features, torch.tensor([5])), torch.stack(out), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_two_sided_encoder_learns_to_announce_the_next_character(kind):
    """The tag of a character is the parity of the NEXT one: a causal encoder cannot do better than a coin."""
    generator = torch.Generator().manual_seed(3)
    sizes = torch.full((150,), 10)
    characters = torch.randint(20, (1500,), generator=generator)
    tags = torch.roll(characters, -1) % 2
    tags[9::10] = 0
    text = TaggedText(characters[:, None], tags, sizes)

    def loss(f, y, mask):
        return (F.cross_entropy(f.transpose(1, 2), y, reduction="none") * mask).sum(1)

    right = {}
    for causal in (False, True):
        torch.manual_seed(1)
        encoder = KINDS[kind](causal)
        options = {"optimizer": torch.optim.Adam, "lr": 0.02, "epochs": 8, "characters": 100, "generator": generator}
        fit_tagger(encoder, text, loss, **options)
        f, mask = emissions_of(encoder, text)
        assert not f.requires_grad
        right[causal] = (f[mask].argmax(1) == tags).double().mean().item()
    assert right[False] > 0.95 and right[True] < 0.85


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RecurrentEncoder(0), "tags must be at least 1, got 0"),
        (lambda: RecurrentEncoder(layers=0), "layers must be at least 1, got 0"),
        (lambda: RecurrentEncoder(width=-1), "width must be at least 1, got -1"),
        (lambda: GatedConvolutions(dilations=()), "blocks must be at least 1, got 0"),
        (lambda: GatedConvolutions(dilations=(1, 0)), "dilation must be at least 1, got 0"),
        (lambda: GatedConvolutions(buckets=0), "buckets must be at least 1, got 0"),
        (lambda: GatedConvolutions(3, **SMALL)(torch.zeros(3, 1, dtype=torch.int64), torch.tensor([2])), "sum to the 3 rows"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
