"""Chapters run on a cluster: the same bytes twice, nothing twice that is finished, and the death of a worker costs one attempt."""

import dataclasses
import json
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from kexue.book import execution, kernel, normalise
from kexue.book.execution import Result, Task
from nbformat.v4 import new_code_cell, new_notebook

PARAMETERS = 'scale = "cpu"\nseed = 0'
SHOW = "print(scale, seed)"


@pytest.fixture(autouse=True)
def temporary_files(monkeypatch, tmp_path_factory):
    """A short path for what kernels and killed workers leave behind: sockets have paths of at most 107 bytes."""
    tmp_path_factory.getbasetemp()  # made before the place of temporary files moves
    folder = tempfile.mkdtemp(prefix="kx-")
    monkeypatch.setenv("TMPDIR", folder)
    monkeypatch.setattr(tempfile, "tempdir", folder)
    yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def write(tmp_path):
    """Write a chapter of code cells; the first one holds the parameters."""

    def write(slug, *sources, parameters=PARAMETERS, tags=("parameters",)):
        path = tmp_path / "chapters" / "geometry" / f"{slug}.ipynb"
        cells = [new_code_cell(parameters, metadata={"tags": list(tags)}), *map(new_code_cell, sources)]
        normalise.write_atomically(path, normalise.to_text(normalise.normalise(new_notebook(cells=cells))))
        return path

    return write


def plan(root, *slugs, scales=("cpu",), seeds=(0,), **options):
    return execution.plan(root, slugs, scales=scales, seeds=seeds, **options)


def run(root, *slugs, **options):
    (task,) = plan(root, *slugs, **options)
    return execution.run_notebook(task)


def printed(text):
    """What the cells of an executed notebook printed."""
    cells = nbformat.reads(text, as_version=4).cells
    return "".join(o.text for cell in cells for o in cell.outputs if o.output_type == "stream" and o.name == "stdout")


def count(marker, and_then=""):
    """Source of a cell that leaves one character per run in the file ``marker``."""
    return f'with open({str(marker)!r}, "a") as file:\n    file.write("x")\n{and_then}'


def runs(marker):
    return len(marker.read_text()) if marker.exists() else 0


# plan


def test_plan_is_chapters_by_scales_by_seeds_each_with_its_own_key(write, tmp_path):
    write("random-angles", SHOW)
    write("batch-norm", SHOW)
    tasks = plan(tmp_path, scales=["smoke", "cpu"], seeds=range(2))
    wanted = [(slug, scale, seed) for slug in ("batch-norm", "random-angles") for scale in ("smoke", "cpu") for seed in (0, 1)]
    assert [(t.chapter, t.scale, t.seed) for t in tasks] == wanted
    assert len({t.name for t in tasks}) == 8 and all(t.name == f"{t.chapter}-{t.scale}-{t.seed}-{t.key}" for t in tasks)
    assert {t.name for t in plan(tmp_path, evidence=True)}.isdisjoint(t.name for t in tasks)
    assert [t.chapter for t in plan(tmp_path, "random-angles")] == ["random-angles"]


def test_unknown_chapter_is_refused_with_the_known_ones(write, tmp_path):
    write("random-angles")
    with pytest.raises(ValueError, match="unknown chapter 'random-angle'; the chapters are random-angles"):
        plan(tmp_path, "random-angle")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parameters": 'scale = "cpu"\nsede = 0'}, "random-angles.ipynb has no parameter 'seed'; .* defines scale, sede"),
        ({"parameters": "seed = 0"}, "has no parameter 'scale'; its cell tagged 'parameters' defines seed"),
        ({"tags": ()}, "has no parameter 'scale'; its cell tagged 'parameters' defines nothing"),
    ],
)
def test_missing_or_misspelt_parameter_is_refused_by_name(change, message, write, tmp_path):
    write("random-angles", **change)
    with pytest.raises(ValueError, match=message):
        plan(tmp_path)


