"""The code that ran: files by their functions, hashes without comments, and threads."""

import importlib
import json
import sys
import threading

import pytest

from arch_jax import optimizer
from arch_jax.study import tables
from arch_jax.study.reproduce import provenance
from arch_jax.study.reproduce.provenance import changed_since, code_hash, executed_code


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("def f(x):\n    return x + 1\n", True),
        ('"""A file."""\n\n\ndef f(x):  # adds\n    """One more."""\n    # one\n\n    return x + 1\n', True),
        ('def f(x):\n    """One more."""\n    return x + 1', True),
        ("def f(x):\n    return x + 2\n", False),
        ("def f(x):\n    if x:\n        return x + 1\n", False),
        ("def f(x):\n    return x + 1 if '#' else x\n", False),
    ],
)
def test_hash_is_of_code_alone(tmp_path, text, same):
    first, other = tmp_path / "first.py", tmp_path / "other.py"
    first.write_text("def f(x):\n    return x + 1\n")
    other.write_text(text)
    assert (code_hash(first) == code_hash(other)) == same


def test_files_whose_functions_were_called():
    with executed_code() as code:
        optimizer.Optimizer("sgd", learning_rate=0.1, clip=None)
        thread = threading.Thread(target=lambda: tables.load_table("mixers_by_length"))
        thread.start()
        thread.join()
        importlib.import_module("arch_jax.study.scaling.figures")
    found = set(code.hashes())
    assert {"arch_jax/optimizer.py", "arch_jax/study/tables.py"} <= found
    assert "experiments/benchmarks/results/mixers_by_length.json" in found
    assert not found & {"arch_jax/study/scaling/figures.py", "arch_jax/train/step.py"}
    assert changed_since(code.hashes()) == []
    assert changed_since(code.hashes() | {"arch_jax/optimizer.py": "0"}) == ["arch_jax/optimizer.py"]
    assert changed_since({"arch_jax/no.py": "0", "experiments/no.py": "0", "elsewhere/no.py": "0"}) == [
        "arch_jax/no.py",
        "elsewhere/no.py",
        "experiments/no.py",
    ]


def test_nothing_is_noted_afterwards_and_a_debugger_goes_on():
    seen = []

    def debugger(frame, event, argument):
        seen.append(frame.f_code.co_name)

    before = sys.gettrace()
    sys.settrace(debugger)
    try:
        with executed_code() as code:
            json.loads("[1]")
        assert sys.gettrace() is debugger
    finally:
        sys.settrace(before)
    assert "loads" in seen
    optimizer.Optimizer("sgd", learning_rate=0.1, clip=None)
    tables.load_table("mixers_by_length")
    assert not {"arch_jax/optimizer.py", "arch_jax/study/tables.py"} & set(code.hashes())


def test_files_elsewhere_have_no_name():
    assert provenance._name_of(provenance.Path(json.__file__)) is None
