"""Evidence: what every claim measured, run by run, collected from executed chapters into ``data/evidence.json``.

The file is small, sorted and merged: running some chapters at one scale replaces what was known of these chapters at this scale and leaves
the rest, so that results of an accelerator survive the next run without one. Its schema, version 1::

    {"schema": 1,
     "versions": {"python": "3.11.7", "torch": "2.13.0", ...},          those of runs at scale gpu: "torch (gpu)"
     "runs": [{"chapter", "scale", "seed", "device", "outcome", "seconds", "peak_mb"}, ...],
     "claims": [{"chapter", "id", "sentence", "relation", "limit", "unit",
                 "results": {"cpu": {"device": "cpu", "n": 5, "passed": 5, "values": [...], "limits": [...]}}}, ...]}

``limit`` is that of the run with the lowest seed; ``limits`` stands beside ``values`` only where it differs between the runs of a scale or
from ``limit``. Values that JSON has no numbers for are the strings "nan", "inf" and "-inf".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from kexue.book.context import SCALES
from kexue.book.execution import Result, Task

__all__ = ["SCHEMA", "claims_of", "collect", "load", "merge", "to_text"]

SCHEMA = 1
DIGITS = 6  # significant digits of the values; more would only record the machine

_RUN_FIELDS = ("chapter", "scale", "seed", "device", "outcome", "seconds", "peak_mb")


def claims_of(notebook: NotebookNode) -> list[dict[str, Any]]:
    """The claims recorded in a notebook's outputs, in their order."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [o.metadata["kexue"]["claim"] for o in outputs if "claim" in o.get("metadata", {}).get("kexue", {})]


def collect(finished: Iterable[tuple[Task, Result, str]]) -> dict[str, Any]:
    """Evidence from finished tasks: (task, result, text of the executed notebook)."""
    finished = sorted(finished, key=lambda item: (item[0].chapter, SCALES.index(item[0].scale), item[0].seed))
    claims: dict[tuple[str, str], dict[str, Any]] = {}
    versions: dict[str, str] = {}
    for task, result, text in finished:
        for name, version in result.versions.items():
            versions[f"{name} (gpu)" if task.scale == "gpu" else name] = version
        for record in claims_of(nbformat.reads(text, as_version=4)):
            entry = claims.setdefault((task.chapter, record["id"]), _entry(task.chapter, record))
            at_scale = entry["results"].setdefault(task.scale, {"device": result.device, "n": 0, "passed": 0, "values": [], "limits": []})
            at_scale["n"] += 1
            at_scale["passed"] += bool(record["passed"])
            at_scale["values"].append(_short(record["measured"]))
            at_scale["limits"].append(_short(record["limit"]))
    for entry in claims.values():
        for at_scale in entry["results"].values():
            if all(limit == entry["limit"] for limit in at_scale["limits"]):
                del at_scale["limits"]
    runs = [{field: getattr(result, field) for field in _RUN_FIELDS} for _, result, _ in finished]
    return {"schema": SCHEMA, "versions": versions, "runs": runs, "claims": list(claims.values())}


def merge(old: dict[str, Any], new: dict[str, Any], sources: dict[str, str]) -> dict[str, Any]:
    """``old`` evidence with everything replaced that ``new`` knows of the same chapter at the same scale.

    ``sources`` maps each chapter of the book to the text of its notebook: claims that no longer occur there, and chapters that are gone,
    are dropped.
    """
    renewed = {(run["chapter"], run["scale"]) for run in new["runs"]}
    runs = [run for run in old["runs"] if (run["chapter"], run["scale"]) not in renewed and run["chapter"] in sources]
    claims = {(claim["chapter"], claim["id"]): claim for claim in new["claims"]}
    for claim in old["claims"]:
        chapter = claim["chapter"]
        kept = {scale: result for scale, result in claim["results"].items() if (chapter, scale) not in renewed}
        if kept and claim["id"] in sources.get(chapter, ""):
            known = claims.setdefault((chapter, claim["id"]), claim | {"results": {}})
            for scale, result in kept.items():
                if known["limit"] != claim["limit"]:
                    result = {"limits": [claim["limit"]] * result["n"]} | result
                known["results"][scale] = result
    return {
        "schema": SCHEMA,
        "versions": old["versions"] | new["versions"],
        "runs": sorted(runs + new["runs"], key=lambda run: (run["chapter"], SCALES.index(run["scale"]), run["seed"])),
        "claims": [claims[key] for key in sorted(claims)],
    }


def load(path: Path) -> dict[str, Any]:
    """The evidence in the file ``path``; empty evidence if there is none. Raises ValueError for another schema."""
    if not path.exists():
        return {"schema": SCHEMA, "versions": {}, "runs": [], "claims": []}
    evidence = json.loads(path.read_text(encoding="utf-8"))
    if evidence.get("schema") != SCHEMA:
        raise ValueError(f"schema of {path} must be {SCHEMA}, got {evidence.get('schema')!r}")
    return evidence


def to_text(evidence: dict[str, Any]) -> str:
    """``evidence`` as JSON with sorted keys, one line per run and per claim."""

    def lines(rows: Sequence[Any]) -> str:
        return "[" + ",".join(f"\n  {json.dumps(row, sort_keys=True, ensure_ascii=False)}" for row in rows) + ("\n ]" if rows else "]")

    parts = {key: lines(value) if isinstance(value, list) else json.dumps(value, sort_keys=True) for key, value in evidence.items()}
    return "{\n" + ",\n".join(f' "{key}": {parts[key]}' for key in sorted(parts)) + "\n}\n"


def _entry(chapter: str, record: dict[str, Any]) -> dict[str, Any]:
    fields = {"chapter": chapter, "id": record["id"], "sentence": record["sentence"], "relation": record["relation"]}
    return fields | {"limit": _short(record["limit"]), "unit": record.get("unit"), "results": {}}


def _short(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_short(v) for v in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
