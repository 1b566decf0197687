"""The context of one chapter's run: scale, seeds, device, plotting style and claims.

A chapter opens its context once, in the set-up cell. From then on everything random has a named stream that depends on the seed alone,
torch is asked for deterministic algorithms, and at the scales ``smoke`` and ``cpu`` it uses one thread: the outputs are the same, byte for
byte, whenever the chapter is run again on one machine.
"""

from __future__ import annotations

import os
import random
import sys
import zlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from kexue.book import claims

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["CHAPTERS", "PROGRESS_VARIABLE", "SCALES", "Chapter", "chapter"]

T = TypeVar("T")

SCALES = ("smoke", "cpu", "gpu")
PROGRESS_VARIABLE = "KEXUE_PROGRESS"

CHAPTERS = {
    "geometry": ("random-angles", "initialization-geometry", "bert-init-std", "batch-norm"),
    "regularization": ("smoothing", "dropout", "mixup", "lipschitz", "adversarial-training", "gradient-penalties"),
    "generative": (
        "vae-bayes",
        "vae-density",
        "variational-unification",
        "f-gan",
        "gan-dynamics",
        "gradient-normalization",
        "cascading-rejection",
        "energy-models",
        "realnvp-glow",
    ),
    "embeddings": ("simpler-glove", "jose", "cosent"),
    "sequences": ("rnn-ode", "rnn-saliency", "on-lstm", "crf", "memm", "nlp-zero", "dgcnn-qa", "triple-extraction"),
    "transformers": ("attention-masks", "entropy-invariant-attention", "gpt2", "albert-unshared"),
    "craft": ("keras-cooler", "custom-losses", "child-tuning", "can"),
    "sky": ("sky-2020",),
}


class Chapter:
    """What a notebook needs from the book; made by :func:`chapter`."""

    blue, orange, green, purple = "#0072b2", "#d55e00", "#00845f", "#a3478f"
    ink, grey = "#1f2933", "#8a94a0"
    palette = (blue, orange, green, purple)

    def __init__(self, slug: str, scale: str, seed: int) -> None:
        self.slug, self.scale, self.seed = slug, scale, seed
        self.device = _prepare_torch(scale, seed)
        self._claims: set[str] = set()

    def __repr__(self) -> str:
        return f"Chapter({self.slug!r}, scale={self.scale!r}, seed={self.seed}, device={str(self.device)!r})"

    def pick(self, *, smoke: T, cpu: T, gpu: T) -> T:
        """The value for this run's scale."""
        return {"smoke": smoke, "cpu": cpu, "gpu": gpu}[self.scale]

    def seeds(self, count: int, *stream: int | str) -> list[int]:
        """``count`` independent integer seeds below 2**31; another ``stream`` gives other seeds."""
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        return [int(s) >> 1 for s in self._sequence("seeds", *stream).generate_state(count)]

    def rng(self, *stream: int | str) -> np.random.Generator:
        """A numpy generator of its own stream: the same stream always starts alike, different streams are independent."""
        import numpy as np

        return np.random.default_rng(self._sequence("numpy", *stream))

    def generator(self, *stream: int | str, device: str | torch.device = "cpu") -> torch.Generator:
        """A torch generator of its own stream, on the CPU unless ``device`` says otherwise."""
        import torch

        state = int(self._sequence("torch", *stream).generate_state(1, dtype="uint64")[0]) >> 1
        return torch.Generator(device=device).manual_seed(state)

    def progress(self, iterable: Iterable[T], description: str = "", total: int | None = None) -> Iterator[T]:
        """Iterate with a progress bar that disappears when done; silent where ``KEXUE_PROGRESS=0``, as in every recorded run."""
        from tqdm import tqdm

        silent = os.environ.get(PROGRESS_VARIABLE) == "0"
        yield from tqdm(iterable, desc=description, total=total, leave=False, disable=silent, file=sys.stderr)

    def claim(
        self,
        id: str,
        sentence: str,
        measured: Any,
        relation: str,
        limit: Any,
        *,
        unit: str | None = None,
        draws: int | None = None,
        error_probability: float | None = None,
    ) -> None:
        """Show, record and enforce one claim: ``measured relation limit``, with relation ``<``, ``<=``, ``>``, ``>=``, ``==`` or ``in``.

        Raises ClaimFailed when it does not hold (NaN never holds) and ValueError when the id was used before in this run.
        """
        claim = claims.evaluate(id, sentence, measured, relation, limit, unit=unit, draws=draws, error_probability=error_probability)
        if id in self._claims:
            raise ValueError(f"claim id {id!r} is used twice in chapter {self.slug!r}; ids are unique")
        self._claims.add(id)
        claims.show(claim, context=f"{self.slug}, scale {self.scale}, seed {self.seed}, {self.device}")

    def _sequence(self, *stream: int | str) -> np.random.SeedSequence:
        import numpy as np

        words = [zlib.crc32(str(part).encode()) for part in (self.slug, *stream)]
        return np.random.SeedSequence([self.seed, *words])


