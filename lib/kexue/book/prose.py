"""Markdown of a chapter as the checks see it: fences opened, code and mathematics taken out, labels, references and numbers found."""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = [
    "FORBIDDEN",
    "backticked",
    "decimals",
    "forbidden",
    "glued",
    "headings",
    "images_without_alt",
    "is_alt",
    "labels",
    "prose",
    "references",
]

FORBIDDEN = (
    (re.compile(r"\bobviously\b", re.I), "say why it holds, or leave the word out"),
    (re.compile(r"\bsimply\b(?! connected)", re.I), "leave the word out"),
    (re.compile(r"\beasy to see\b", re.I), "show it in one line"),
    (re.compile(r"\bstate[- ]of[- ]the[- ]art\b", re.I), "name the method and the number"),
    (re.compile(r"(?<![\w.:/])/(?:work|home|tmp|root|Users|mnt)/\w"), "a path of one machine means nothing to a reader"),
    (re.compile(r"\bcoming soon\b", re.I), "write of what is there"),
    (re.compile(r"\bTODO\b"), "do it, or open an issue"),
)
_PLAIN_DIRECTIVES = {"math", "literalinclude", "code-block", "code", "code-cell", "bibliography", "mermaid", "eval-rst"}
_FENCE = re.compile(r"^\s*(`{3,}|~{3,}|:{3,})\s*(\{[^}]*\})?(.*)$")
_LABEL = re.compile(r"^\s*:label:\s*(\S+)\s*$|^\s*\(([^)\s]+)\)=\s*$|^.*\$\$\s*\(([^)\s]+)\)\s*$", re.M)
_SOLUTION = re.compile(r"\{solution(?:-start)?\}\s*(\S+)")
_REFERENCE = re.compile(r"\{(ref|prf:ref|eq|numref)\}`([^`]+)`")
_GLUED = re.compile(r"\{glue:(?:text|math|md|figure)?\}\s*`?([A-Za-z0-9-]+)")
_DECIMAL = re.compile(r"(?<![\w.,/-])\d+\.\d+(?![\w.])(?:[eE][+-]?\d+)?")


def prose(markdown: str) -> str:
    """``markdown`` without code, mathematics, roles, links' targets, options of directives and comments; lines keep their numbers."""
    text = "\n".join(line if keep else "" for line, keep in _lines(markdown))
    for pattern in (
        r"<!--.*?-->",
        r"\$\$.*?\$\$",
        r"(?<![\\$])\$[^$]+\$",
        r"(?:\{[\w:.-]+\})?(`+)(?!`).+?(?<!`)\1(?!`)",
        r"(?<=\])\([^)\s]*\)",
    ):
        text = re.sub(pattern, lambda found: "\n" * found[0].count("\n"), text, flags=re.S)
    return re.sub(r"https?://\S+", "", text)


def _lines(markdown: str) -> Iterator[tuple[str, bool]]:
    """Each line and whether it is text for a reader."""
    fences: list[tuple[str, bool]] = []
    options = False
    for line in markdown.splitlines():
        fence = _FENCE.match(line)
        if fence and fences and not fence[2] and not fence[3].strip() and fence[1].startswith(fences[-1][0]):
            fences.pop()
            yield line, False
        elif fence and (not fences or fences[-1][1]) and (fence[2] or fence[1][0] != ":"):
            readable = bool(fence[2]) and fence[2].strip("{}") not in _PLAIN_DIRECTIVES
            fences.append((fence[1], readable))
            options = True
            yield (fence[3] if readable else line), readable
        else:
            options = options and bool(re.match(r"\s*:[\w-]+:", line))
            yield line, not options and (not fences or fences[-1][1])


def backticked(markdown: str) -> list[str]:
    """Directives that hold text for a reader between backticks, which a notebook viewer without MyST shows as raw code."""
    found = re.findall(r"^ *(`{3,})\{([^}]+)\}[^\n]*\n(?:[ \t]*:[\w-]+:[^\n]*\n)*(.*?)^ *\1 *$", markdown, re.M | re.S)
    return [name for _, name, body in found if name not in _PLAIN_DIRECTIVES and body.strip()]


def headings(markdown: str) -> list[tuple[int, str]]:
    """Levels and texts of the headings, code left out."""
    found = (re.match(r"(#{1,6})\s+(.*)$", line) for line, keep in _lines(markdown) if keep)
    return [(len(match[1]), match[2]) for match in found if match]


def labels(markdown: str) -> list[str]:
    """Labels that directives, targets and equations define; a solution is named after its exercise."""
    return [next(filter(None, groups)) for groups in _LABEL.findall(markdown)]


def references(markdown: str) -> list[tuple[str, str]]:
    """(role, label) of all references by ``ref``, ``prf:ref``, ``eq`` and ``numref``, and of the exercises that solutions name."""
    found = [(role, re.sub(r"^.*<([^>]+)>$", r"\1", body, flags=re.S)) for role, body in _REFERENCE.findall(markdown)]
    return found + [("solution", label) for label in _SOLUTION.findall(markdown)]


def glued(markdown: str) -> list[str]:
    """Keys of the glued values that the text uses."""
    return _GLUED.findall(markdown)


def decimals(markdown: str) -> list[str]:
    """Typed decimals of three or more significant digits, outside mathematics, code and paragraphs (or tables) that cite a source."""
    blocks = re.split(r"\n\s*\n", markdown)
    for i, block in enumerate(blocks):
        if re.search(r"\{cite[:}]", block):
            blocks[i] = "\n".join(line for line in block.splitlines() if _FENCE.match(line))
    text = prose("\n\n".join(blocks))
    return [number for number in _DECIMAL.findall(text) if len(re.sub(r"[eE].*|\.", "", number).lstrip("0")) >= 3]


def forbidden(text: str) -> list[tuple[str, str]]:
    """Words of ``text`` that the style rules out, and what to do instead."""
    return [(match[0], mend) for pattern, mend in FORBIDDEN for match in pattern.finditer(text)]


def images_without_alt(markdown: str) -> list[str]:
    """Images of the text whose alt text is missing or a file name."""
    found = [target for alt, target in re.findall(r"!\[([^\]]*)\]\(([^)\s]+)", markdown) if not is_alt(alt)]
    for match in re.finditer(r"^\s*(`{3,}|:{3,})\{(?:figure|image|glue:figure)\}\s*(\S+)(.*?)^\s*\1", markdown, flags=re.S | re.M):
        alt = re.search(r"^\s*:alt:\s*(.+)$", match[3], flags=re.M)
        if not alt or not is_alt(alt[1]):
            found.append(match[2])
    return found


def is_alt(text: object) -> bool:
    """Whether ``text`` says what one sees: some words, not a file name."""
    return isinstance(text, str) and len(text.split()) >= 4 and not re.search(r"\.(png|svg|jpe?g|gif)\W*$", text.strip(), re.I)
