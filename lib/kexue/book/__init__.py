"""What notebooks and continuous integration share: chapter context, claims, glued numbers, tables, execution and evidence.

Importing this package costs nothing heavy: torch and matplotlib are loaded when a chapter is opened, so that the site can be built
from committed notebooks without either of them.
"""

from kexue.book.claims import Claim, ClaimFailed, wrong_verdicts
from kexue.book.context import SCALES, Chapter, chapter
from kexue.book.display import glue, table
from kexue.book.interactive import Curve, slider

__all__ = ["SCALES", "Chapter", "Claim", "ClaimFailed", "Curve", "chapter", "glue", "slider", "table", "wrong_verdicts"]
