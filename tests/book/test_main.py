"""The command line: what is written where, and the exit status."""

import json

import pytest
from kexue.book import normalise
from kexue.book.__main__ import main

from .small import CLAIM, book, notebook

FAILS = "raise ValueError('no good')"


def test_execute_writes_back_what_passed_leaves_what_failed_and_says_so(tmp_path, capsys):
    root = book(tmp_path, good=notebook("print(1)"), bad=notebook("print(1)", FAILS))
    good, bad = (root / f"chapters/part/{name}.ipynb" for name in ("good", "bad"))
    before = bad.read_bytes()
    assert main(["execute", "--root", str(root), "--workers", "1"]) == 1
    assert bad.read_bytes() == before and "cell 3: ValueError: no good" in capsys.readouterr().out
    cells = normalise.read(good).cells
    assert [c.execution_count for c in cells[1:]] == [1, 2] and cells[2].outputs[0].text == "1\n"
    after = good.read_bytes()
    assert main(["execute", "--root", str(root), "--chapters", "good", "--force"]) == 0 and good.read_bytes() == after
    assert main(["execute", "--root", str(root), "--chapters", "good", "--seed", "3", "--check"]) == 0 and good.read_bytes() == after
    assert "_build/execution" in capsys.readouterr().out
    assert sorted(path.name for path in good.parent.iterdir()) == ["bad.ipynb", "good.ipynb"]


def test_evidence_counts_passes_over_seeds_and_merges(tmp_path, capsys):
    """The claim holds for the seeds 0 and 1 and not for 2: evidence runs go on and report the rate."""
    claim = CLAIM.format(id="small-seeds", measured="seed / 1", limit="2")
    root = book(tmp_path, one=notebook(claim))
    assert main(["evidence", "--root", str(root), "--seeds", "3", "--workers", "1"]) == 0
    assert "claim small-seeds (one, cpu): 2 of 3 runs" in capsys.readouterr().out
    found = json.loads((root / "data/evidence.json").read_text())
    assert found["claims"][0]["results"] == {"cpu": {"device": "cpu", "n": 3, "passed": 2, "values": [0.0, 1.0, 2.0]}}
    assert main(["evidence", "--root", str(root), "--seeds", "1", "--scales", "smoke", "--workers", "1"]) == 0
    merged = json.loads((root / "data/evidence.json").read_text())
    assert set(merged["claims"][0]["results"]) == {"cpu", "smoke"} and len(merged["runs"]) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["execute", "--chapters", "god"], "unknown chapter 'god'; the chapters are good"),
        (["check", "god"], "unknown chapter 'god'; the chapters are good"),
        (["evidence", "--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["execute", "--root", "nowhere"], "no chapter found"),
    ],
)
def test_wrong_requests_are_refused_in_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(book(tmp_path, good=notebook()))
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"kexue.book {arguments[0]}: ") and message in line


@pytest.mark.parametrize("arguments", [[], ["run"], ["execute", "--scale", "large"]])
def test_unknown_commands_and_options_are_refused_with_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and "usage: python -m kexue.book" in capsys.readouterr().err
