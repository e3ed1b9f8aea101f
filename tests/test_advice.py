"""Advice in messages, read from the source and followed as far as it goes without the message's occasion.

A command is parsed by the real parser, a package is one that an extra brings, `set a.b=...` names a field that there
is, with a value that it takes, and a function that is named exists and takes what it is given. Where following advice
needs its occasion, a test does so (`tests/parity/test_advice.py`, `tests/interop/test_published.py`).
"""

import argparse
import ast
import functools
import inspect
import re
import shlex
import tomllib
from pathlib import Path

import pytest

import arch_jax
from arch_jax import fields
from arch_jax.cli import _parser
from arch_jax.discovery import import_components
from arch_jax.errors import UsageError
from arch_jax.experiment import Experiment, Mesh
from arch_jax.objectives import objective
from arch_jax.optimizer import Optimizer

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "arch_jax").rglob("*.py"))
ERRORS = ("UsageError", "RunError")


def text_of(node: ast.AST) -> str:
    """A text with its values as code in braces; texts that are joined or chosen, one behind the other."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr():
            parts = (v.value if isinstance(v, ast.Constant) else f"{{{ast.unparse(v.value)}}}" for v in node.values)
            return "".join(map(str, parts))
        case ast.BinOp():
            return text_of(node.left) + text_of(node.right)
        case ast.IfExp():
            return f"{text_of(node.body)} {text_of(node.orelse)}"
    return ""


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def docstrings(module: ast.Module) -> set[int]:
    owners = [n for n in ast.walk(module) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
    return {id(n.body[0].value) for n in owners if n.body and isinstance(n.body[0], ast.Expr)}


@functools.cache
def texts() -> list[tuple[str, str]]:
    """(file:line, text) of every text in the source that is no docstring."""
    found = []
    for path in SOURCES:
        docs = docstrings(tree(path))
        inner = {id(v) for n in ast.walk(tree(path)) if isinstance(n, ast.JoinedStr) for v in n.values}
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.JoinedStr | ast.Constant) and id(node) not in docs | inner:
                found.append((f"{path.relative_to(ROOT)}:{node.lineno}", text_of(node)))
    return [(where, text) for where, text in found if text]


@functools.cache
def messages() -> list[tuple[Path, int, str]]:
    """(file, line, text) of every error."""
    calls = ((path, n) for path in SOURCES for n in ast.walk(tree(path)) if isinstance(n, ast.Call))
    named = lambda n: getattr(n.func, "id", getattr(n.func, "attr", ""))
    return [(p, n.lineno, " ".join(map(text_of, n.args))) for p, n in calls if named(n) in ERRORS and n.args]


def test_the_scan_reads_what_there_is():
    assert len(messages()) > 500
    assert sum("; set " in text or "expected" in text for _, _, text in messages()) > 300


def test_packages_are_those_of_an_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    name = lambda requirement: re.split(r"[<>=]", requirement)[0].lower()
    asked = [(where, text) for where, text in texts() if re.search(r"\binstall (with )?'?[a-z]", text)]
    assert len(asked) > 4
    for where, text in asked:
        for extra in re.findall(r"arch-jax\[(\w+)\]", text):
            assert extra in extras, where
            # It brings what the message misses: by name, or as an extra of the same name, such as jax's for TPUs.
            brought = {name(requirement) for requirement in extras[extra]}
            assert f"jax[{extra}]" in brought or any(package in text.lower() for package in brought), (where, brought)
        for package in re.findall(r"pip install ([a-z][\w-]*)(?![\w-]|\[)", text):
            assert package in {name(requirement) for requirement in project["dependencies"]}, (where, package)


def commands(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The parser and those of its commands, and of theirs."""
    inner = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [parser, *(one for choices in inner for below in choices.values() for one in commands(below))]


def test_options_are_those_of_a_command():
    options = {
        option for parser in commands(_parser()) for action in parser._actions for option in action.option_strings
    }
    options.add("--debug")  # which is taken away before the rest is parsed
    named = [(path, line, o) for path, line, text in messages() for o in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)]
    assert len(named) > 20
    assert not [(str(path), line, option) for path, line, option in named if option not in options]


def test_commands_are_parsed():
    """With something for each word in capitals."""
    said = {command for _, text in texts() for command in re.findall(r"`(arch-jax [^`{]+)`", text)}
    assert said
    for command in said:
        _parser().parse_args(["gpt" if word.isupper() else word for word in shlex.split(command)[1:]])


def enclosing(path: Path, line: int, kind: type) -> list:
    """The classes or functions around a line, the innermost last."""
    return [n for n in ast.walk(tree(path)) if isinstance(n, kind) and n.lineno <= line <= n.end_lineno]


@functools.cache
def arguments_in(path: Path) -> set[str]:
    """The names of all arguments of the functions in a file."""
    return {n.arg for n in ast.walk(tree(path)) if isinstance(n, ast.arg)}


#: What stands for a name where the form of an assignment is shown, and amounts of a budget.
FORMS = {"field", "kind", "parameters", "learning_rate", "published"}
#: Kinds of components whose fields have another root than the model.
ROOTS = ("data", "objective", "sampler")


def assigned(text: str) -> list[tuple[str, str]]:
    """(name, value) that a message says to set, in what it says after naming the problem; calls apart."""
    advice = re.split(r"; |expected ", text, maxsplit=1)[1:]
    plain = re.sub(r"\w+\((?:[^()]|\([^()]*\))*\)", "", re.sub(r"\{[^{}]*\}", "{}", "".join(advice)))
    return re.findall(r"(?<![\w.{}=-])([a-z]\w*(?:\.\w+)*)=(?!=)(\{\}|[\w.-]*)", plain)


