"""The README and the pages in docs/: examples that run, names and commands that exist, links that lead somewhere."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

import arch_jax
from arch_jax.cli import _parser

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", read(page), re.S | re.M)


def commands(page: Path) -> list[list[str]]:
    """The words of every `arch-jax` command in the page's bash blocks."""
    found = []
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split("&&"):
                words = shlex.split(part.lstrip("! "), comments=True)
                found += [words[1:]] if words[:1] == ["arch-jax"] else []
    return found


def test_library_example_runs():
    """The snippet of the section "As a library" runs as it stands."""
    code = re.search(r"## As a library\n\n```python\n(.*?)```", read(ROOT / "README.md"), re.S)[1]
    scope: dict = {}
    exec(code.replace('"gpt2", depth=4', '"gpt2", depth=1, width=96, vocabulary=50'), scope)
    assert scope["new"].shape == (1, 32)


@page
def test_names_in_python_blocks_exist(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("arch_jax"):
                module = importlib.import_module(node.module)
                assert not [name.name for name in node.names if not hasattr(module, name.name)], node.module
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "arch_jax":
                assert hasattr(arch_jax, node.attr), node.attr


@page
def test_commands_are_understood(page):
    for words in commands(page):
        _parser().parse_args(words)


def test_commands_are_found():
    found = [words[0] for page in PAGES for words in commands(page)]
    assert {"train", "evaluate", "sample", "ablate", "compare", "scaling", "reproduce", "ledger", "plan"} <= set(found)


@page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", read(file), re.M)
            assert anchor in [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings], target


def test_the_index_has_every_page():
    index = read(ROOT / "docs" / "README.md")
    assert not [page.name for page in PAGES if f"({page.name})" not in index and page.name != "README.md"]


def test_the_readme_is_short():
    assert len(read(ROOT / "README.md").encode()) < 8000
