"""Find a file of an installed package, check that it is the expected one, and cache what was parsed from it.

A :class:`Source` names a file: which distribution, which path inside it, the ``pip`` line that installs it, and the first
hexadecimal digits of the file's SHA-256. The digest has two uses. It refuses a file other than the one every number of the book
was computed from, and it is the key of the cache: another file can never be answered with stale arrays. The cache is a
convenience only. If the directory cannot be written, or a cached file cannot be read, the source is parsed again.
"""

import contextlib
import hashlib
import os
import sys
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

__all__ = ["MissingData", "Source", "cache_directory", "parsed"]

_UNREADABLE_CACHE = (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error)  # an npz that is absent, truncated or something else


class MissingData(ImportError):
    """A data package is not installed, or its file is not the expected one; the message ends with the ``pip`` line to run."""


@dataclass(frozen=True)
class Source:
    """One data file of one distribution.

    ``content`` says in words what the file holds, ``install`` is what follows ``pip install`` on the command line, and
    ``sha256`` is a prefix of the file's digest (empty: any content is accepted).
    """

    content: str
    package: str
    path: str
    install: str
    sha256: str = ""

    def locate(self) -> Path:
        """Return the path of the file or folder; raise :class:`MissingData` if the package or the file is not there."""
        try:
            found = Path(str(distribution(self.package).locate_file(self.path)))
        except PackageNotFoundError as error:
            raise self.missing("is not installed") from error
        if not found.exists():
            raise self.missing(f"is installed without its file {self.path}")
        return found

    def missing(self, what: str) -> MissingData:
        """Return the error for this source: what it holds, what is wrong with the package, and what to run."""
        return MissingData(
            f"{self.content} comes from the package {self.package}, which {what}. Run: pip install {self.install}", name=self.package
        )

    def digest(self) -> str:
        """Return the SHA-256 of the file in hexadecimal; raise :class:`MissingData` if it does not begin with the expected digits."""
        with self.locate().open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if not found.startswith(self.sha256):
            raise self.missing(f"is installed with another file {self.path} (SHA-256 {found[:16]}, expected {self.sha256})")
        return found


def cache_directory() -> Path:
    """Return the folder for parsed data: ``$KEXUE_CACHE`` if that is set, else ``kexue`` in the user's cache folder. It need not exist."""
    if chosen := os.environ.get("KEXUE_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "~/AppData/Local")
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "kexue"


def parsed(source: Source, parse: Callable[[Path], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return ``parse(path)`` for the file of ``source``, from the cache if this very file has been parsed before.

    Two processes may do this at once: a finished file is moved into place in one step, so that a reader sees either nothing or
    everything.
    """
    stored = cache_directory() / f"{source.package}-{source.digest()[:32]}.npz"
    with contextlib.suppress(*_UNREADABLE_CACHE), np.load(stored, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
    arrays = parse(source.locate())
    with contextlib.suppress(OSError):  # a read-only home is no reason to fail: the arrays are here
        _store(stored, arrays)
    return arrays


def _store(path: Path, arrays: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
