"""Small tables of measurements that scikit-learn carries: chemical analyses of wines, and cell nuclei from breast biopsies.

Columns keep their units and their order; they differ in size by factors of thousands, which is what a study of scaling wants.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from kexue.data.packages import Source, parsed

__all__ = ["Table", "breast_cancer", "wine"]

_WINE = Source("the wines", "scikit-learn", "sklearn/datasets/data/wine_data.csv", '"scikit-learn>=1.6"', "10e8a802908b34f8")
_BREAST_CANCER = Source(
    "the biopsies", "scikit-learn", "sklearn/datasets/data/breast_cancer.csv", '"scikit-learn>=1.6"', "fed3eb72d0575ef6"
)


class Table(NamedTuple):
    """Measurements with their classes: row ``features[i]`` is of class ``labels[i]``."""

    features: Float64[Tensor, "count features"]
    labels: Int64[Tensor, " count"]


def wine() -> Table:
    """Return 13 chemical measurements of each of 178 wines from three cultivars.

    Raises :class:`~kexue.data.MissingData` without scikit-learn. Source: S. Aeberhard and M. Forina, UCI repository (1992).
    """
    return _table(_WINE)


def breast_cancer() -> Table:
    """Return 30 measurements of the nuclei in each of 569 biopsies; class 0 is malignant, class 1 benign.

    Raises :class:`~kexue.data.MissingData` without scikit-learn. Source: W. Wolberg, O. Mangasarian, N. Street and W. Street, UCI
    repository (1995).
    """
    return _table(_BREAST_CANCER)


def _table(source: Source) -> Table:
    def parse(path: Path) -> dict[str, np.ndarray]:
        table = np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)
        return {"features": table[:, :-1], "labels": table[:, -1].astype(np.int64)}

    arrays = parsed(source, parse)
    return Table(torch.from_numpy(arrays["features"]), torch.from_numpy(arrays["labels"]))
