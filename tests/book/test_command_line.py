"""``python -m kexue.book`` says what it did, and its exit status says whether all is well: 0 yes, 1 no, 2 not understood."""

import json
import subprocess
import sys

import pytest
from kexue.book import execution, normalise
from kexue.book.__main__ import main
from nbformat.v4 import new_code_cell, new_notebook

FINE = "print(scale, seed)"
CLAIMS = """from kexue.book.claims import evaluate, show
show(evaluate("is-even", "The seed is even.", seed % 2, "==", 0))"""


@pytest.fixture
def book(tmp_path):
    """A book of chapters, each of a parameters cell and one more cell."""

    def write(parameters='scale = "cpu"\nseed = 0', **chapters):
        for slug, source in chapters.items():
            cells = [new_code_cell(parameters, metadata={"tags": ["parameters"]}), new_code_cell(source)]
            path = tmp_path / "chapters" / "geometry" / f"{slug.replace('_', '-')}.ipynb"
            normalise.write_atomically(path, normalise.to_text(normalise.normalise(new_notebook(cells=cells))))
        return tmp_path

    return write


def texts(root):
    return {path.stem: path.read_text() for path in sorted((root / "chapters").rglob("*")) if path.is_file()}


def test_execute_writes_finished_chapters_back_and_leaves_failed_ones(book, address, capsys):
    root = book(batch_norm=FINE, random_angles="1 / 0")
    before = texts(root)
    assert main(["execute", "--root", str(root), "--scheduler", address]) == 1
    after = texts(root)
    assert "cpu 0" in after["batch-norm"] and after["random-angles"] == before["random-angles"] and set(after) == set(before)
    printed = capsys.readouterr().out
    assert "1 of 2 passed" in printed and "ZeroDivisionError" in printed
    assert main(["execute", "--root", str(root), "--scheduler", address, "--chapters", "batch-norm"]) == 0
    assert texts(root) == after  # twice gives the same bytes


@pytest.mark.parametrize("options", [["--check"], ["--scale", "smoke"], ["--seed", "3"], ["--scale", "smoke", "--check"]])
def test_nothing_is_written_back_with_check_or_with_other_parameters(options, book, address, capsys):
    root = book(random_angles=FINE)
    before = texts(root)
    assert main(["execute", "--root", str(root), "--scheduler", address, *options]) == 0
    assert texts(root) == before
    assert "chapters/ is written at scale cpu with seed 0 only" in capsys.readouterr().out
    assert len(list((root / "_build/execution").iterdir())) == 2


def test_evidence_counts_failed_claims_without_failing(book, address, capsys):
    root = book(random_angles=CLAIMS)
    assert main(["evidence", "--root", str(root), "--scheduler", address, "--seeds", "2", "--scales", "smoke"]) == 0
    (claim,) = json.loads((root / "data/evidence.json").read_text())["claims"]
    assert claim["results"]["smoke"]["n"] == 2 and claim["results"]["smoke"]["passed"] == 1
    printed = capsys.readouterr().out
    assert "claim is-even (random-angles, smoke): 1 of 2 runs" in printed and "1 claims, 2 runs in" in printed
    text = (root / "data/evidence.json").read_text()
    assert main(["evidence", "--root", str(root), "--seeds", "2", "--scales", "smoke"]) == 0  # all finished: no cluster is needed
    assert (root / "data/evidence.json").read_text() == text


def test_evidence_of_a_chapter_that_breaks_is_status_1(book, address):
    root = book(random_angles="1 / 0")
    assert main(["evidence", "--root", str(root), "--scheduler", address, "--seeds", "1"]) == 1
    assert json.loads((root / "data/evidence.json").read_text())["runs"][0]["outcome"] == "failed"


@pytest.mark.parametrize("named", [["random-angles"], ["--chapters", "random-angles"], []])
def test_check_prints_findings_and_their_number(named, book, capsys):
    assert main(["check", "--root", str(book(random_angles=FINE)), *named]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"1 chapter checked: {len(lines) - 1} findings"
    assert all(line.startswith("chapters/geometry/random-angles.ipynb:") for line in lines[:-1])


@pytest.mark.parametrize(("count", "ending"), [(0, "1 chapter checked: no findings"), (1, "1 chapter checked: 1 finding")])
def test_check_status_says_whether_anything_was_found(count, ending, book, capsys, monkeypatch):
    from kexue.book import checks

    found = [checks.Finding("a.ipynb", 1, "what", "mend")] * count
    monkeypatch.setattr(checks, "check", lambda root, slugs: found)
    assert main(["check", "--root", str(book(random_angles=FINE))]) == count
    assert capsys.readouterr().out.splitlines()[-1] == ending


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["execute", "--chapters", "x"], "kexue.book execute: unknown chapter 'x'; the chapters are random-angles"),
        (["evidence", "--chapters", "x"], "kexue.book evidence: unknown chapter 'x'; the chapters are random-angles"),
        (["check", "x"], "kexue.book check: unknown chapter 'x'; the chapters are random-angles"),
        (["evidence", "--seeds", "0"], "--seeds must be at least 1, got 0"),
    ],
)
def test_wrong_requests_are_status_2_with_one_line(command, message, book, capsys):
    assert main([*command, "--root", str(book(random_angles=FINE))]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and len(captured.err.splitlines()) == 1 and captured.out == ""


def test_misspelt_parameter_is_status_2_by_name(book, capsys):
    assert main(["execute", "--root", str(book(parameters="scale = 'cpu'\nsede = 0", random_angles=FINE))]) == 2
    assert "no parameter 'seed'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["dance"], ["execute", "--scale", "huge"]])
def test_unknown_commands_and_choices_are_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_options_reach_the_execution(book, monkeypatch):
    seen = {}

    def execute(tasks, state, **options):
        seen.update(options, state=state)
        return []

    monkeypatch.setattr(execution, "execute", execute)
    root = book(random_angles=FINE)
    options = ["--workers", "3", "--force", "--timeout", "5", "--state", "elsewhere"]
    assert main(["execute", "--root", str(root), *options]) == 0
    assert seen.pop("done") and seen == {"scheduler": None, "workers": 3, "force": True, "timeout": 5.0, "state": root / "elsewhere"}


def test_module_runs_as_a_command_and_passes_its_status_on(tmp_path):
    run = subprocess.run([sys.executable, "-m", "kexue.book", "check", "--root", str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 2 and "no chapter found" in run.stderr
