"""The planetary ephemeris DE421, which the package skyfield-data brings as a file.

The file is found by its path. Importing the package would warn about another file of it, a table of the Earth's rotation that has
expired and that nothing here reads.
"""

from pathlib import Path

from kexue.data.packages import Source

__all__ = ["ephemeris_path"]

_DE421 = Source(
    "the ephemeris DE421", "skyfield-data", "skyfield_data/data/de421.bsp", "--no-deps skyfield-data==7.0.0", "a20a7139da04cbc4"
)


def ephemeris_path() -> Path:
    """Return the path of the ephemeris file of the Jet Propulsion Laboratory, valid from 1899-07-29 to 2053-10-09.

    Raises :class:`~kexue.data.MissingData` without skyfield-data or if its file is another one. Source: Folkner, Williams and
    Boggs (2009); the file is in the public domain.
    """
    _DE421.digest()
    return _DE421.locate()
