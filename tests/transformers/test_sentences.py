"""Tests of kexue.transformers.sentences: word pieces as BERT cuts them, and a classifier that is MiniLM with a layer on top."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kexue import data
from kexue.transformers.bert import bert_embedding, bert_encoder
from kexue.transformers.sentences import SentenceClassifier, encode_sentences, word_pieces
from torch import nn

TOY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "want", "##want", "##ed", "wa", "un", "runn", "##ing", ",", "low", "lowest"]


@pytest.fixture(scope="module")
def weights():
    return data.minilm_weights()


@pytest.fixture(scope="module")
def vocabulary():
    return data.minilm_vocabulary()


def small(seed=0, depth=None, classes=3):
    """A classifier on two blocks of width 8, of random weights."""
    g = torch.Generator().manual_seed(seed)
    shapes = {"word": 20, "position": 9, "token_type": 2}
    weights = {f"embeddings.{kind}_embeddings.weight": torch.randn(rows, 8, generator=g) for kind, rows in shapes.items()}
    weights |= {f"embeddings.LayerNorm.{kind}": torch.rand(8, generator=g) for kind in ("weight", "bias")}
    for name, value in bert_state(g).items():
        weights[name] = value
    return weights, SentenceClassifier(weights, 2, classes, depth=depth, generator=g)


def bert_state(g):
    shapes = {f"attention.self.{part}": (8, 8) for part in ("query", "key", "value")}
    shapes |= {"attention.output.dense": (8, 8), "intermediate.dense": (16, 8), "output.dense": (8, 16)}
    state = {}
    for layer in range(2):
        for name, shape in shapes.items():
            state[f"encoder.layer.{layer}.{name}.weight"] = torch.randn(shape, generator=g) / 3
            state[f"encoder.layer.{layer}.{name}.bias"] = torch.randn(shape[0], generator=g) / 3
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            state |= {f"encoder.layer.{layer}.{name}.{kind}": torch.rand(8, generator=g) for kind in ("weight", "bias")}
    return state


TOKENS = torch.tensor([[2, 5, 6, 3, 0, 0], [2, 7, 8, 9, 10, 3]])


# --- word pieces


def test_reference_example_oracle():
    """The example of BERT's own tests."""
    number = {entry: i for i, entry in enumerate(TOY)}
    assert word_pieces("UNwant\u00e9d,running", number) == ["un", "##want", "##ed", ",", "runn", "##ing"]
    assert word_pieces("unwantedX running", number) == ["[UNK]", "runn", "##ing"]


def test_longest_piece_first_law():
    number = {entry: i for i, entry in enumerate(TOY)}
    assert word_pieces("lowest", number) == ["lowest"]
    assert word_pieces("lowed", number) == ["low", "##ed"]
    assert word_pieces("lowwa", number) == ["[UNK]"]  # "wa" continues no word


def test_known_numbers_oracle(vocabulary):
    """Numbers that everybody who has printed BERT's input has seen."""
    tokens = encode_sentences(["A man is playing a guitar.", "Hello, world!"], vocabulary, longest=64)
    assert tokens.tolist() == [[101, 1037, 2158, 2003, 2652, 1037, 2858, 1012, 102], [101, 7592, 1010, 2088, 999, 102, 0, 0, 0]]


@given(st.text(max_size=30))
def test_pieces_are_entries_and_spell_the_text_law(text):
    number = {entry: i for i, entry in enumerate(data.minilm_vocabulary())}
    pieces = word_pieces(text, number)
    assert all(piece in number for piece in pieces)
    if text.isascii() and text.isprintable() and "[UNK]" not in pieces:
        spelled = "".join(piece.removeprefix("##") if len(piece) > 2 else piece for piece in pieces)
        assert spelled.replace(" ", "") == "".join(text.lower().split())


