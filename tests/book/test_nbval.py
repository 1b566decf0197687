"""nbval goes red on a changed character and lets a changed digit pass in claim lines and glued numbers alone."""

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

CONFIGURATION = Path(__file__).resolve().parents[1] / "nbval_sanitize.cfg"
CELLS = [
    'from kexue.book.claims import evaluate, show\nshow(evaluate("an-id", "A sentence with 1 digit.", VALUE, "<", 2.0, draws=5))',
    'from kexue.book import glue\ntext = glue("a-key", GLUED, ".2f")',
    'print("printed", PRINTED)',
    "RESULT",
]
PLAIN = {"VALUE": "0.25", "GLUED": "0.5", "PRINTED": "3", "RESULT": "0.125"}


def notebook(values):
    cells = []
    for count, source in enumerate(CELLS, 1):
        for name, value in values.items():
            source = source.replace(name, value)
        cells.append(nbformat.v4.new_code_cell(source, execution_count=count))
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    from nbclient import NotebookClient

    executed = notebook(PLAIN)
    NotebookClient(executed, record_timing=False).execute()
    return executed


def passes(folder, committed, **changed):
    """Whether nbval accepts the committed outputs for a source with ``changed`` values."""
    twin = notebook(PLAIN | changed)
    for cell, old in zip(twin.cells, committed.cells, strict=True):
        cell.outputs = old.outputs
    nbformat.write(twin, folder / "a.ipynb")
    shutil.copy(CONFIGURATION, folder)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--nbval",
        f"--nbval-sanitize-with={CONFIGURATION.name}",
        "-p",
        "no:cacheprovider",
        "a.ipynb",
    ]
    return subprocess.run(command, cwd=folder, capture_output=True).returncode == 0


def test_unchanged_outputs_and_measured_digits_pass(tmp_path, committed):
    assert passes(tmp_path, committed, VALUE="0.75", GLUED="0.25")


@pytest.mark.parametrize("changed", [{"PRINTED": "4"}, {"RESULT": "0.25"}])
def test_any_other_change_is_red(tmp_path, committed, changed):
    assert not passes(tmp_path, committed, **changed)


def test_a_changed_sentence_relation_or_number_of_draws_is_red(tmp_path, committed):
    import copy

    for old, new in (("1 digit", "2 digit"), ("5 draws", "6 draws"), (" < ", " ≤ "), ("&lt;", "≤"), ("✓", "✗")):
        twin = copy.deepcopy(committed)
        data = twin.cells[0].outputs[0].data
        for kind in data:
            data[kind] = data[kind].replace(old, new)
        assert not passes(tmp_path, twin)
