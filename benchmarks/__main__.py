"""Measure everything and write ``data/benchmarks.json``: ``python -m benchmarks`` or ``make bench``; name rows to measure only those."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.measure import ROOT, machine, measure, measure_memory, rounded, write
from benchmarks.rows import ROWS

OUTPUT = ROOT / "data" / "benchmarks.json"


def book() -> dict[str, Any]:
    """The whole book: seconds per chapter from the evidence, seconds of an HTML build from nothing, and the weight of each page."""
    evidence = ROOT / "data" / "evidence.json"
    runs = json.loads(evidence.read_text())["runs"] if evidence.exists() else []
    seconds: dict[str, list[float]] = {}
    for run in runs:
        if run["scale"] == "cpu" and run["outcome"] == "ok":
            seconds.setdefault(run["chapter"], []).append(run["seconds"])
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", "kexue.book.site", "build"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    built = time.perf_counter() - begun
    pages = {
        str(p.relative_to(ROOT / "_build/html")): weight(p)
        for p in sorted((ROOT / "_build/html").rglob("*.html"))
        if "autodoc" not in p.parts
    }
    chapters = {slug: sorted(values)[len(values) // 2] for slug, values in sorted(seconds.items())}
    return {
        "chapters": chapters,
        "html_build_s": built,
        "page_weight_kb": {k: v for k, v in pages.items() if k.startswith(("index", "chapters"))},
    }


def weight(page: Path) -> float:
    """Kilobytes of a page with its own pictures; styles, scripts and mathematics are shared by all pages and not counted."""
    from bs4 import BeautifulSoup

    pictures = {img["src"] for img in BeautifulSoup(page.read_text(), "html.parser").find_all("img") if "://" not in img.get("src", "")}
    files = [(page.parent / src).resolve() for src in pictures if not src.startswith("data:")]
    return (page.stat().st_size + sum(f.stat().st_size for f in files if f.exists())) / 1024


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--memory"]:
        (row,) = [row for row in ROWS if row.name == arguments[1]]
        print(measure_memory(row.contenders[arguments[2]]()))
        return 0
    known = [row.name for row in ROWS]
    if unknown := [name for name in arguments if name not in [*known, "book"]]:
        print(f"unknown row {', '.join(unknown)}; known are {', '.join(known)}, book", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    report = json.loads(OUTPUT.read_text()) if OUTPUT.exists() else {"schema": 1, "rows": []}
    measured = {row["name"]: row for row in report["rows"]}
    for row in tqdm([row for row in ROWS if not arguments or row.name in arguments], desc="benchmarks"):
        measured[row.name] = measure(row)
    for name in known:
        if name in measured:
            r = measured[name]
            print(f"{r['title']}\n  {r['ours']['label']:40} {r['ours']['median_s']:9.4f} s  {r['ours']['peak_mb']:8.1f} MB")
            for peer in r["peers"]:
                print(f"  {peer['label']:40} {peer['median_s']:9.4f} s  {peer['peak_mb']:8.1f} MB  {peer['ratio']:6.2f}x")
    report |= {"machine": machine(), "rows": [measured[name] for name in known if name in measured]}
    if not arguments or "book" in arguments:
        report["book"] = rounded(book())
    write(OUTPUT, report)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
