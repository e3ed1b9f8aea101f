"""Builds the notebooks from the lessons, and runs lessons.

    python course/build.py                  # writes notebooks/*.ipynb from course/*.py
    python course/build.py 02 10            # only those lessons
    python course/build.py 02 --execute     # also runs them, as scripts, and notes what ran in manifest.json
    python course/build.py --check          # the stalest lessons until 6 minutes are used; writes nothing
    python course/build.py --check --seconds 100     # until so many are used; none, if the stalest takes longer
    python course/build.py --list           # each lesson's state and run time

A lesson is a Python file in percent cells, `NN_name.py`; its notebook is made from it, without outputs. The manifest
says of each lesson when, where and for how long it last ran, and the hash of the code of each file of `arch_jax` that
ran, of the experiments and of the records that it read: a lesson of which more of them have changed is staler.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COURSE = Path(__file__).resolve().parent
NOTEBOOKS = COURSE.parent / "notebooks"
MANIFEST = COURSE / "manifest.json"
INDEX = COURSE.parent / "docs" / "course.md"
#: Stands in a lesson where its measured run time belongs.
RUN_TIME = "<!-- run time -->"
#: Seconds that `--check` spends by default: a lesson is begun only if the time it is expected to take still fits.
CHECKED = 360
#: Seconds that a lesson may take on two idle cores.
LONGEST = 180


@dataclasses.dataclass(frozen=True)
class Lesson:
    """A lesson's file, and its last run.

    Attributes:
      path: `course/NN_name.py`.
      last: its entry of the manifest; None if it never ran.
    """

    path: Path
    last: dict[str, Any] | None

    @property
    def name(self) -> str:
        """Such as "02_transformer"."""
        return self.path.stem

    @property
    def notebook(self) -> Path:
        """The notebook made from it."""
        return NOTEBOOKS / f"{self.name}.ipynb"

    @property
    def changed(self) -> list[str] | None:
        """What has changed since its last run: its own file first; None if it never ran."""
        if self.last is None:
            return None
        own = [] if self.last["lesson"] == lesson_hash(self.path) else [f"course/{self.path.name}"]
        return own + arch_jax_face().changed_since(self.last["code"])

    @property
    def state(self) -> str:
        """A sentence for `--list`."""
        if self.last is None:
            return "never run"
        ran = f"{self.last['seconds']} s on {self.last['device']}, {self.last['date']}"
        if not self.changed:
            return f"fresh ({ran})"
        more = f" and {len(self.changed) - 2} more" if len(self.changed) > 2 else ""
        return f"stale: {', '.join(self.changed[:2])}{more} changed since ({ran})"


def arch_jax_face() -> Any:
    """The library, imported late: writing notebooks does not need it to start."""
    import arch_jax

    return arch_jax


def lessons(wanted: Sequence[str] = ()) -> list[Lesson]:
    """The lessons in order, or those whose number or name is wanted.

    Raises:
      SystemExit: there is no such lesson, or a file that is no text.
    """
    ran = manifest()
    found = [Lesson(path, ran.get(path.stem)) for path in sorted(COURSE.glob("[0-9][0-9]_*.py"))]
    for lesson in found:
        try:
            lesson.path.read_text(encoding="utf-8")
        except UnicodeDecodeError as problem:
            sys.exit(f"{lesson.path} is not UTF-8 ({problem.reason} at byte {problem.start}); expected a Python file")
    for one in wanted:
        if not any(chosen(one, lesson) for lesson in found):
            sys.exit(f"there is no lesson {one!r}; expected one of {', '.join(lesson.name for lesson in found)}")
    return [lesson for lesson in found if not wanted or any(chosen(one, lesson) for one in wanted)]


def chosen(wanted: str, lesson: Lesson) -> bool:
    """True if a lesson is meant by "2", "02", "02_transformer", its file or its notebook."""
    stem = Path(wanted).name.removesuffix(".py").removesuffix(".ipynb")
    return stem == lesson.name or (stem.isdigit() and int(stem) == int(lesson.name[:2]))


def manifest() -> dict[str, Any]:
    """Lesson -> its last run.

    Raises:
      SystemExit: the file is no such table.
    """
    if not MANIFEST.exists():
        return {}
    try:
        found = json.loads(MANIFEST.read_text(encoding="utf-8"))
    except ValueError as problem:
        sys.exit(f"{MANIFEST} is not JSON ({problem}); expected what --execute wrote: take it from the last commit")
    if not isinstance(found, dict):
        sys.exit(f"{MANIFEST} holds a {type(found).__name__}; expected lessons with their last runs")
    return found


def lesson_hash(path: Path) -> str:
    """16 hexadecimal digits of a hash of a lesson's text."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def notebook_text(lesson: Lesson) -> str:
    """The notebook of a lesson: its cells, without outputs, with cell ids that don't change from build to build."""
    import jupytext
    import nbformat

    text = lesson.path.read_text(encoding="utf-8").replace(RUN_TIME, run_time(lesson))
    book = jupytext.reads(text, fmt="py:percent")
    for i, cell in enumerate(book.cells):
        cell["id"] = f"{lesson.name[:2]}-{i:03}"
        cell["metadata"] = {key: value for key, value in cell["metadata"].items() if key == "tags"}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    book["metadata"] = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    book["nbformat"], book["nbformat_minor"] = 4, 5
    return nbformat.writes(book) + "\n"


