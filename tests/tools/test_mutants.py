"""The planter of faults plants one fault at a time, where the program is, and nowhere else."""

import ast
import difflib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import mutants  # noqa: E402

SOURCE = '''"""A module: 1 + 1."""
__all__ = ["f"]
def f(x: "Literal[3]" = 2, *, flag: bool = True) -> float:
    """Docstring with 4 < 5."""
    if x < 0:
        raise ValueError(f"x must be at least {0 + 0}, got {x}")
    return -x * 1.5 if flag else min(x, 7)
'''


@pytest.fixture
def found(tmp_path):
    (module := tmp_path / "module.py").write_text(SOURCE)
    return mutants.mutants(module)


def test_every_kind_of_fault_is_planted(found):
    what = [m.what for m in found]
    for kind in (
        "2 -> 3",
        "True -> False",
        "condition negated",
        "Lt -> GtE",
        "0 -> 1",
        "-x -> +x",
        "Mult -> Div",
        "arguments of min swapped",
        "7 -> 8",
    ):
        assert any(kind in w for w in what), kind


def test_each_mutant_differs_from_the_module_in_one_line(found):
    plain = ast.unparse(ast.parse(SOURCE)).splitlines()
    for mutant in found:
        changed = [line for line in difflib.ndiff(plain, mutant.text.splitlines()) if line.startswith("+ ")]
        assert len(changed) == 1, mutant.what


def test_descriptions_and_messages_are_left_alone(found):
    for mutant in found:
        assert "1 + 1" in mutant.text
        assert "4 < 5" in mutant.text
        assert "{0 + 0}" in mutant.text
        assert "Literal[3]" in mutant.text


def test_modules_of_chapters_are_found_through_imports():
    modules = {slug: {p.stem for p in paths} for slug, paths in mutants.chapters_of(ROOT).items()}
    assert "divergences" in modules["f-gan"]
    assert "directions" in modules["random-angles"]
    assert "linear" in modules["gradient-penalties"]  # imported through the package that holds it
    assert all("__init__" not in stems for stems in modules.values())


def test_tests_of_a_module_are_its_own():
    assert mutants.tests_of(ROOT, ROOT / "lib/kexue/generative/divergences.py") == ["tests/generative/test_divergences.py"]
    assert mutants.tests_of(ROOT, ROOT / "lib/kexue/numerics/hessian.py") == ["tests/numerics/test_hessian.py"]
    assert mutants.tests_of(ROOT, ROOT / "lib/kexue/observe.py") == ["tests/test_observe.py"]
