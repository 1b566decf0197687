"""The tools that run before anything is installed: the lock, the files that follow from it, and the environment's refusals."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import environment  # noqa: E402
import lock  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKED = {lock.project_name(name): (name, block) for name, block in lock.blocks((ROOT / "requirements.lock").read_text()).items()}
EXTRAS = PROJECT["project"]["optional-dependencies"]
NO_DEPS = PROJECT["tool"]["kexue"]["no-deps"]


@pytest.mark.parametrize("extra", [*EXTRAS, "core"])
def test_every_requirement_is_locked_for_its_extra_at_an_allowed_version(extra):
    from packaging.requirements import Requirement

    for line in PROJECT["project"]["dependencies"] if extra == "core" else EXTRAS[extra]:
        requirement = Requirement(line)
        if requirement.name == "torch":
            continue
        name, block = LOCKED[lock.project_name(requirement.name)]
        assert name.split("==")[1] in requirement.specifier, f"{name} is locked, {line} is asked for"
        assert extra in lock.marks(block)


@pytest.mark.parametrize("extra", list(NO_DEPS))
def test_packages_without_their_requirements_are_locked_exactly(extra):
    for line in NO_DEPS[extra]:
        name, block = LOCKED[lock.project_name(line)]
        assert name == line
        assert extra in lock.marks(block)


def test_every_locked_package_has_a_hash_and_torch_is_not_among_them():
    assert all("--hash=sha256:" in block for _, block in LOCKED.values())
    assert "torch" not in LOCKED
    assert all(lock.marks(block) <= {*lock.EXTRAS, lock.CORE} for _, block in LOCKED.values())


def test_pinned_torch_is_allowed_by_the_project():
    from packaging.requirements import Requirement

    (line,) = [line for line in PROJECT["project"]["dependencies"] if line.startswith("torch")]
    assert lock.TORCH.split("==")[1] in Requirement(line).specifier


def test_derived_files_follow_from_the_lock(tmp_path):
    for name in ("pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    for name, text in lock.derive(tmp_path).items():
        assert (ROOT / name).read_text() == text, f"{name} is stale: run `make lock`"


def test_conda_has_the_locked_versions():
    text = (ROOT / "environment.yml").read_text()
    pins = dict(re.findall(r"^      - (\S+)==(\S+)$", text, flags=re.M))
    assert pins.pop("torch") == lock.TORCH.split("==")[1]
    assert pins
    assert all(LOCKED[lock.project_name(name)][0] == f"{name}=={version}" for name, version in pins.items())


def test_the_book_alone_needs_neither_torch_nor_numpy_nor_data():
    names = {lock.project_name(name) for name in lock.blocks(lock.select(ROOT / "requirements.lock", ["book"]))}
    assert {"jupyter-book", "sphinx-book-theme"} <= names
    assert not names & {"torch", "numpy", "scipy", "matplotlib", *(lock.project_name(n) for lines in NO_DEPS.values() for n in lines)}


def test_this_environment_is_the_locked_one():
    checked = 0
    for name, block in LOCKED.values():
        if lock.marks(block) & {"core", "book", "chapters", "test"}:
            project, version = name.split("==")
            assert metadata.version(project) == version, f"{project} {metadata.version(project)} is installed, {version} is locked"
            checked += 1
    assert checked > 100


def test_closure_follows_requirements_of_requirements():
    dependents = {"a==1": set(), "b==1": {"a"}, "c==1": {"b"}, "d==1": {"e"}, "torch==2": {"a"}}
    assert lock.closure({"a"}, dependents) == {"a==1", "b==1", "c==1"}


def test_unknown_extras_are_refused_by_name(tmp_path):
    with pytest.raises(environment.Refused, match="unknown extras boook; known are book chapters"):
        environment.main(["boook"], tmp_path)
    with pytest.raises(environment.Refused, match="none given"):
        environment.main([], tmp_path)


def test_an_old_python_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "MINIMUM_PYTHON", (9, 9))
    with pytest.raises(environment.Refused, match=r"Python 9.9 or newer is needed, not 3\.\d+\.\d+: try `make PYTHON="):
        environment.main(["book"], tmp_path)


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    for name in ("pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**8))
    with pytest.raises(environment.Refused, match=r"the disk has 0\.1 GB free and the environment needs 1 GB"):
        environment.main(["book"], tmp_path)
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("WARNING: x\nERROR: ... NewConnectionError('<urllib3 ...')", "package index cannot be reached"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE", "does not match its hash"),
        ("noise\nERROR: No matching distribution found for x", "pip failed: ERROR: No matching distribution found for x"),
        ("ERROR: Ignored versions\nERROR: No matching distribution found for y", "pip failed: ERROR: No matching distribution found for y"),
        ("last words", "pip failed: last words"),
        ("", "pip failed: no output"),
    ],
)
def test_failures_of_pip_become_one_line(output, message):
    assert message in environment.reason(output)
    assert "\n" not in environment.reason(output)


def test_a_failed_installation_does_not_look_finished(tmp_path, monkeypatch):
    for name in ("pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    stamp = tmp_path / ".venv" / "finished.json"
    stamp.write_text(json.dumps({"extras": ["book"], "lock": "of another day", "python": sys.version}))

    def fail(*_):
        raise environment.Refused("no network")

    monkeypatch.setattr(environment, "pip", fail)
    with pytest.raises(environment.Refused, match="no network"):
        environment.main(["book"], tmp_path)
    assert not stamp.exists()


def test_make_help_names_every_target():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(re.search(rf"\bmake {target}\b", shown) for target in targets)
