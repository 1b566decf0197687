"""``python -m kexue.book``: execute the chapters, collect their evidence, check the notebooks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kexue.book import sources
from kexue.book.context import SCALES

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, or 1 if a chapter failed or a check found something, 2 for a wrong request."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except ValueError as error:
        print(f"kexue.book {options.command}: {error}", file=sys.stderr)
        return 2


def _execute(options: argparse.Namespace) -> int:
    from kexue.book import execution, normalise

    in_place = not options.check and (options.scale, options.seed) == ("cpu", 0)

    def done(task: execution.Task, result: execution.Result, text: str) -> None:
        if in_place and result.outcome == "ok":
            normalise.write_atomically(Path(task.path), text)

    tasks = execution.plan(options.root, options.chapters, scales=[options.scale], seeds=[options.seed])
    results = execution.execute(tasks, options.root / options.state, **_engine(options), done=done)
    print(execution.report(results))
    if not in_place:
        print(f"executed notebooks: {options.root / options.state} (chapters/ is written at scale cpu with seed 0 only)")
    return int(any(r.outcome != "ok" for r in results))


def _evidence(options: argparse.Namespace) -> int:
    from kexue.book import evidence, execution, normalise

    if options.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {options.seeds}")
    path = options.root / "data/evidence.json"
    old = evidence.load(path)
    finished: list[tuple[execution.Task, execution.Result, str]] = []
    tasks = execution.plan(options.root, options.chapters, scales=options.scales, seeds=range(options.seeds), evidence=True)
    results = execution.execute(
        tasks, options.root / options.state, **_engine(options), done=lambda task, result, text: finished.append((task, result, text))
    )
    known = {slug: source.read_text(encoding="utf-8") for slug, source in sources.find_chapters(options.root).items()}
    new = evidence.merge(old, evidence.collect(finished), known)
    normalise.write_atomically(path, evidence.to_text(new))
    print(execution.report(results))
    for claim in new["claims"]:
        for scale, result in claim["results"].items():
            if result["passed"] < result["n"]:
                print(f"claim {claim['id']} ({claim['chapter']}, {scale}): {result['passed']} of {result['n']} runs")
    print(f"{len(new['claims'])} claims, {len(new['runs'])} runs in {path}")
    return int(any(r.outcome != "ok" for r in results))


def _check(options: argparse.Namespace) -> int:
    from kexue.book import checks

    options.chapters += options.slugs
    findings = checks.check(options.root, options.chapters)
    for finding in findings:
        print(finding)
    count = len(sources.select(sources.find_chapters(options.root), options.chapters))
    print(f"{count} chapter{'s' * (count != 1)} checked: {len(findings) or 'no'} finding{'s' * (len(findings) != 1)}")
    return int(bool(findings))


def _engine(options: argparse.Namespace) -> dict:
    return {"scheduler": options.scheduler, "workers": options.workers, "force": options.force, "timeout": options.timeout}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kexue.book", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--root", type=Path, default=Path("."), help="the book's folder, which holds chapters/ (default: here)")
    common.add_argument("--chapters", nargs="*", default=[], metavar="SLUG", help="chapters by slug (default: all)")

    engine = argparse.ArgumentParser(add_help=False)
    engine.add_argument("--scheduler", metavar="tcp://HOST:PORT", help="address of a dask scheduler (default: a cluster on this machine)")
    engine.add_argument("--workers", type=int, metavar="N", help="worker processes of the cluster on this machine (default: one per core)")
    engine.add_argument("--force", action="store_true", help="run finished tasks again")
    engine.add_argument("--timeout", type=float, default=3600.0, metavar="SECONDS", help="limit for one cell (default: %(default)s)")
    engine.add_argument("--state", type=Path, default=Path("_build/execution"), help="folder of finished results (default: %(default)s)")

    run = commands.add_parser("execute", parents=[common, engine], help="execute chapters and write the canonical notebooks back")
    run.add_argument("--scale", choices=SCALES, default="cpu", help="size of the experiments (default: cpu)")
    run.add_argument("--seed", type=int, default=0, help="seed of every random generator (default: 0)")
    run.add_argument("--check", action="store_true", help="write nothing back: only see whether the chapters pass with these parameters")
    run.set_defaults(run=_execute)

    collect = commands.add_parser("evidence", parents=[common, engine], help="run chapters over seeds and write data/evidence.json")
    collect.add_argument("--seeds", type=int, default=5, metavar="K", help="run with the seeds 0 to K - 1 (default: %(default)s)")
    collect.add_argument("--scales", nargs="+", choices=SCALES, default=["cpu"], metavar="SCALE", help="smoke, cpu, gpu (default: cpu)")
    collect.set_defaults(run=_evidence)

    static = commands.add_parser("check", parents=[common], help="check the committed notebooks without running them")
    static.add_argument("slugs", nargs="*", default=[], metavar="SLUG", help="chapters by slug (default: all)")
    static.set_defaults(run=_check)
    return parser


if __name__ == "__main__":
    sys.exit(main())
