"""``python -m kexue.book``: execute the chapters, collect their evidence, check the notebooks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

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
    if not options.check and not in_place:
        raise ValueError("only a run at scale cpu with seed 0 is written back into chapters/; add --check for other parameters")

    def done(task: execution.Task, result: execution.Result, text: str) -> None:
        if in_place and result.outcome == "ok":
            normalise.write_atomically(Path(task.path), text)

    tasks = execution.plan(options.root, options.chapters, scales=[options.scale], seeds=[options.seed])
    results = execution.execute(tasks, options.root / options.state, **_engine(options), done=done)
    print(execution.report(results))
    return int(any(r.outcome != "ok" for r in results))


def _evidence(options: argparse.Namespace) -> int:
    from kexue.book import evidence, execution

    finished: list[tuple[execution.Result, str]] = []
    path = options.root / "data" / "evidence.json"
    known = evidence.load(path)
    tasks = execution.plan(options.root, options.chapters, scales=options.scales, seeds=range(options.seeds), evidence=True)
    keep = lambda _, result, text: finished.append((result, text))  # noqa: E731
    results = execution.execute(tasks, options.root / options.state, **_engine(options), done=keep)
    evidence.save(path, evidence.merge(known, evidence.gather(finished)))
    print(execution.report(results))
    return int(any(r.outcome != "ok" for r in results))


def _check(options: argparse.Namespace) -> int:
    from kexue.book import checks, sources

    findings = checks.check(options.root, sources.select(sources.find_chapters(options.root), options.chapters))
    print("\n".join(map(str, findings)) or "nothing found")
    return int(bool(findings))


def _engine(options: argparse.Namespace) -> dict:
    return {"scheduler": options.scheduler, "workers": options.workers, "force": options.force, "timeout": options.timeout}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kexue.book", description=__doc__)
    parser.set_defaults(run=lambda options: parser.error("name a command"))
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

    many = commands.add_parser("evidence", parents=[common, engine], help="run chapters over seeds and scales and write data/evidence.json")
    many.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds 0 to N-1 (default: %(default)s)")
    many.add_argument("--scales", nargs="+", choices=SCALES, default=["cpu"], help="scales (default: cpu)")
    many.set_defaults(run=_evidence)

    static = commands.add_parser("check", parents=[common], help="check the committed notebooks without running them")
    static.set_defaults(run=_check)
    return parser


if __name__ == "__main__":
    sys.exit(main())
