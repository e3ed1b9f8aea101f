"""House style that a machine can hold: how docstrings open, and terms that the field has another word for."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "arch_jax"
#: The name of a field that runs store in their config.json, which therefore stays.
#: Old names of fields, which stored runs have.
STORED = re.compile(r"renamed=\{[^}]*\}")
QUAINT = re.compile(r"picture|none is none|held against|\bdealt over\b|\bgone on with\b", re.I)


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def docstrings(source: str) -> list[tuple[int, str]]:
    """(line, docstring) of a module, its classes and its functions."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    owners = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    return [(node.body[0].lineno, text) for node in owners if (text := ast.get_docstring(node))]


def questions(source: str) -> list[str]:
    return [
        f"{n}: {text.splitlines()[0]}"
        for n, text in docstrings(source)
        if re.match(r"(What|Where|How|Whether)\b", text)
    ]


def quaint(source: str) -> list[str]:
    return [line.strip() for line in STORED.sub("", source).splitlines() if QUAINT.search(line)]


@pytest.mark.parametrize("rule", [questions, quaint])
def test_the_package_keeps_to_the_house_style(rule):
    found = {str(file.relative_to(PACKAGE)): rule(file.read_text(encoding="utf-8")) for file in files()}
    assert not {file: lines for file, lines in found.items() if lines}


def test_the_rules_find_what_they_forbid():
    assert questions('"""Where data lies."""\ndef f():\n    """What f does."""\n') == [
        "1: Where data lies.",
        "3: What f does.",
    ]
    assert questions('"""Data folders.\n\nWhere they lie."""') == []
    old = '@component("vit", kind="model", renamed={"picture": "resolution"})'
    assert quaint(f"x = 1  # of each picture\n{old}") == ["x = 1  # of each picture"]
