"""Real data sets and weights that ship inside Python packages.

Nothing is fetched at run time: the package manager has already brought the bytes. A loader finds the file of an installed
package by its path, without importing the package, parses it once, and keeps the parsed arrays in a user cache that is keyed by
the SHA-256 of the source. A package that is not there raises :class:`MissingData`, whose message is the exact ``pip`` line.
"""

from kexue.data.corpus import TaggedLine, peoples_daily
from kexue.data.images import Images, Labelled, digits, mnist, mnist_5k, mnist_split
from kexue.data.packages import MissingData, cache_directory
from kexue.data.sky import ephemeris_path
from kexue.data.tables import Table, breast_cancer, wine
from kexue.data.text import Document, bbc_news, rotten_tomatoes
from kexue.data.vectors import WordVectors, glove_50d, minilm_embeddings, minilm_vocabulary, minilm_weights

__all__ = [
    "Document",
    "Images",
    "Labelled",
    "MissingData",
    "Table",
    "TaggedLine",
    "WordVectors",
    "bbc_news",
    "breast_cancer",
    "cache_directory",
    "digits",
    "ephemeris_path",
    "glove_50d",
    "minilm_embeddings",
    "minilm_vocabulary",
    "minilm_weights",
    "mnist",
    "mnist_5k",
    "mnist_split",
    "peoples_daily",
    "rotten_tomatoes",
    "wine",
]