def accepted(annotation, value: str) -> bool:
    """True if `--set` takes the value for a field; values that the message computes are taken."""
    try:
        fields.coerce(annotation, value.rstrip("."), "it")
    except UsageError:
        return value in ("", "{}")
    return True


def test_assignments_name_fields_and_their_values():
    """`model.x=...` is a field of a model, of the one whose message it is where a model says it; a name alone is a
    field, or an argument in the same file."""
    import_components()
    kinds = {cls.__name__: ("", cls) for cls in fields.components().values()}
    for kind in (*ROOTS, "model"):
        kinds |= {cls.__name__: (kind, cls) for cls in fields.components(kind).values()}
    of = {name: {f.name: f.type for f in fields.settings(cls)} for name, (_, cls) in kinds.items()}
    experiment = {field.name: field.type for field in fields.settings(Experiment)}
    inner = {"mesh": Mesh, "optimizer": Optimizer}
    seen = 0
    for path, line, text in messages():
        for name, value in assigned(text):
            where = f"{path.relative_to(ROOT)}:{line}: {name}={value}"
            root, _, rest = name.partition(".")
            arguments = arguments_in(path)
            around = [n.name for n in enclosing(path, line, ast.ClassDef) if n.name in kinds][-1:]
            seen += 1
            if not rest:
                types = [settings[root] for settings in (experiment, *of.values()) if root in settings]
                assert types or root in FORMS | arguments, where
                assert not types or root in arguments or any(accepted(kind, value) for kind in types), where
                continue
            assert root in experiment or root == "sampler", where
            if root in inner:
                owners = [{field.name: field.type for field in fields.settings(inner[root])}]
            elif around and kinds[around[0]][0] == root:
                owners = [of[around[0]]]
            else:
                owners = [of[name] for name, (kind, _) in kinds.items() if (kind == root) or root not in ROOTS]
            leaf = rest.rpartition(".")[2]
            assert any(leaf in owner and accepted(owner[leaf], value) for owner in owners), where
    assert seen > 60


def test_what_is_called_can_be():
    """A source of data as it is written, and functions by the names of the arguments that they are given."""
    called = [(where, call) for where, text in texts() for call in re.findall(r"\barch_jax\.\w+\([^(){}]*\)", text)]
    assert len({call for _, call in called}) > 5
    for where, call in called:
        if "..." in call:
            assert hasattr(arch_jax, re.match(r"arch_jax\.(\w+)", call)[1]), where
        else:
            assert eval(call, {"arch_jax": arch_jax}) is not None, where
    named = [
        (where, *found) for where, text in texts() for found in re.findall(r"\b(load_pretrained|create)\(([^)]*)", text)
    ]
    assert named
    for where, function, given in named:
        known = inspect.signature(getattr(arch_jax, function)).parameters
        assert set(re.findall(r"(\w+)=", given)) <= known.keys(), where
    pattern = r"model(?: of \w+,)? such as '?([a-z][\w-]+\w)'?"
    models = [(where, name) for where, text in texts() for name in re.findall(pattern, text)]
    assert models
    assert not [(where, name) for where, name in models if name not in arch_jax.models()]


#: Model, objective, data, and what is set wrong: data that a model does not fit, as the objective says it.
MISFITS = {
    "classes": ("resnet-cifar-20", "classify", arch_jax.Images(), {"model.classes": 3}),
    "no classes": ("resnet-18", "classify", arch_jax.Images(), {"model.classes": None}),
    "small images": ("convnext-tiny", "classify", arch_jax.Images(), {}),
    "small images, before a fixed window": ("vgg-11", "classify", arch_jax.Images(), {}),
    "vocabulary": ("gpt", "next_token", arch_jax.Text(length=32), {"model.vocabulary": 5}),
    "vocabulary with [MASK]": ("bert-base", "masked_token", arch_jax.Text(length=32), {"model.vocabulary": 5}),
    "resolution": ("autoencoder-convolutional", "autoencode", arch_jax.Images(), {"model.resolution": 16}),
    "range": ("autoencoder-deep", "autoencode", arch_jax.Images(low=-1.0), {"objective.likelihood": "bernoulli"}),
    "range of a VAE": ("vae", "variational", arch_jax.Images(low=-1.0, resize=28), {"model.likelihood": "bernoulli"}),
    "channels": ("mae-base-16", "masked_patches", arch_jax.Images(resize=224), {}),
    "coordinates": ("gan", "adversarial", arch_jax.Ring(), {"model.generator.features": 3}),
}


def problem_of(experiment: Experiment) -> str | None:
    """What the objective finds wrong; None for nothing."""
    try:
        experiment.objective.with_model(experiment.model).check(experiment.data.load())
    except UsageError as problem:
        return str(problem)
    return None


@pytest.mark.parametrize("name", MISFITS)
def test_what_is_to_be_set_is_set(name):
    """Each way that the message gives, as `--set` takes it, until nothing is wrong any more."""
    model, task, data, wrong = MISFITS[name]
    whole = Experiment(arch_jax.create(model), objective(task), data, Optimizer("adamw"), steps=1).overridden(wrong)
    first = problem_of(whole)
    assert "; set " in first
    for way in first.partition("; set ")[2].split(", or "):
        now, problem, steps = whole, f"; set {way}", 0
        while problem is not None:
            changes = dict(re.findall(r"([a-z][\w.]*)=([\w.-]+)", problem.partition("; set ")[2].split(", or ")[0]))
            assert changes, problem
            assert steps < 4, problem
            now, steps = now.overridden(changes), steps + 1
            problem = problem_of(now)
