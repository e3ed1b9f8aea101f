"""What holds for the whole house: imports that cost little, experiments on the public face, docstrings."""

import ast
import builtins
import re
import subprocess
import symtable
import sys
from pathlib import Path

import grimp
import networkx

ROOT = Path(__file__).parent.parent


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_import_brings_no_heavy_library():
    """What makes an import slow is other libraries; which of them come along can be told without a clock."""
    code = "import jax, flax, optax, sys; before = set(sys.modules); import arch_jax; print(set(sys.modules) - before)"
    new = set(ast.literal_eval(python(code)))
    heavy = {"grain", "orbax", "tensorflow_datasets", "matplotlib", "tokenizers", "torch", "transformers", "chex"}
    assert not {name.split(".")[0] for name in new} & heavy
    assert {name for name in new if name.startswith("arch_jax")} == {"arch_jax"}


def test_experiments_use_the_public_face_only():
    for path in ROOT.glob("experiments/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not [name for name in names if name.startswith("arch_jax.")], path


def test_no_model_can_tell_whether_it_is_traced():
    """So what one gives under `jit` is what it gives without, or it raises."""
    words = re.compile(r"\bTracer|is_concrete|Concretization|ensure_compile_time_eval|jax_disable_jit")
    for part in ("layers", "models", "objectives", "ops"):
        for path in ROOT.glob(f"arch_jax/{part}/**/*.py"):
            assert not words.findall(path.read_text(encoding="utf-8")), path


def test_constraints_hold_names_and_versions_only():
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._+!-]+", line), line


def unknown_names(table: symtable.SymbolTable, known: frozenset[str] = frozenset()) -> list[str]:
    """Names that a module or a part of it uses, and nothing defines."""
    if table.get_type() == "module":
        defined = {one.get_name() for one in table.get_symbols() if one.is_assigned() or one.is_imported()}
        known = frozenset({*defined, *dir(builtins), "__file__", *(one.get_name() for one in table.get_children())})
    whole = table.get_type() == "module"
    used = {one.get_name() for one in table.get_symbols() if one.is_referenced() and (whole or one.is_global())}
    inner = [name for child in table.get_children() for name in unknown_names(child, known)]
    return sorted(used - known) + inner


def test_every_name_is_defined():
    """The linter leaves this out, since a shape such as "batch time" looks to it like a name."""
    code = "import math\ndef f(x: 'batch time'):\n    y = math.pi\n    return [precision.scan(z) for z in x]"
    assert unknown_names(symtable.symtable(code, "example", "exec")) == ["precision"]
    for path in [*ROOT.glob("arch_jax/**/*.py"), *ROOT.glob("experiments/**/*.py"), *ROOT.glob("examples/*.py")]:
        table = symtable.symtable(path.read_text(encoding="utf-8"), str(path), "exec")
        assert unknown_names(table) == [], path


def test_every_public_function_says_what_it_does():
    """A public docstring for every public class and function."""
    bare = []
    for path in ROOT.glob("arch_jax/**/*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if not ast.get_docstring(tree) and path.read_text(encoding="utf-8").strip():
            bare.append(path.name)
        for node in tree.body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                bare.append(f"{path.name}:{node.name}")
    assert not bare


def test_no_two_files_import_each_other():
    """Also by way of others; the import contract can't say this of single files."""
    graph = grimp.build_graph("arch_jax", cache_dir=None)
    edges = [(file, other) for file in graph.modules for other in graph.find_modules_directly_imported_by(file)]
    circles = [sorted(one) for one in networkx.strongly_connected_components(networkx.DiGraph(edges)) if len(one) > 1]
    assert len(edges) > 1000
    assert not circles