def run_time(lesson: Lesson) -> str:
    """The measured run time, for the reader."""
    if lesson.last is None:
        return "not measured yet"
    return f"{lesson.last['seconds']} s ({lesson.last['device']})"


def build(lesson: Lesson) -> None:
    """Writes a lesson's notebook, if it is another than the one that is there."""
    text = notebook_text(lesson)
    if not lesson.notebook.exists() or lesson.notebook.read_text(encoding="utf-8") != text:
        write(lesson.notebook, text)
        print(f"wrote {lesson.notebook.relative_to(COURSE.parent)}")


def index() -> str:
    """The rows of the lessons in `docs/course.md`: title, what it is about, its figure and its run time.

    A lesson says so in its first cell's comment: `<!-- about: ... | figure: ... -->`.
    """
    rows = []
    for lesson in lessons():
        text = lesson.path.read_text(encoding="utf-8")
        title = re.search(r"^# # (.+)$", text, re.MULTILINE)
        told = re.search(r"<!-- about: (.+?) \| figure: (.+?) -->", re.sub(r"\n# ", " ", text))
        about, figure = told.groups() if told else ("", "")
        link = f"[{title[1] if title else lesson.name}](../notebooks/{lesson.name}.ipynb)"
        rows.append(f"| {link} | {about} | {figure} | {run_time(lesson)} |")
    return "\n".join(rows)


def write_index() -> None:
    """Puts the lessons into `docs/course.md`."""
    first, last = "<!-- lessons -->\n", "<!-- /lessons -->"
    before, _, rest = INDEX.read_text(encoding="utf-8").partition(first)
    _, _, after = rest.partition(last)
    text = f"{before}{first}{index()}\n{last}{after}"
    if text != INDEX.read_text(encoding="utf-8"):
        write(INDEX, text)
        print(f"wrote {INDEX.relative_to(COURSE.parent)}")