def test_word_extremes():
    number = {entry: i for i, entry in enumerate([*TOY, "a", "##a", "$"])}
    assert word_pieces("", number) == word_pieces(" \t\n", number) == []
    assert word_pieces("a" * 100, number) == ["a", *["##a"] * 99]
    assert word_pieces("a" * 101, number) == ["[UNK]"]
    assert word_pieces("a$a\u200ba", number) == ["a", "$", "a", "##a"]


def test_cut_and_padding_law():
    tokens = encode_sentences(["want want want", "low", ""], TOY, longest=4)
    assert tokens.tolist() == [[2, 4, 4, 3], [2, 12, 3, 0], [2, 3, 0, 0]]


def test_encoding_refusals():
    with pytest.raises(ValueError, match="longest must be at least 3"):
        encode_sentences(["low"], TOY, longest=2)
    with pytest.raises(ValueError, match="texts not empty"):
        encode_sentences([], TOY, longest=9)
    with pytest.raises(ValueError, match=r"vocabulary must hold the entry \[SEP\]"):
        encode_sentences(["low"], [entry for entry in TOY if entry != "[SEP]"], longest=9)


# --- the classifier


def test_features_of_minilm_oracle(weights, vocabulary):
    """Cosines that the released model gives with its own software."""
    model = SentenceClassifier(weights, 12, 2)
    texts = ["A man is playing a guitar.", "Someone plays an instrument.", "The stock market fell."]
    with torch.no_grad():
        means = nn.functional.normalize(model.features(encode_sentences(texts, vocabulary, longest=64)), dim=1)
    assert abs(means[0] @ means[1] - 0.667) < 6e-4
    assert abs(means[0] @ means[2] + 0.083) < 6e-4


def test_logits_by_hand_oracle():
    weights, model = small()
    h = bert_encoder(weights, 2)(bert_embedding(weights, TOKENS[:1, :4]))
    assert torch.allclose(model(TOKENS)[0], model.head(h.mean(1))[0], atol=1e-6)


def test_depth_oracle():
    weights, model = small(depth=1)
    first = {name: w for name, w in weights.items() if "layer.1." not in name}
    other = SentenceClassifier(first, 2, 3)
    other.head.load_state_dict(model.head.state_dict())
    assert torch.equal(model(TOKENS), other(TOKENS))
    assert len(model.encoder.blocks) == 1


def test_padding_law():
    _, model = small()
    wide = torch.cat([TOKENS, torch.zeros(2, 3, dtype=torch.long)], 1)
    assert torch.allclose(model(TOKENS), model(wide), atol=1e-6)


def test_all_parts_are_trained_gradient():
    weights, model = small()
    before = weights["embeddings.word_embeddings.weight"].clone()
    nn.functional.cross_entropy(model(TOKENS), torch.tensor([0, 2])).backward()
    keys = "attention.key.bias"  # moves all scores of a query alike, so its gradient is zero
    assert all(p.grad is not None and p.grad.abs().max() > 0 for name, p in model.named_parameters() if not name.endswith(keys))
    assert model.embedding.weight.grad[0].abs().max() == 0
    with torch.no_grad():
        model.embedding.weight.add_(1)
    assert torch.equal(weights["embeddings.word_embeddings.weight"], before)


def test_start_law():
    heads = [small()[1].head.weight for _ in range(2)]
    assert torch.equal(*heads)
    assert heads[0].abs().max() <= 8**-0.5
    assert heads[0].unique().numel() > 1


def test_classifier_refusals():
    weights, model = small()
    for depth in (0, 3):
        with pytest.raises(ValueError, match=f"between 1 and the 2 blocks of weights, got {depth}"):
            SentenceClassifier(weights, 2, 3, depth=depth)
    with pytest.raises(ValueError, match="at most 9 places, got 10"):
        model(torch.ones(1, 10, dtype=torch.long))
    with pytest.raises(ValueError, match="mask must leave every token"):
        model(torch.tensor([[0, 0], [2, 3]]))
