"""A chapter's context gives the same streams for the same seed, other streams otherwise, and refuses what it does not know."""

import random

import numpy as np
import pytest
import torch
from kexue.book import Chapter, chapter


@pytest.fixture(autouse=True)
def restore_torch_settings():
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def test_pick_follows_the_scale():
    assert [chapter("f-gan", scale=s).pick(smoke=1, cpu=2, gpu=3) for s in ("smoke", "cpu", "gpu")] == [1, 2, 3]


def test_every_scale_must_be_given():
    with pytest.raises(TypeError, match="gpu"):
        chapter("f-gan").pick(smoke=1, cpu=2)


def test_opening_seeds_python_numpy_and_torch():
    def draw():
        chapter("f-gan", seed=5)
        return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002

    assert draw() == draw()


def test_streams_repeat_for_a_seed_and_differ_otherwise():
    def first(slug="f-gan", seed=0, stream=()):
        ch = chapter(slug, seed=seed)
        return ch.rng(*stream).normal(), torch.rand((), generator=ch.generator(*stream)).item(), ch.seeds(3, *stream)[0]

    assert first() == first()
    for other in (first(slug="random-angles"), first(seed=1), first(stream=(1,)), first(stream=("data",))):
        assert all(a != b for a, b in zip(first(), other, strict=True))


def test_seeds_are_distinct_and_valid():
    seeds = chapter("f-gan").seeds(100)
    assert len(set(seeds)) == 100 and all(0 <= s < 2**31 for s in seeds)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        chapter("f-gan").seeds(0)


def test_deterministic_algorithms_and_one_thread():
    ch = chapter("f-gan", scale="smoke")
    assert torch.are_deterministic_algorithms_enabled() and torch.get_num_threads() == 1
    assert ch.device == torch.device("cpu")


@pytest.mark.parametrize("silent", ["0", "1"])
def test_progress_yields_everything_and_is_silent_in_recorded_runs(silent, monkeypatch, capsys):
    monkeypatch.setenv("KEXUE_PROGRESS", silent)
    assert list(chapter("f-gan").progress(range(3), "work")) == [0, 1, 2]
    assert (capsys.readouterr().err == "") is (silent == "0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"slug": "no-such"}, "random-angles, .* got 'no-such'"),
        ({"slug": "f-gan", "scale": "huge"}, "one of smoke, cpu, gpu, got 'huge'"),
        ({"slug": "f-gan", "seed": -1}, r"in \[0, 2\*\*32\), got -1"),
        ({"slug": "f-gan", "seed": 2**32}, r"got 4294967296"),
        ({"slug": "f-gan", "seed": True}, "got True"),
    ],
)
def test_unknown_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        chapter(**arguments)


def test_plotting_style_is_set_and_palette_has_four_colours():
    import matplotlib

    chapter("f-gan")
    assert matplotlib.rcParams["figure.facecolor"] == "white"
    assert len(set(Chapter.palette)) == 4
    assert "f-gan" in repr(chapter("f-gan"))
