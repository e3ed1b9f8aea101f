"""Reports of a run: a progress bar, a loss curve, samples, TensorBoard events."""

import io
import re
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from arch_jax.console import console
from arch_jax.errors import UsageError
from arch_jax.figures.base import is_figure
from arch_jax.figures.canvas import new_figure, png_of
from arch_jax.train.workdir import read_metrics, write


class Progress:
    """Loss, tokens or examples a second, and time left: a bar on a terminal, a plain line now and then elsewhere.

    Args:
      total: steps of the whole run.
      done: steps taken already.
      unit: "tokens", "images" ...
      per_step: units in a step.
      every: seconds between plain lines.
    """

    def __init__(self, total: int, done: int, unit: str, per_step: int, every: float = 10.0) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.total, self.unit, self.per_step, self.every = total, unit, per_step, every
        self.console = console.rich(notes=True)
        self._started = self._spoke = time.perf_counter()
        self._first = self._step = done
        self._warm = False
        self._bar = None
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]}"),
                TextColumn("{task.fields[rate]} " + unit + "/s"),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self.console)
            self._task = self._bar.add_task("training", total=total, completed=done, loss="-", rate="-")

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def rate(self) -> float:
        """Units a second since the first step of this call was seen to be done."""
        seconds = time.perf_counter() - self._started
        return (self._step - self._first) * self.per_step / seconds if seconds > 0 else 0.0

    def update(self, step: int, loss: float | None) -> None:
        """Reports that `step` steps are done."""
        if not self._warm:
            # The first dispatch holds the compilation: counting from its end, the rate is that of training.
            self._started, self._first, self._warm = time.perf_counter(), step, True
        self._step = step
        shown = "-" if loss is None else f"{loss:.4f}"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, loss=shown, rate=_short(self.rate))
        elif time.perf_counter() - self._spoke > self.every:
            self._spoke = time.perf_counter()
            left = (self.total - step) * self.per_step / self.rate if self.rate else float("inf")
            pace = f"{_short(self.rate)} {self.unit}/s  {left:.0f} s left" if self.rate else "estimating the speed"
            self.say(f"step {step}/{self.total}  loss {shown}  {pace}")

    def say(self, sentence: str) -> None:
        """Prints a line, above the bar if there is one."""
        self.console.print(sentence, highlight=False, markup=False, soft_wrap=True)


class Pace:
    """The time of a step: between two dispatches that were seen to be done, evaluations excluded."""

    def __init__(self) -> None:
        self._at: tuple[int, float] | None = None
        self._seconds: list[float] = []

    def reached(self, step: int) -> None:
        """Marks step `step` as done now. The first after a pause starts the clock: compilation is excluded."""
        now = time.perf_counter()
        if self._at is not None and step > self._at[0]:
            self._seconds.append((now - self._at[1]) / (step - self._at[0]))
        self._at = (step, now)

    def paused(self) -> None:
        """Pauses the clock for anything but steps."""
        self._at = None

    @property
    def median(self) -> float | None:
        """Seconds a step, the median over dispatches; None before there are two in a row."""
        return statistics.median(self._seconds) if self._seconds else None


def _short(number: float) -> str:
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.1f}{letter}"
    return f"{number:.0f}"