def write(path: Path, text: str) -> None:
    """Replaces a file as a whole."""
    path.parent.mkdir(exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def execute(lesson: Lesson, figures: Path | None = None) -> dict[str, Any]:
    """Runs a lesson in a process and a folder of its own.

    Args:
      lesson: the lesson.
      figures: a folder for its figures; None draws them to no file.

    Returns:
      Its entry of the manifest.

    Raises:
      RuntimeError: it fails, or ends before its last line; with the end of what it printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        noted = Path(folder) / "ran.json"
        command = [sys.executable, str(COURSE / "_run.py"), str(lesson.path), str(noted)]
        command += [] if figures is None else [str(figures.resolve())]
        environment = os.environ | {"MPLBACKEND": "Agg"}
        started = time.monotonic()
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        seconds = round(time.monotonic() - started)
        printed = (done.stdout + done.stderr)[-4000:]
        if done.returncode < 0:
            raise RuntimeError(
                f"lesson {lesson.name} is ended by signal {-done.returncode} after {seconds} s:\n{printed}"
            )
        if done.returncode:
            raise RuntimeError(f"lesson {lesson.name} fails after {seconds} s:\n{printed}")
        if not noted.exists():
            raise RuntimeError(f"lesson {lesson.name} leaves Python before its end, after {seconds} s:\n{printed}")
        ran = json.loads(noted.read_text(encoding="utf-8"))
    return {"seconds": seconds, "lesson": lesson_hash(lesson.path)} | ran


def remember(name: str, entry: dict[str, Any]) -> None:
    """Puts a run into the manifest."""
    whole = dict(sorted((manifest() | {name: entry}).items()))
    write(MANIFEST, json.dumps(whole, indent=1) + "\n")


def stalest(found: Sequence[Lesson], day: int | None = None) -> list[Lesson]:
    """Those that never ran, then those of which most has changed; of equals, the one that ran longest ago first.

    Lessons that are equal in all of this take turns, one day after another (`day`, by default today's number): where
    all are fresh and time is short, it is not always the same ones that are run.
    """
    day = int(time.time() // 86400) if day is None else day
    changes = lambda one: float("inf") if one.changed is None else len(one.changed)
    turn = lambda i: (i - day) % max(1, len(found))
    order = lambda i: (-changes(found[i]), "" if found[i].last is None else found[i].last["date"], turn(i))
    return [found[i] for i in sorted(range(len(found)), key=order)]


def check(found: Sequence[Lesson], budget: float = CHECKED) -> int:
    """Runs the stalest lessons until the budget is used, and tells which are left.

    Run times of the manifest are those of another machine, perhaps a faster one: those that follow a lesson are
    expected to take as many times theirs as it did.

    Returns:
      The number of lessons that failed.
    """
    started, failed, left, slower = time.monotonic(), 0, [], 1.0
    for lesson in stalest(found):
        expected = LONGEST if lesson.last is None else lesson.last["seconds"]
        if time.monotonic() - started + slower * expected > budget:
            left.append(lesson)
            continue
        print(f"{lesson.name}: {lesson.state}", flush=True)
        try:
            seconds = execute(lesson)["seconds"]
        except RuntimeError as problem:
            failed += 1
            print(problem, flush=True)
        else:
            slower = max(slower, seconds / max(1, expected))
            print(f"{lesson.name}: passed in {seconds} s", flush=True)
    for lesson in left:
        print(f"{lesson.name}: not run; {lesson.state}", flush=True)
    return failed


def seconds(given: str) -> float:
    """A number of seconds, as an argument."""
    if not math.isfinite(found := float(given)):
        raise ValueError
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Builds the notebooks from the lessons, and runs lessons.")
    parser.add_argument("lessons", nargs="*", metavar="NN", help="number or name (default: all)")
    parser.add_argument("--execute", action="store_true", help="also run them, and note what ran in manifest.json")
    parser.add_argument("--check", action="store_true", help="run the stalest within --seconds; write nothing")
    parser.add_argument("--seconds", type=seconds, default=CHECKED, help="with --check: in all (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="each lesson's state and run time")
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="with --execute: where figures are written")
    options = parser.parse_args(arguments)
    if options.check and options.execute:
        parser.error("--check writes nothing, and --execute notes what ran; expected one of them")
    if options.figures and not options.execute:
        parser.error("--figures draws what --execute runs; expected both")
    found = lessons(options.lessons)
    if options.list:
        for lesson in found:
            print(f"{lesson.name:24} {lesson.state}")
        return 0
    if options.check:
        return min(check(found, options.seconds), 1)
    failed = 0
    for lesson in found:
        if options.execute:
            try:
                remember(lesson.name, execute(lesson, options.figures))
                lesson = lessons([lesson.name])[0]
                print(f"{lesson.name}: {lesson.state}", flush=True)
            except RuntimeError as problem:
                failed += 1
                print(problem, flush=True)
        build(lesson)
    write_index()
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