# one notebook in this process

FIGURE = """import matplotlib.pyplot as plt
from kexue.book import chapter
ch = chapter("random-angles", scale=scale, seed=seed)
plt.plot(ch.rng().normal(size=20))
plt.show()"""


def test_executing_twice_leaves_the_same_bytes_figure_included(write, tmp_path):
    path = write("random-angles", FIGURE, "import sys\nprint('shown')\nprint('\\r', file=sys.stderr)\n{'b': 1}")
    first, text = run(tmp_path)
    path.write_text(text)
    second, again = run(tmp_path)
    assert (first.outcome, second.outcome) == ("ok", "ok") and again == text
    cells = nbformat.reads(text, as_version=4).cells
    assert [cell.execution_count for cell in cells] == [1, 2, 3]
    assert [set(o.get("data", {})) for o in cells[1].outputs] == [{"image/png", "text/plain"}]
    assert [o.output_type for o in cells[2].outputs] == ["stream", "execute_result"]


def test_parameters_are_injected_and_leave_no_cell(write, tmp_path):
    path = write("random-angles", SHOW)
    result, text = run(tmp_path, scales=["smoke"], seeds=[3])
    assert (result.chapter, result.scale, result.seed, result.outcome) == ("random-angles", "smoke", 3, "ok")
    assert printed(text) == "smoke 3\n"
    assert [c.source for c in nbformat.reads(text, as_version=4).cells] == [c.source for c in normalise.read(path).cells]
    assert result.device == "cpu" and result.peak_mb > 10 and result.seconds > 0 and result.message == ""


def test_cell_that_raises_is_a_result_with_its_error_and_what_ran_before(write, tmp_path):
    write("random-angles", SHOW, "raise ValueError('first line\\nsecond line')", count(tmp_path / "after"))
    result, text = run(tmp_path)
    assert (result.outcome, result.message) == ("failed", "cell 3: ValueError: first line")
    cells = nbformat.reads(text, as_version=4).cells
    assert printed(text) == "cpu 0\n" and cells[2].outputs[0].ename == "ValueError"
    assert len(cells) == 4 and runs(tmp_path / "after") == 0  # no marker of papermill, nothing run after the error


def test_cell_that_takes_too_long_fails(write, tmp_path):
    write("random-angles", "import time\ntime.sleep(60)")
    result, _ = execution.run_notebook(plan(tmp_path)[0], timeout=0.5)
    assert (result.outcome, result.message) == ("failed", "a cell took longer than 0.5 s")


def test_dead_kernel_raises(write, tmp_path):
    write("random-angles", "import os\nos._exit(1)")
    with pytest.raises(RuntimeError, match="kernel of random-angles died"):
        run(tmp_path)


ENVIRONMENT = """import json, os, sys, kexue
names = ["KEXUE_EVIDENCE", "KEXUE_PROGRESS", "PYTHONHASHSEED", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "MPLBACKEND", "PYTHONSTARTUP"]
print(json.dumps({n: os.environ.get(n) for n in names} | {"folder": os.getcwd(), "files": os.listdir(), "kexue": kexue.__file__}))"""


