"""A key changes with everything that a result depends on and with nothing else; chapters are found by slug."""

from importlib import metadata

import pytest
from kexue.book import sources
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output


@pytest.fixture
def book(tmp_path):
    for name in ("geometry/random-angles", "generative/f-gan"):
        path = tmp_path / "chapters" / f"{name}.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    (tmp_path / "chapters" / "stray.ipynb").write_text("{}")
    return tmp_path


def test_chapters_are_found_one_folder_deep(book):
    assert sources.find_chapters(book) == {
        "f-gan": book / "chapters/generative/f-gan.ipynb",
        "random-angles": book / "chapters/geometry/random-angles.ipynb",
    }


def test_two_chapters_of_one_slug_are_refused(book):
    (book / "chapters/geometry/f-gan.ipynb").write_text("{}")
    with pytest.raises(ValueError, match=r"two chapters have the slug 'f-gan': .*generative/f-gan.ipynb and .*geometry/f-gan.ipynb"):
        sources.find_chapters(book)


def test_folder_without_chapters_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no chapter found: .*chapters holds no PART/SLUG.ipynb"):
        sources.find_chapters(tmp_path)


def test_selection_keeps_the_order_asked_for_and_takes_all_when_nothing_is_named(book):
    known = sources.find_chapters(book)
    assert list(sources.select(known, ["random-angles", "f-gan", "random-angles"])) == ["random-angles", "f-gan"]
    assert list(sources.select(known, [])) == ["f-gan", "random-angles"]


def test_unknown_chapters_are_refused_with_the_known_ones(book):
    with pytest.raises(ValueError, match="unknown chapter 'vae', 'x'; the chapters are f-gan, random-angles"):
        sources.select(sources.find_chapters(book), ["f-gan", "vae", "x"])


def notebook(**change):
    parts = {"text": "Words.", "source": "x = 1", "tags": [], "outputs": [], "metadata": {"slug": "a"}, "other": {}} | change
    cells = [new_markdown_cell(parts["text"]), new_code_cell(parts["source"], metadata={"tags": parts["tags"]}, outputs=parts["outputs"])]
    return new_notebook(cells=cells, metadata={"kexue": parts["metadata"]} | parts["other"])


def test_key_is_the_same_for_the_same_source_whatever_the_outputs():
    key = sources.result_key(notebook(), "cpu", 0)
    assert len(key) == 16 and int(key, 16) >= 0
    assert key == sources.result_key(notebook(outputs=[new_output("stream", text="a")], other={"papermill": {"x": 1}}), "cpu", 0)


@pytest.mark.parametrize("change", [{"text": "Other words."}, {"source": "x = 2"}, {"tags": ["card"]}, {"metadata": {"slug": "b"}}])
def test_key_changes_with_the_source(change):
    assert sources.result_key(notebook(), "cpu", 0) != sources.result_key(notebook(**change), "cpu", 0)


def test_key_changes_with_the_parameters_the_versions_and_the_library(monkeypatch):
    keys = [sources.result_key(notebook(), *arguments) for arguments in (("cpu", 0), ("smoke", 0), ("cpu", 1), ("cpu", 0, True))]
    monkeypatch.setattr(sources, "versions", lambda: {"torch": "0.0"})
    keys.append(sources.result_key(notebook(), "cpu", 0))
    monkeypatch.undo()
    monkeypatch.setattr(sources, "library_digest", lambda cells: "changed")
    keys.append(sources.result_key(notebook(), "cpu", 0))
    assert len(set(keys)) == 6


LIBRARY = {
    "__init__.py": "",
    "lonely.py": "",
    "ground.py": "",
    "late.py": "",
    "part/__init__.py": "from kexue import ground",
    "part/one.py": "from . import two",
    "part/two.py": "from .sub.deep import f\nimport numpy.linalg",
    "part/three.py": "from kexue.part.two import f",
    "part/sub/__init__.py": "",
    "part/sub/deep.py": "def f():\n    from ... import late\n    from kexue.part import one",
}


@pytest.fixture
def library(tmp_path):
    for name, text in LIBRARY.items():
        path = tmp_path / "kexue" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "kexue"


def reached(code, library):
    """The files whose change changes the digest of ``code``."""
    digest = sources.library_digest(code, library)
    found = set()
    for name, text in LIBRARY.items():
        (library / name).write_text(text + "\n# changed")
        if sources.library_digest(code, library) != digest:
            found.add(name)
        (library / name).write_text(text)
    assert sources.library_digest(code, library) == digest
    return found


ROOT, PART = {"__init__.py"}, {"__init__.py", "ground.py", "part/__init__.py"}
BELOW = PART | {"part/one.py", "part/two.py", "part/sub/__init__.py", "part/sub/deep.py", "late.py"}


@pytest.mark.parametrize(
    ("code", "files"),
    [
        (["import numpy as np", "x = 1"], set()),
        (["import kexuelike"], set()),
        (["import kexue.lonely"], ROOT | {"lonely.py"}),
        (["from kexue import ground as g"], ROOT | {"ground.py"}),
        (["from kexue.ground import something"], ROOT | {"ground.py"}),
        (["import kexue.part"], PART),
        (["from kexue.part import one"], BELOW),
        (["import kexue.part.three as three"], BELOW | {"part/three.py"}),
        (
            ["import kexue.no_such, kexue.lonely", "this is no Python", "from kexue import ground"],
            ROOT | {"lonely.py", "ground.py"},
        ),
    ],
)
def test_digest_follows_exactly_the_imports(code, files, library):
    assert reached(code, library) == files


def test_digest_of_the_real_library_reads_its_files():
    assert sources.library_digest(["from kexue.book import chapter"]) != sources.library_digest(["import kexue.numerics"])


def test_versions_are_those_installed(monkeypatch):
    found = sources.versions()
    assert found["torch"] == metadata.version("torch") and found["python"].startswith("3.")
    monkeypatch.setattr(sources, "VERSIONED", ("no-such-package-at-all", "numpy"))
    assert set(sources.versions()) == {"python", "numpy"}
