"""Reads what the pages show: chapters from committed notebooks, and the evidence, errata and benchmarks below ``data/``."""

from __future__ import annotations

import ast
import base64
import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

__all__ = ["Book", "Chapter", "Outcome", "format_number", "format_seconds"]

CARD_TAG = "card"
GLUED = "application/papermill.record/text/plain"
RELATION_SIGNS = {"<": "<", "<=": "≤", ">": ">", ">=": "≥", "==": "=", "in": "∈"}


@dataclass(frozen=True)
class Chapter:
    """A committed notebook as the site sees it."""

    docname: str
    slug: str
    part: str
    title: str
    question: str
    summary: str
    original: dict[str, str]
    claims: tuple[dict[str, Any], ...]
    values: dict[str, str]
    card: bytes | None
    card_alt: str

    @classmethod
    def read(cls, root: Path, docname: str, part: str) -> Chapter:
        """Read a chapter; raises ValueError if the notebook's ``kexue`` metadata lack something."""
        notebook = json.loads((root / f"{docname}.ipynb").read_text(encoding="utf-8"))
        about = notebook["metadata"].get("kexue", {})
        missing = [key for key in ("slug", "question", "summary", "original") if not about.get(key)]
        if missing:
            raise ValueError(f"{docname}.ipynb: the notebook metadata 'kexue' must have {', '.join(missing)}")
        if about["slug"] != Path(docname).name:
            raise ValueError(f"{docname}.ipynb: the slug in its metadata must be the file name, got {about['slug']!r}")
        headings = [line for cell in notebook["cells"] if cell["cell_type"] == "markdown" for line in _text(cell["source"]).splitlines()]
        title = next((line[2:].strip() for line in headings if line.startswith("# ")), about["slug"])
        claims, values, card, alt = [], {}, None, ""
        for cell in notebook["cells"]:
            for output in cell.get("outputs", []):
                record = output.get("metadata", {}).get("kexue", {}).get("claim")
                if record:
                    claims.append(record)
                if key := output.get("metadata", {}).get("scrapbook", {}).get("name"):
                    values[key] = ast.literal_eval(_text(output["data"][GLUED]))
                if CARD_TAG in cell["metadata"].get("tags", []) and "image/png" in output.get("data", {}):
                    card = base64.b64decode(_text(output["data"]["image/png"]))
                    alt = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")
        original = {key: str(value) for key, value in about["original"].items()}
        return cls(docname, about["slug"], part, title, about["question"], about["summary"], original, tuple(claims), values, card, alt)


@dataclass(frozen=True)
class Outcome:
    """How a claim fared in the runs of one scale on one kind of device."""

    scale: str
    device: str
    passed: int
    n: int
    values: tuple[float, ...]