@pytest.mark.parametrize(("scale", "evidence", "threads"), [("cpu", True, "1"), ("gpu", False, "7")])
def test_kernel_has_a_fresh_folder_this_library_and_a_fixed_environment(scale, evidence, threads, write, tmp_path, monkeypatch):
    for name in ("KEXUE_EVIDENCE", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTHONSTARTUP", "KEXUE_PROGRESS"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    write("random-angles", ENVIRONMENT)
    seen = json.loads(printed(run(tmp_path, scales=[scale], evidence=evidence)[1]))
    assert seen["KEXUE_EVIDENCE"] == ("1" if evidence else None)
    assert (seen["KEXUE_PROGRESS"], seen["PYTHONHASHSEED"]) == ("0", "0")
    assert (seen["OMP_NUM_THREADS"], seen["MKL_NUM_THREADS"]) == (threads, threads)
    assert seen["MPLBACKEND"] != "Agg" and seen["PYTHONSTARTUP"] is None
    assert not Path(seen["folder"]).exists() and not [name for name in seen["files"] if name.endswith(".ipynb")]
    assert Path(seen["kexue"]).is_relative_to(kernel.LIBRARY)


def test_notebook_that_cannot_be_asked_for_its_device_still_passes(write, tmp_path):
    write("random-angles", "class ch:\n    class device:\n        pass\nch.device = type('D', (), {'__str__': lambda self: 1 / 0})()")
    result, _ = run(tmp_path)
    assert (result.outcome, result.device, result.peak_mb) == ("ok", "cpu", None)


# on a scheduler


def test_failed_chapter_does_not_stop_the_others_and_finished_ones_are_not_run_again(address, write, tmp_path):
    fine, bad = tmp_path / "fine", tmp_path / "bad"
    write("random-angles", count(bad, "1 / 0"))
    write("batch-norm", count(fine))
    tasks, state, seen = plan(tmp_path, "random-angles", "batch-norm"), tmp_path / "state", []
    results = execution.execute(tasks, state, scheduler=address, progress=False, done=lambda *found: seen.append(found))
    assert [(r.chapter, r.outcome) for r in results] == [("random-angles", "failed"), ("batch-norm", "ok")]
    assert {task.chapter for task, _, _ in seen} == {"random-angles", "batch-norm"}
    assert sorted(p.name for p in state.iterdir()) == sorted(f"{t.name}.{kind}" for t in tasks for kind in ("ipynb", "json"))

    seen.clear()
    again = execution.execute(tasks, state, scheduler=address, progress=False, done=lambda *found: seen.append(found))
    assert (runs(fine), runs(bad)) == (1, 2)  # failures are worth another try
    assert again[1] == results[1] and len(seen) == 2
    # all finished: nothing listens at this address, and nobody asks
    assert execution.execute(tasks[1:], state, scheduler="tcp://127.0.0.1:9", progress=False) == results[1:]
    forced = execution.execute(tasks[1:], state, scheduler=address, progress=False, force=True)
    assert runs(fine) == 2 and forced[0].outcome == "ok"
    write("batch-norm", count(fine), "# changed")
    assert execution.execute(plan(tmp_path, "batch-norm"), state, scheduler=address, progress=False)[0].outcome == "ok"
    assert runs(fine) == 3


def test_interruption_keeps_what_is_finished(address, write, tmp_path):
    for slug in ("random-angles", "batch-norm"):
        write(slug, count(tmp_path / slug))
    tasks, state, finished = plan(tmp_path), tmp_path / "state", []

    def interrupted(task, result, text):
        finished.append(task.chapter)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execution.execute(tasks, state, scheduler=address, progress=False, done=interrupted)
    assert all(r.outcome == "ok" for r in execution.execute(tasks, state, scheduler=address, progress=False))
    assert runs(tmp_path / finished[0]) == 1


def test_kernel_that_dies_is_tried_again_and_then_reported_lost(address, write, tmp_path):
    marker = tmp_path / "attempts"
    write("random-angles", count(marker, "import os\nos._exit(1)"))
    (result,) = execution.execute(plan(tmp_path), tmp_path / "state", scheduler=address, progress=False)
    assert result.outcome == "lost" and "kernel of random-angles died" in result.message
    assert runs(marker) == execution.RETRIES + 1


def test_progress_is_shown_on_stderr_alone(write, tmp_path, capsys):
    (task,) = [t for t in (write("random-angles"),) for t in plan(tmp_path)]
    execution.keep(task, result_of(task), task.text, tmp_path / "state")
    execution.execute([task], tmp_path / "state")
    captured = capsys.readouterr()
    assert "1/1" in captured.err and captured.out == ""


# on a cluster of processes

KILL_WORKER = """import os, signal, time
if not os.path.exists(MARKER):
    open(MARKER, "w").close()
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)"""


def test_worker_killed_in_the_middle_of_a_chapter_costs_one_attempt(write, tmp_path):
    marker, attempts = tmp_path / "killed", tmp_path / "attempts"
    write("random-angles", count(attempts), KILL_WORKER.replace("MARKER", repr(str(marker))), SHOW)
    write("batch-norm", SHOW)
    texts = {}
    done = lambda task, result, text: texts.update({task.chapter: text})  # noqa: E731
    results = execution.execute(plan(tmp_path), tmp_path / "state", workers=2, progress=False, done=done)
    assert [r.outcome for r in results] == ["ok", "ok"] and marker.exists()
    assert runs(attempts) == 2 and printed(texts["random-angles"]) == "cpu 0\n"


def test_accelerators_are_resources_of_their_own_workers(write, tmp_path, monkeypatch):
    monkeypatch.setattr(execution, "local_gpus", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5,GPU-6")
    write("random-angles", "import os\nprint(scale, os.environ.get('CUDA_VISIBLE_DEVICES'))")
    texts = []
    tasks = plan(tmp_path, scales=["gpu"])
    results = execution.execute(tasks, tmp_path / "state", progress=False, workers=1, done=lambda *found: texts.append(found[2]))
    assert results[0].outcome == "ok" and printed(texts[0]) == "gpu GPU-5\n"


def test_number_of_accelerators_is_that_of_torch_and_zero_without_it(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert execution.local_gpus() == 3
    monkeypatch.setitem(sys.modules, "torch", None)
    assert execution.local_gpus() == 0


# state and report


def result_of(task, **change):
    plain = Result(task.chapter, task.scale, task.seed, task.key, "ok", 1.25, 300.4, "cpu", "", {"python": "3"})
    return dataclasses.replace(plain, **change)


TASK = Task("random-angles", "a.ipynb", "text", "cpu", 0, False, "0123456789abcdef")


def test_state_gives_back_what_was_kept_and_nothing_incomplete_or_failed(tmp_path):
    assert execution.recall(TASK, tmp_path) is None
    execution.keep(TASK, result_of(TASK), "executed", tmp_path)
    assert execution.recall(TASK, tmp_path) == (result_of(TASK), "executed")
    assert execution.recall(dataclasses.replace(TASK, key="other"), tmp_path) is None
    (tmp_path / f"{TASK.name}.ipynb").unlink()
    assert execution.recall(TASK, tmp_path) is None
    for outcome in ("failed", "lost"):
        execution.keep(TASK, result_of(TASK, outcome=outcome), "executed", tmp_path)
        assert execution.recall(TASK, tmp_path) is None


def test_report_has_a_line_per_result_the_messages_and_the_count():
    results = [result_of(TASK), result_of(TASK, seed=11, outcome="lost", peak_mb=None, message="the kernel died")]
    lines = execution.report(results).splitlines()
    assert lines[1].split() == ["random-angles", "cpu", "0", "ok", "1.2", "s", "300", "MB", "cpu"]
    assert lines[2].split() == ["random-angles", "cpu", "11", "lost", "1.2", "s", "–", "cpu"]
    assert lines[3:] == ["    the kernel died", "1 of 2 passed"]


def test_kernels_do_not_inherit_what_is_meant_for_workers_or_users(write, tmp_path, monkeypatch):
    foreign = ("MPLBACKEND", "PYTHONSTARTUP", "MALLOC_TRIM_THRESHOLD_", "KEXUE_EVIDENCE")
    for name in (*foreign, "KEPT"):
        monkeypatch.setenv(name, "65536")
    write("batch-norm", SHOW)
    (task,) = plan(tmp_path, "batch-norm")
    environment = kernel._kernel_environment(task, str(tmp_path))
    assert environment["KEPT"] == "65536" and not set(foreign) & set(environment)