def chapter(slug: str, *, scale: str = "cpu", seed: int = 0) -> Chapter:
    """Open the context of chapter ``slug`` at ``scale`` (``"smoke"``, ``"cpu"`` or ``"gpu"``) with ``seed``.

    Seeds Python, numpy and torch, asks torch for deterministic algorithms, chooses the device (an accelerator only at scale ``"gpu"``)
    and sets the plotting style. Raises ValueError for an unknown slug, scale or seed, naming what exists.
    """
    if slug not in (known := [name for names in CHAPTERS.values() for name in names]):
        raise ValueError(f"slug must be one of the book's chapters ({', '.join(known)}), got {slug!r}")
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an integer in [0, 2**32), got {seed!r}")
    context = Chapter(slug, scale, seed)
    _prepare_plots()
    return context


def _prepare_torch(scale: str, seed: int) -> torch.device:
    import numpy as np

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts; without it deterministic matmul is refused
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (chapters use ch.rng, but a package that they call may not)
    torch.manual_seed(seed)
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms does the same and imports the compiler, a second each time
    if scale != "gpu":
        torch.set_num_threads(1)
    return torch.device("cuda" if scale == "gpu" and torch.cuda.is_available() else "cpu")


def _prepare_plots() -> None:
    import matplotlib
    from cycler import cycler

    lines = cycler(color=Chapter.palette) + cycler(linestyle=["-", "--", "-.", ":"])
    matplotlib.rcParams.update(matplotlib.rcParamsDefault | {"backend": matplotlib.rcParams["backend"]})
    matplotlib.rcParams.update(
        {
            "figure.figsize": (5.6, 3.5),
            "figure.dpi": 160,
            "savefig.dpi": 160,
            "figure.constrained_layout.use": True,
            "figure.facecolor": "white",
            "font.family": "DejaVu Sans",  # ships with matplotlib: the same letters on every machine
            "font.size": 11,
            "axes.titlesize": 11,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.labelsize": 11,
            "axes.edgecolor": Chapter.grey,
            "axes.labelcolor": Chapter.ink,
            "axes.linewidth": 0.8,
            "axes.prop_cycle": lines,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#e3e7eb",
            "grid.linewidth": 0.7,
            "text.color": Chapter.ink,
            "xtick.color": Chapter.ink,
            "ytick.color": Chapter.ink,
            "xtick.labelsize": 10,
            "ytick.labelsize": 10,
            "lines.linewidth": 1.8,
            "lines.markersize": 5,
            "legend.frameon": False,
            "legend.fontsize": 10,
            "svg.hashsalt": "kexue",
        }
    )
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:  # outside a notebook there is no inline backend to set
        return
    from IPython import get_ipython

    if get_ipython() is not None:
        set_matplotlib_formats("png", dpi=160, bbox_inches=None, metadata={"Software": None})