@dataclass
class Book:
    """All chapters in the order of the table of contents, and the data files."""

    chapters: list[Chapter] = field(default_factory=list)
    evidence: dict[str, Any] = field(default_factory=dict)
    benchmarks: dict[str, Any] = field(default_factory=dict)
    errata: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)

    @classmethod
    def read(cls, root: Path) -> Book:
        """Read the book below ``root``; raises ValueError on a claim id used twice and on an erratum that points nowhere."""
        book = cls()
        toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
        for part in toc.get("parts", []):
            for entry in part.get("chapters", []):
                docname = entry.get("file", "").removesuffix(".ipynb")
                if docname.startswith("chapters/"):
                    book.chapters.append(Chapter.read(root, docname, part["caption"]))
                    book.files.append(root / f"{docname}.ipynb")
        seen: dict[str, str] = {}
        for chapter in book.chapters:
            for claim in chapter.claims:
                if claim["id"] in seen:
                    raise ValueError(f"claim id {claim['id']!r} is used in {seen[claim['id']]} and in {chapter.slug}")
                seen[claim["id"]] = chapter.slug
        book.evidence = book._json(root / "data/evidence.json")
        book.benchmarks = book._json(root / "data/benchmarks.json")
        for chapter in book.chapters:
            path = root / "data/errata" / f"{chapter.slug}.yml"
            if path.is_file():
                book.files.append(path)
                book.errata[chapter.slug] = yaml.safe_load(path.read_text(encoding="utf-8")) or []
                for erratum in book.errata[chapter.slug]:
                    if erratum.get("claim") and erratum["claim"] not in seen:
                        raise ValueError(f"{path.name}: erratum {erratum['id']!r} names the unknown claim {erratum['claim']!r}")
        return book

    def _json(self, path: Path) -> dict[str, Any]:
        if not path.is_file():
            return {}
        self.files.append(path)
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("schema") != 1:
            raise ValueError(f"{path.name}: schema must be 1, got {content.get('schema')!r}")
        return content

    @property
    def n_claims(self) -> int:
        """Number of claims in the committed notebooks."""
        return sum(len(chapter.claims) for chapter in self.chapters)

    def chapter(self, slug: str) -> Chapter:
        """The chapter of that name; raises KeyError naming the known ones."""
        for chapter in self.chapters:
            if chapter.slug == slug:
                return chapter
        raise KeyError(f"unknown chapter {slug!r}; the chapters are {', '.join(c.slug for c in self.chapters)}")

    def value(self, key: str) -> str:
        """The text that a chapter has glued under that key; raises KeyError if none has."""
        for chapter in self.chapters:
            if key in chapter.values:
                return chapter.values[key]
        raise KeyError(f"no chapter glues the key {key!r}")

    def run_time(self, slug: str, scale: str = "cpu") -> tuple[float, int] | None:
        """Median seconds and number of successful runs of a chapter at a scale, None before the first."""
        seconds = [
            run["seconds"]
            for run in self.evidence.get("runs", [])
            if run["chapter"] == slug and run["scale"] == scale and run["outcome"] == "ok"
        ]
        return (statistics.median(seconds), len(seconds)) if seconds else None

    def outcomes(self, chapter: Chapter, claim: dict[str, Any]) -> list[Outcome]:
        """Results of a claim by scale: from the evidence, and from the committed run where there is no evidence yet."""
        for row in self.evidence.get("claims", []):
            if row["id"] == claim["id"] and row["chapter"] == chapter.slug and row.get("results"):
                order = {"smoke": 0, "cpu": 1, "gpu": 2}
                return [
                    Outcome(scale, r.get("device", ""), r["passed"], r["n"], tuple(_floats(r["values"])))
                    for scale, r in sorted(row["results"].items(), key=lambda item: order.get(item[0].split("/")[0], 3))
                ]
        return [Outcome("committed run", "", int(claim["passed"]), 1, tuple(_floats([claim["measured"]])))]


def format_number(value: Any) -> str:
    """A number for a table: four significant digits at most, a true minus sign, readable powers of ten."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return {"inf": "∞", "-inf": "−∞"}.get(value, value)
    text = str(value) if isinstance(value, int) and abs(value) < 10**7 else f"{float(value):.4g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        text = f"10{power}" if mantissa == "1" else f"{mantissa} · 10{power}"
    return {"inf": "∞", "-inf": "−∞"}.get(text, text.replace("-", "−"))


def format_limit(claim: dict[str, Any]) -> str:
    """The relation and the limit of a claim: ``≤ 0.01`` or ``∈ [0.16, 0.22]``, with its unit."""
    limit = claim["limit"]
    text = f"[{', '.join(map(format_number, limit))}]" if isinstance(limit, list) else format_number(limit)
    return f"{RELATION_SIGNS[claim['relation']]} {text}" + (f" {claim['unit']}" if claim.get("unit") else "")


def format_seconds(seconds: float | int) -> str:
    """A duration with as many digits as a reader needs."""
    if seconds < 1:
        number, unit = (1000 * seconds, "ms") if seconds >= 0.001 else (1e6 * seconds, "µs")
        return f"{number:.0f} {unit}" if number >= 10 else f"{number:.1f} {unit}"
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _text(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)


def _floats(values: list[Any]) -> list[float]:
    return [float(value) for value in values]
