"""Tests of kexue.transformers.bert: real weights in the book's encoder, against PyTorch's own layers and against what they should know."""

import math

import pytest
import torch
from kexue import data
from kexue.transformers.bert import MaskedModel, bert_embedding, bert_encoder
from kexue.transformers.encoder import initialize_
from torch import nn
from torch.nn import functional


@pytest.fixture(scope="module")
def weights():
    return data.minilm_weights()


@pytest.fixture(scope="module")
def vocabulary():
    return {word: index for index, word in enumerate(data.minilm_vocabulary())}


def encode(weights, vocabulary, text):
    tokens = torch.tensor([[vocabulary[word] for word in ["[CLS]", *text.split(), "[SEP]"]]])
    with torch.no_grad():
        return bert_encoder(weights, 12)(bert_embedding(weights, tokens))


def test_sentences_of_like_meaning_are_close(weights, vocabulary):
    texts = ["the cat sat on the warm roof", "a cat was lying on top of the house", "interest rates rose", "the bank raised its rates"]
    means = torch.cat([nn.functional.normalize(encode(weights, vocabulary, text).mean(1), dim=-1) for text in texts])
    cosine = means @ means.T
    assert min(cosine[0, 1], cosine[2, 3]) > 0.3 + max(cosine[i, j] for i in (0, 1) for j in (2, 3))


def test_encoder_matches_pytorch_layers(weights, vocabulary):
    tokens = torch.tensor([[vocabulary[word] for word in ["two", "dogs", "slept", "in", "the", "garden"]]])
    expected = x = bert_embedding(weights, tokens)
    for layer in range(6):
        peer = nn.TransformerEncoderLayer(384, 12, 1536, dropout=0.0, activation="gelu", layer_norm_eps=1e-12, batch_first=True).eval()
        stored = {name.removeprefix(f"encoder.layer.{layer}."): w for name, w in weights.items() if f"encoder.layer.{layer}." in name}
        merged = {
            f"self_attn.in_proj_{kind}": torch.cat([stored[f"attention.self.{part}.{kind}"] for part in ("query", "key", "value")])
            for kind in ("weight", "bias")
        }
        pairs = {"self_attn.out_proj": "attention.output.dense", "linear1": "intermediate.dense", "linear2": "output.dense"}
        pairs |= {"norm1": "attention.output.LayerNorm", "norm2": "output.LayerNorm"}
        merged |= {f"{ours}.{kind}": stored[f"{theirs}.{kind}"] for ours, theirs in pairs.items() for kind in ("weight", "bias")}
        peer.load_state_dict(merged)
        with torch.no_grad():
            expected = peer(expected)
    with torch.no_grad():
        assert torch.allclose(bert_encoder(weights, 12)(x), expected, atol=2e-5)


def test_embedding_by_hand(weights):
    tokens = torch.tensor([[101, 2003, 102], [5, 5, 5]])
    out = bert_embedding(weights, tokens)
    w = {kind: weights[f"embeddings.{kind}_embeddings.weight"].double() for kind in ("word", "position", "token_type")}
    z = w["word"][5] + w["position"][1] + w["token_type"][0]
    z = (z - z.mean()) / z.std(correction=0)
    expected = z * weights["embeddings.LayerNorm.weight"] + weights["embeddings.LayerNorm.bias"]
    assert out.shape == (2, 3, 384) and torch.allclose(out[1, 1].double(), expected, atol=1e-5)


def test_small_models_and_refusals(weights):
    few = {name: w for name, w in weights.items() if not name.startswith("encoder.layer.") or int(name.split(".")[2]) < 2}
    encoder = bert_encoder(few, 6)
    assert len(encoder.blocks) == 2 and encoder.blocks[0].attention.heads == 6 and encoder.blocks[1].norms[0].eps == 1e-12
    assert torch.equal(encoder.blocks[1].feedforward.up.bias, weights["encoder.layer.1.intermediate.dense.bias"])
    with pytest.raises(ValueError, match=r"weights must have names that start with 'encoder\.layer\.0\.'"):
        bert_encoder({"pooler.dense.weight": torch.ones(2, 2)}, 1)
    with pytest.raises(ValueError, match="heads must divide width, got width=384, heads=7"):
        bert_encoder(few, 7)
    with pytest.raises(KeyError, match="key"):
        bert_encoder({name: w for name, w in few.items() if "layer.1.attention.self.key" not in name}, 6)
    with pytest.raises(ValueError, match="tokens must hold at most 512 positions, got 513"):
        bert_embedding(weights, torch.zeros(1, 513, dtype=torch.int64))
    for outside in (30522, -1):
        with pytest.raises(IndexError):
            bert_embedding(weights, torch.tensor([[outside]]))


# --- the model that is pre-trained


def masked_model(**options):
    torch.manual_seed(0)
    return MaskedModel(7, 5, 2, 8, 2, **options)


@pytest.mark.parametrize("head", [True, False])
def test_masked_model_matches_the_formula_written_out(head):
    model, tokens = masked_model(head=head), torch.tensor([[0, 7, 3], [6, 2, 7]])
    nn.init.normal_(model.bias)
    vectors = torch.stack([model.symbol.weight[row] + model.place.weight[:3] for row in tokens])
    h = model.encoder(functional.layer_norm(vectors, (8,)))
    if head:
        dense, _, norm = model.head
        h = norm(functional.gelu(h @ dense.weight.T + dense.bias))
    expected = torch.stack([(h * model.symbol.weight[v]).sum(-1) + model.bias[v] for v in range(7)], -1)
    assert torch.allclose(model(tokens), expected, atol=1e-5)


def test_masked_model_shares_its_vectors_and_never_predicts_the_mask():
    model = masked_model(head=False)
    logits = model(torch.tensor([[0, 1, 7]]))
    assert logits.shape == (1, 3, 7)
    logits[0, 2, 5].backward()
    touched = model.symbol.weight.grad.abs().sum(1) > 0
    assert touched.tolist() == [True, True, False, False, False, True, False, True]  # read: 0, 1 and the mask; predicted: 5


def test_masked_model_starts_at_the_loss_of_guessing():
    torch.manual_seed(0)
    model = initialize_(MaskedModel(2000, 16, 1, 256, 4), lambda w: nn.init.normal_(w, std=0.02))
    tokens = torch.randint(2000, (8, 16))
    loss = functional.cross_entropy(model(tokens).flatten(0, 1), torch.randint(2000, (128,)))
    q = 256 * 0.02**2  # logits are normal with variance q
    assert loss.item() == pytest.approx(math.log(2000) + q / 2, abs=5 * math.sqrt(q / 128))


def test_masked_model_without_a_head_has_fewer_parameters_and_one_place_less_is_fine():
    with_head, without = (sum(p.numel() for p in masked_model(head=h).parameters()) for h in (True, False))
    assert with_head - without == 8 * 8 + 8 + 2 * 8
    assert masked_model()(torch.tensor([[3]])).shape == (1, 1, 7)


def test_masked_model_refuses():
    for symbols, places in ((0, 3), (3, 0)):
        with pytest.raises(ValueError, match=f"symbols and places must be at least 1, got symbols={symbols}, places={places}"):
            MaskedModel(symbols, places, 1, 8, 2)
    with pytest.raises(ValueError, match="tokens must hold at most 5 places, got 6"):
        masked_model()(torch.zeros(1, 6, dtype=torch.long))
