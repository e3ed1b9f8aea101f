"""Mutation test: 40 small faults in the package, drawn by a fixed seed, and the test that notices each.

    python tests/mutants.py                     # all of them, an hour; prints the table at the end
    python tests/mutants.py --list              # what is drawn, without running anything
    python tests/mutants.py --only 3,7          # two of them
    python tests/mutants.py --folder /tmp/faults  # where the copy and the results lie; a later call resumes there

Each fault is one standard operator applied to one place of the syntax tree: an operator swapped, a comparison flipped,
a number or a truth value changed, a condition negated, a default changed, a statement removed. As many are drawn from
each part of the package as `DRAWN` says; a part's draw depends on the seed and on the sources of this part alone. A
fault is written into a copy of the repository, where the tests that touch its module run, quick ones first, until one
fails:

1. those in the place that mirrors the module's (tests/ops/test_norms.py for arch_jax/ops/norms.py; all of that folder,
   where no file has the name), and those that import the module by name;
2. the contract of an architecture and of a mixer whose code imports the module: those that import least besides.

A fault that no test notices is either equivalent (`EQUIVALENT` says why) or needs a test.
"""

import argparse
import ast
import dataclasses
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SEED = 23
#: Part of the package -> faults drawn from it. "rest" is everything else.
DRAWN = {
    "ops": 6,
    "layers": 5,
    "models": 6,
    "objectives": 4,
    "sampling": 2,
    "train": 5,
    "data": 4,
    "study": 3,
    "interop": 2,
    "rest": 3,
}
#: Seconds of processor time after which a fault counts as noticed: a loop that does not end.
PATIENCE = 400
#: "file: change" -> why no test can notice it.
EQUIVALENT: dict[str, str] = {
    "arch_jax/models/emerging/delta_net.py: 2 -> 3": "the size of a test's model",
    "arch_jax/objectives/next_token.py: 400 -> 401": "how much text is shown; no figure depends on it",
    "arch_jax/models/seq2seq/pointer_generator.py: -1 -> (1)": "the last axis of a matrix is its second",
    "arch_jax/data/files/directories.py: held.release() -> pass": "CPython lets the lock go with its last reference",
}