def draw_losses(path: Path, title: str) -> Path:
    """Draws `loss.png` from a run's `metrics.jsonl`: training loss, its running mean, and validation loss.

    The validation loss of a game has a panel of its own: it is not what either player minimises.
    """
    lines = read_metrics(path)
    # From all lines: the first may be of a validation, and a player may be idle whenever a line is written.
    names = dict.fromkeys(name for line in lines for name, value in line.items() if value is not None)
    losses = [name for name in names if name == "loss" or name.endswith("/loss")]
    losses = [name for name in losses if not name.startswith("validation/")]
    checks = [(line["step"], line["validation/loss"]) for line in lines if line.get("validation/loss") is not None]
    count = 2 if checks and losses and "loss" not in losses else 1
    figure = new_figure(figsize=(7, 2 + 2.2 * count), layout="constrained")
    panels = figure.subplots(count, sharex=True, squeeze=False)
    axes, validation = panels[0, 0], panels[-1, 0]
    for i, name in enumerate(losses):
        points = np.array([(line["step"], line[name]) for line in lines if line.get(name) is not None])
        axes.plot(*points.T, color=f"C{i}", alpha=0.3, linewidth=0.8)
        width = max(1, len(points) // 50)
        mean = np.convolve(points[:, 1], np.ones(width) / width, mode="valid")
        label = f"training {name}" + (f", mean of {width} steps" if width > 1 else "")
        axes.plot(points[width - 1 :, 0], mean, color=f"C{i}", label=label)
    if checks:
        label = f"validation loss (last {checks[-1][1]:.4f})"
        validation.plot(*zip(*checks), "o-", color="C3", markersize=4, label=label)
    axes.set_title(title)
    validation.set_xlabel("step")
    for panel in panels[:, 0]:
        panel.set_ylabel("loss")
        panel.grid(alpha=0.3)
        if panel.lines:
            panel.legend()
    write(path / "loss.png", png_of(figure))
    return path / "loss.png"


def save_shown(folder: Path, prefix: str, shown: Mapping[str, Any]) -> list[Path]:
    """Writes samples and figures: text as `PREFIX_NAME.txt`, figures as PNG, arrays as NPY.

    Raises:
      UsageError: a name that is none for a file, or something else than text, a figure or an array.
      RunError: a file can't be written.
    """
    written = []
    for name in shown:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise UsageError(f"a sample or figure is called {name!r}; expected letters, digits, '_', '-' and '.'")
    for name, thing in shown.items():
        if isinstance(thing, str):
            suffix, content = "txt", f"{thing}\n".encode(errors="replace")
        elif is_figure(thing):
            suffix, content = "png", png_of(thing)
        else:
            suffix, content = "npy", _npy(name, thing)
        written.append(folder / f"{prefix}_{name}.{suffix}")
        write(written[-1], content)
    return written


def _npy(name: str, thing: Any) -> bytes:
    array, buffer = np.asarray(thing), io.BytesIO()
    if array.dtype.hasobject:
        raise UsageError(f"the sample {name!r} is {type(thing).__name__}; expected text, a figure or an array")
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


#: Pixels between the frames of a film.
_GAP = 24


def draw_films(path: Path, most: int = 6) -> list[Path]:
    """Writes the samples over the training side by side: `film_NAME.png`, of figures that were drawn more than once.

    Args:
      path: the run's folder.
      most: the number of figures in a film, evenly chosen, the first and the last among them.
    """
    from PIL import Image, ImageDraw

    frames: dict[str, list[Path]] = {}
    for file in sorted((path / "samples").glob("step_*_*.png")):
        frames.setdefault(file.stem.split("_", 2)[2], []).append(file)
    written = []
    for name, files in frames.items():
        if len(files) < 2:
            continue
        count = min(most, len(files))
        chosen = [files[round(i * (len(files) - 1) / (count - 1))] for i in range(count)]
        figures = [Image.open(file).convert("RGB") for file in chosen]
        height = 320
        figures = [f.resize((round(f.width * height / f.height), height)) for f in figures]
        film = Image.new("RGB", (sum(f.width + _GAP for f in figures) - _GAP, height + 20), "white")
        draw, left = ImageDraw.Draw(film), 0
        for file, figure in zip(chosen, figures):
            draw.text((left + 8, 4), f"step {int(file.stem.split('_')[1]):,}", fill="black")
            film.paste(figure, (left, 20))
            left += figure.width + _GAP
            draw.line((left - _GAP // 2, 0, left - _GAP // 2, film.height), fill="grey")
        buffer = io.BytesIO()
        film.save(buffer, format="png")
        write(path / f"film_{name}.png", buffer.getvalue())
        written.append(path / f"film_{name}.png")
    return written


class Events:
    """TensorBoard events, if asked for; otherwise does nothing.

    Args:
      path: the run's folder.
      wanted: whether they are wanted.
      step: steps taken before this call; events of later ones, from a run that was killed, are hidden.

    Raises:
      UsageError: they are asked for and tensorboardX is not installed.
    """

    def __init__(self, path: Path, wanted: bool, step: int = 0) -> None:
        self._writer = None
        if wanted:
            try:
                from tensorboardX import SummaryWriter
            except ImportError:
                raise UsageError(
                    "tensorboard=true needs tensorboardX; install arch-jax[tensorboard], or set tensorboard=false"
                ) from None
            # The suffix, since files of the same second have the same name, and the later replaces the earlier.
            self._writer = SummaryWriter(str(path / "tensorboard"), purge_step=step + 1, filename_suffix=f".{step}")

    def add(self, lines: list[dict[str, Any]]) -> None:
        """Adds lines as they stand in `metrics.jsonl`."""
        try:
            for line in lines if self._writer else []:
                for name, value in line.items():
                    if name != "step" and value is not None:
                        self._writer.add_scalar(name, value, line["step"])
        except Exception as problem:  # of a full disk, say: metrics.jsonl has all of it
            self._writer = None
            console.tell(f"warning: no more TensorBoard events are written: {type(problem).__name__}: {problem}")

    def __enter__(self) -> "Events":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Writes out what is left, also of a run that fails."""
        if self._writer is not None:
            self._writer.close()
