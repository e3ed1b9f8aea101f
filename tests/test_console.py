"""What is printed ends nothing that is under way: whoever reads may be gone, or know fewer letters."""

import ast
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from arch_jax.cli import main
from arch_jax.cli.console import show, table
from arch_jax.console import Stream, console

ROOT = Path(__file__).parent.parent
LETTERS = "né “你” \ud800 \N{SNOWMAN}"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_letters_that_an_encoding_lacks(encoding, monkeypatch):
    raw = io.BytesIO()
    both = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, both)
    grid = table("name", "text")
    grid.add_row("sample", LETTERS)
    console.print(LETTERS)
    console.tell(LETTERS)
    show(grid)
    show(LETTERS)
    console.rich(notes=True).print(LETTERS)
    expected = LETTERS.encode(encoding, "backslashreplace").decode(encoding)
    assert raw.getvalue().decode(encoding).count(expected) == 5
    assert ("你" in expected, "é" in expected) == (encoding == "utf-8", encoding != "ascii")


@pytest.mark.parametrize("stream", [None, "closed"])
def test_streams_that_are_not_there(stream, monkeypatch):
    if stream == "closed":
        stream = io.StringIO()
        stream.close()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, stream)
    console.print("x")
    console.tell("x")
    show(table("x"))
    assert main(["list", "gpt2"]) == 0
    assert main(["list", "--parameters", "many"]) == 2
    assert not console.results.isatty()


def test_a_reader_that_is_gone(monkeypatch):
    """Also when the process ends and flushes what is left; and the stream that is still read gets its lines."""
    reading, writing = os.pipe()
    monkeypatch.setattr(sys, "stdout", os.fdopen(writing, "w", encoding="utf-8"))
    os.close(reading)
    for _ in range(3):
        console.print("x" * 100_000)
    assert main(["list"]) == 0
    sys.stdout.write("y")
    sys.stdout.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_an_error_for_results_alone(monkeypatch):
    with open("/dev/full", "w") as full, open(os.devnull, "w") as other:
        monkeypatch.setattr(sys, "stderr", full)
        console.tell("x")
        monkeypatch.setattr(sys, "stderr", other)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(OSError, match="No space left"):
            console.print("x")
        assert main(["list", "gpt2"]) == 1
        monkeypatch.undo()
        with open(os.devnull, "w") as other:
            os.dup2(other.fileno(), full.fileno())  # or closing it would fail


def test_lines_above_a_progress_bar(monkeypatch):
    """A bar of rich takes the place of both streams, and prints what it is given by ours: not in a circle."""
    from rich.progress import Progress

    raw = io.StringIO()
    monkeypatch.setattr(sys, "stderr", raw)
    with Progress(console=console.rich(notes=True, force_terminal=True)) as progress:
        progress.add_task("training", total=1)
        console.tell("a line above")
        assert Stream("stderr").encoding
    assert "a line above" in raw.getvalue()
    assert "training" in raw.getvalue()


def printing(source: str) -> list[int]:
    """Lines that print, or take a stream, past the console."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print":
            to = [keyword.value for keyword in node.keywords if keyword.arg == "file"]
            if not to or isinstance(to[0], ast.Attribute):
                found.append(node.lineno)
        elif isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr", "__stdout__", "__stderr__"):
            if getattr(node.value, "id", "") == "sys":
                found.append(node.lineno)
        elif isinstance(node, ast.ImportFrom) and node.module == "rich.console":
            found.append(node.lineno)
    return found


def test_one_object_prints():
    """All but the handling of descriptors where several processes train one run."""
    texts = {path: path.read_text(encoding="utf-8") for path in ROOT.glob("arch_jax/**/*.py")}
    words = ("print(", "sys.std", "rich.console")
    found = {path for path, text in texts.items() if any(word in text for word in words) and printing(text)}
    assert {path.relative_to(ROOT / "arch_jax").as_posix() for path in found} == {"console.py", "train/distributed.py"}
    assert printing("print('x')") == [1]
    assert printing("print('x', file=sys.stderr)") == [1, 1]
    assert printing("from rich.console import Console") == [1]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("describe gpt2 --json | head -c 10", 0),
        ("--help | true", 0),
        ("list >&-", 0),
        ("list >&- 2>&-", 0),
        ("describe gtp2 >&- 2>&-", 2),
        ("list > /dev/full", 1),
    ],
)
def test_as_a_process(command, code):
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m arch_jax {command}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == (code == 1)


@pytest.mark.thorough
def test_a_process_without_streams_opens_no_file_in_their_place():
    code = """
import os
from arch_jax.console import console
console.open()
print("lost")
file = os.open(".", os.O_RDONLY)
os._exit(file)
"""
    done = subprocess.run(["bash", "-c", f"{sys.executable} -c '{code}' >&- 2>&-"], cwd=ROOT, check=False)
    assert done.returncode > 2