ARITHMETIC = {"Add": "-", "Sub": "+", "Mult": "/", "Div": "*", "FloorDiv": "*", "Mod": "*", "Pow": "*"}
COMPARISON = {"Lt": "<=", "LtE": "<", "Gt": ">=", "GtE": ">", "Eq": "!=", "NotEq": "==", "Is": "is not", "IsNot": "is"}
COMPARISON |= {"In": "not in", "NotIn": "in"}
#: Calls that state facts of a publication, not behaviour.
FACTS = {"Paper", "register", "Published"}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A stretch of a file replaced by other text."""

    file: str
    line: int
    operator: str
    start: int
    end: int
    before: str
    after: str

    def __str__(self) -> str:
        shorten = lambda text: " ".join(text.split())[:60]
        return f"{self.file}:{self.line}: {shorten(self.before)} -> {shorten(self.after)}"


class Finder(ast.NodeVisitor):
    """All mutants of one file, but for annotations, decorators, error messages and what `FACTS` names."""

    def __init__(self, file: str, text: str) -> None:
        self.file, self.text = file, text
        self.found: list[Mutant] = []
        lines = text.splitlines(keepends=True)
        self.lines = [line.encode() for line in lines]
        self.starts = [0]
        for line in lines:
            self.starts.append(self.starts[-1] + len(line))
        self.visit(ast.parse(text))

    def place(self, line: int, column: int) -> int:
        """Characters before a place that `ast` gives in lines and bytes."""
        return self.starts[line - 1] + len(self.lines[line - 1][:column].decode())

    def span(self, node: ast.AST) -> tuple[int, int]:
        return self.place(node.lineno, node.col_offset), self.place(node.end_lineno, node.end_col_offset)

    def add(self, operator: str, node: ast.AST, after: str, span: tuple[int, int] | None = None) -> None:
        start, end = span or self.span(node)
        self.found.append(Mutant(self.file, node.lineno, operator, start, end, self.text[start:end], after))

    def source(self, node: ast.AST) -> str:
        start, end = self.span(node)
        return self.text[start:end]

    def joined(self, operator: str, left: ast.AST, right: ast.AST, word: str) -> None:
        """Another operator between two operands, whose parentheses stay."""
        start, end = self.span(left)[1], self.span(right)[0]
        between = self.text[start:end]
        symbol = re.search(r"[^\s()\\]+(\s+(not|in)\b)?", re.sub(r"#.*", "", between))
        if symbol and between.count("\n") == 0:
            self.add(operator, left, between[: symbol.start()] + word + between[symbol.end() :], (start, end))

    def visit_BinOp(self, node: ast.BinOp) -> None:
        text = any(isinstance(x, ast.JoinedStr) or isinstance(getattr(x, "value", 0), str) for x in ast.walk(node))
        if (word := ARITHMETIC.get(type(node.op).__name__)) and not text:
            self.joined("arithmetic", node.left, node.right, word)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        if len(node.ops) == 1:
            self.joined("comparison", node.left, node.comparators[0], COMPARISON[type(node.ops[0]).__name__])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for left, right in zip(node.values, node.values[1:]):
            self.joined("boolean", left, right, "or" if isinstance(node.op, ast.And) else "and")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.USub | ast.Not):
            self.add("sign or not", node, f"({self.source(node.operand)})")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant, operator: str = "constant") -> None:
        if isinstance(node.value, bool):
            self.add(operator, node, str(not node.value))
        elif isinstance(node.value, int):
            self.add(operator, node, str(node.value + 1))
        elif isinstance(node.value, float):
            self.add(operator, node, str(node.value * 2 or 1.0))

    def condition(self, node: ast.AST) -> None:
        self.add("condition", node, f"(not ({self.source(node)}))")

    def visit_If(self, node: ast.If) -> None:
        self.condition(node.test)
        self.generic_visit(node)

    visit_IfExp = visit_While = visit_If

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self.condition(test)
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant | ast.Yield | ast.YieldFrom):
            self.add("statement", node, "pass")
            self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.add("statement", node, "pass")
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self.add("statement", node, "pass")  # its message is not looked at

    def visit_Assert(self, node: ast.Assert) -> None:
        self.generic_visit(node.test)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if isinstance(node.value, ast.Constant):
            self.visit_Constant(node.value, "default")
        elif node.value is not None:
            self.visit(node.value)

    def visit_arguments(self, node: ast.arguments) -> None:
        for default in filter(None, [*node.defaults, *node.kw_defaults]):
            if isinstance(default, ast.Constant):
                self.visit_Constant(default, "default")

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.visit(node.args)
        for statement in node.body:
            self.visit(statement)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for statement in node.body:
            self.visit(statement)

    def visit_Call(self, node: ast.Call) -> None:
        if getattr(node.func, "id", getattr(node.func, "attr", "")) not in FACTS:
            self.generic_visit(node)


def part(file: str) -> str:
    folder = file.split("/")[1]
    return folder if folder in DRAWN else "rest"


def drawn(seed: int = SEED) -> list[Mutant]:
    """The mutants, by part: an operator first, then one of the places where it applies, never twice in one line."""
    found: dict[str, dict[str, list[Mutant]]] = {name: {} for name in DRAWN}
    for path in sorted((ROOT / "arch_jax").rglob("*.py")):
        file = path.relative_to(ROOT).as_posix()
        for mutant in Finder(file, path.read_text(encoding="utf-8")).found:
            found[part(file)].setdefault(mutant.operator, []).append(mutant)
    chosen: list[Mutant] = []
    for name, count in DRAWN.items():
        rng, lines = random.Random(f"{seed} {name}"), set()
        while len(lines) < count:
            mutant = rng.choice(found[name][rng.choice(sorted(found[name]))])
            if (mutant.file, mutant.line) not in lines:
                lines.add((mutant.file, mutant.line))
                chosen.append(mutant)
    return chosen


def imported(file: str) -> Iterator[str]:
    """Files of the package, or of tests beside it, that a file names in an import."""
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            path = name.replace(".", "/") + ".py"
            if name.startswith("arch_jax.") and (ROOT / path).exists():
                yield path


def reached(file: str) -> set[str]:
    """The file and all that it imports, and that those import."""
    seen, left = set(), [file]
    while left:
        if (now := left.pop()) not in seen:
            seen.add(now)
            left.extend(imported(now))
    return seen


WHAT_IS_REGISTERED = """
import json, sys
from pathlib import Path
from arch_jax import fields, registry
from arch_jax.experiment import import_components
from arch_jax.objectives import objective
import_components()
root = Path(sys.argv[1])
file = lambda x: Path(sys.modules[x.__module__].__file__).resolve().relative_to(root).as_posix()
architectures = {entry.architecture: entry for entry in reversed(registry.models().values())}
print(json.dumps({
    "architectures": {n: [file(e.build), file(type(objective(e.objective)))] for n, e in architectures.items()},
    "mixers": {name: [file(cls)] for name, cls in fields.components("mixer").items()},
}))
"""
#: Where each kind of part has its contract, and what an id of its tests begins with.
CONTRACTS = {"architectures": "tests/contract/test_models.py", "mixers": "tests/contract/test_mixers.py"}


class Tests:
    """Which tests touch a module."""

    def __init__(self, copy: Path) -> None:
        self.copy = copy
        self.files = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py"))
        self.files = [file for file in self.files if not file.startswith(("tests/contract/", "tests/parity/"))]
        found = run([sys.executable, "-c", WHAT_IS_REGISTERED, str(copy)], copy).stdout
        self.parts = {
            kind: {name: set().union(*map(reached, files)) for name, files in named.items()}
            for kind, named in json.loads(found.splitlines()[-1]).items()
        }
        command = [sys.executable, "-m", "pytest", "--collect-only", "-n", "0", "-m", "thorough or not thorough"]
        self.contracts = run([*command, *CONTRACTS.values()], copy).stdout.splitlines()

    def beside(self, file: str) -> list[str]:
        """Tests in the mirrored place; where no file has the module's name, all of that folder."""
        path = Path("tests", *Path(file).parts[1:])
        name = f"test_{path.stem}.py" if path.stem != "__init__" else f"test_{path.parent.name}.py"
        mirror = (path.parent if path.stem != "__init__" else path.parent.parent) / name
        if mirror.as_posix() in self.files:
            return [mirror.as_posix()]
        return [test for test in self.files if Path(test).parent == path.parent != Path("tests")]

    def of(self, file: str) -> list[str]:
        """Files and names of tests."""
        direct = self.beside(file)
        importing = [test for test in self.files if test not in direct and file in set(imported(test))]
        contract: list[str] = []
        for kind, suite in CONTRACTS.items():
            near = sorted((len(closure), name) for name, closure in self.parts[kind].items() if file in closure)
            for _, name in near[:1]:
                # Of mixers, too, what looks at all of them at once, by kind of part.
                case = "" if kind == "architectures" else "-[0-9]+"
                ids = rf"\[({re.escape(name)}{case}|mixer|feed_forward)\]$"
                contract += [test for test in self.contracts if test.startswith(suite) and re.search(ids, test)]
        return [*direct, *importing, *contract]


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess:
    """A process that may take PATIENCE; the system ends it where it takes more."""
    own = {"PYTHONPATH": str(folder), "JAX_PLATFORMS": "cpu", "PYTHONDONTWRITEBYTECODE": "1"}
    own["JAX_COMPILATION_CACHE_DIR"] = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
    limit = lambda: resource.setrlimit(resource.RLIMIT_CPU, (PATIENCE, PATIENCE))
    return subprocess.run(
        command, cwd=folder, env=os.environ | own, capture_output=True, text=True, check=False, preexec_fn=limit
    )


def noticed(mutant: Mutant, tests: Tests) -> dict:
    """Which test fails with a mutant in place, in which tier; or that it survives."""
    path, chosen = tests.copy / mutant.file, tests.of(mutant.file)
    if not chosen:
        return {"tier": "", "test": "survives"}
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: mutant.start] + mutant.after + text[mutant.end :], encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-rfE", "-n", "0", "-p", "no:cacheprovider"]
    try:
        for tier, mark in (("quick", "not thorough"), ("thorough", "thorough")):
            done = run([*command, "-m", mark, *chosen], tests.copy)
            if done.returncode < 0:
                return {"tier": tier, "test": f"no end after {PATIENCE} s"}
            if "file or directory not found" in done.stderr:
                sys.exit(f"no test was run on {mutant}: {done.stderr[-300:]}")
            if done.returncode not in (0, 5):  # 5: none of them is of this tier
                failed = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
                return {"tier": tier, "test": failed[0] if failed else (done.stdout + done.stderr)[-300:]}
        return {"tier": "", "test": "survives"}
    finally:
        path.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--list", action="store_true", help="print what is drawn and run nothing")
    parser.add_argument("--only", help="numbers of mutants, with commas")
    parser.add_argument("--again", action="store_true", help="also those that a former call has judged")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "arch_jax_mutants")
    asked = parser.parse_args()
    mutants = dict(enumerate(drawn(asked.seed), 1))
    if asked.only:
        mutants = {number: mutants[number] for number in map(int, asked.only.split(","))}
    if asked.list:
        for number, mutant in mutants.items():
            print(f"{number:3} {mutant.operator:11} {mutant}")
        return
    copy, stored = asked.folder / "copy", asked.folder / "results.json"
    results = json.loads(stored.read_text()) if stored.exists() else {}
    shutil.rmtree(copy, ignore_errors=True)
    leave_out = shutil.ignore_patterns(".git", ".cache", "__pycache__", "*.egg-info")
    own_runs = lambda folder, names: {"runs"} if Path(folder) == ROOT else set()  # a user's, not the tests' folder
    shutil.copytree(ROOT, copy, ignore=lambda folder, names: leave_out(folder, names) | own_runs(folder, names))
    tests = Tests(copy.resolve())
    for number, mutant in mutants.items():
        if asked.again or str(mutant) not in results:
            results[str(mutant)] = noticed(mutant, tests)
            stored.write_text(json.dumps(results, indent=1))
        row = results[str(mutant)]
        why = EQUIVALENT.get(re.sub(r":\d+:", ":", str(mutant), count=1), "")
        print(f"{number:3} {row['tier']:8} {mutant}\n      {row['test']} {why}", flush=True)
    alive = [str(m) for m in mutants.values() if results[str(m)]["test"] == "survives"]
    print(f"{len(mutants) - len(alive)} of {len(mutants)} noticed")


if __name__ == "__main__":
    main()
