"""The lessons: their form, their notebooks, and the builder that runs the stalest of them."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import arch_jax

ROOT = Path(__file__).parent.parent
LESSONS = sorted((ROOT / "course").glob("[0-9][0-9]_*.py"))
every_lesson = pytest.mark.parametrize("path", LESSONS, ids=[path.stem for path in LESSONS])


def load_builder():
    spec = importlib.util.spec_from_file_location("course_build", ROOT / "course" / "build.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = load_builder()


@pytest.fixture
def course(tmp_path, monkeypatch):
    """An empty course with its own notebooks and manifest; `add(number, text)` writes a lesson."""
    folder = tmp_path / "course"
    folder.mkdir()
    (folder / "_run.py").write_text((ROOT / "course" / "_run.py").read_text())
    monkeypatch.setattr(build, "COURSE", folder)
    monkeypatch.setattr(build, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(build, "MANIFEST", folder / "manifest.json")
    monkeypatch.setattr(build, "INDEX", tmp_path / "index.md")
    build.INDEX.write_text("before\n<!-- lessons -->\nold\n<!-- /lessons -->\nafter\n")

    def add(
        name, text="# %% [markdown]\n# # A lesson\n#\n# It takes <!-- run time -->.\n\n# %%\nx = 1\nassert x == 1\n"
    ):
        (folder / f"{name}.py").write_text(text)
        return build.lessons([name])[0]

    return add


@every_lesson
def test_notebook_is_made_from_the_lesson(path):
    (lesson,) = build.lessons([path.stem])
    assert lesson.notebook.read_text(encoding="utf-8") == build.notebook_text(lesson), "run python course/build.py"


def test_index_of_lessons():
    text = build.INDEX.read_text(encoding="utf-8")
    assert build.index() in text, "run python course/build.py"
    for path in LESSONS:
        assert f"(../notebooks/{path.stem}.ipynb)" in text


def test_every_notebook_has_a_lesson():
    assert [path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))] == [path.stem for path in LESSONS]


@every_lesson
def test_notebook_is_valid_and_carries_no_outputs(path):
    import nbformat

    book = nbformat.read(ROOT / "notebooks" / f"{path.stem}.ipynb", as_version=4)
    nbformat.validate(book)
    assert not [cell for cell in book.cells if cell.get("outputs") or cell.get("execution_count")]


def inside_names(source: str) -> list[str]:
    """What a lesson reaches inside the package, by import or by attribute."""
    nodes = list(ast.walk(ast.parse(source)))
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    names = [
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "arch_jax"
    ]
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module == "arch_jax":
            names += [alias.name for alias in node.names]
    public = {*arch_jax.__all__, "__version__"}
    return [name for name in modules if name.startswith("arch_jax.")] + [
        f"arch_jax.{name}" for name in names if name not in public
    ]


@every_lesson
def test_lesson_uses_the_public_face_only(path):
    assert inside_names(path.read_text(encoding="utf-8")) == []


def test_what_is_inside_is_found():
    assert inside_names("import arch_jax.ops.losses") == ["arch_jax.ops.losses"]
    assert inside_names("from arch_jax.ops import losses") == ["arch_jax.ops"]
    assert inside_names("from arch_jax import ops, create") == ["arch_jax.ops"]
    assert inside_names("import arch_jax\narch_jax.layers.norms\narch_jax.create\narch_jax.train.loop") == [
        "arch_jax.layers"
    ]


@every_lesson
def test_form_of_a_lesson(path):
    text = path.read_text(encoding="utf-8")
    title = f"# # {int(path.stem[:2])}. "
    assert title in text.split("# %%")[1]
    assert "## Exercises" in text
    assert 'find_spec("arch_jax")' in text.split("# %%")[2] or 'find_spec("arch_jax")' in text.split("# %%")[1]
    assert build.RUN_TIME in text
    assert text.count("<details>") == text.count("</details>") >= 3
    assert text.count('# %% tags=["solution"]') >= 2
    assert "arch_jax.draw(" in text
    assert "arch_jax.load_record(" in text
    assert len(re.findall(r"^\s*(assert |np\.testing\.|numpy\.testing\.)", text, re.MULTILINE)) >= 8
    assert "arXiv" in text or re.search(r"\b\d{4}\.\d{5}\b", text)
    assert "savefig" not in text  # the builder keeps figures where it is asked to


@every_lesson
def test_links_between_lessons_lead_somewhere(path):
    planned = {"01", "02", "03", "04", "05", "06", "07", "08", "09", "10", "11", "12", "13"}
    for link in re.findall(r"\]\(([^)#\s]+)\)", path.read_text(encoding="utf-8")):
        if re.fullmatch(r"\d\d_\w+\.ipynb", link):
            assert (ROOT / "notebooks" / link).exists() or link[:2] in planned - {p.stem[:2] for p in LESSONS}, link
        elif not link.startswith("http"):
            assert (ROOT / "notebooks" / link).exists(), link


@every_lesson
def test_lesson_has_run_in_under_three_minutes(path):
    (lesson,) = build.lessons([path.stem])
    assert lesson.last is not None, f"run python course/build.py {path.stem[:2]} --execute"
    assert lesson.last["seconds"] <= build.LONGEST
    assert len(lesson.last["code"]) > 10


def test_built_notebook(course):
    lesson = course("03_three")
    build.build(lesson)
    book = json.loads(lesson.notebook.read_text())
    assert [cell["cell_type"] for cell in book["cells"]] == ["markdown", "code"]
    assert "It takes not measured yet." in "".join(book["cells"][0]["source"])
    assert len({cell["id"] for cell in book["cells"]}) == 2
    before = lesson.notebook.stat().st_mtime_ns
    build.build(lesson)  # what is right already is not written again
    assert lesson.notebook.stat().st_mtime_ns == before


def test_solution_cells_keep_their_tag(course):
    lesson = course("03_three", '# %% tags=["solution"]\nx = 2\n')
    assert json.loads(build.notebook_text(lesson))["cells"][0]["metadata"] == {"tags": ["solution"]}


def entry(lesson, **changes):
    """A lesson's entry of the manifest, as of a run on another day."""
    plain = {"seconds": 10, "date": "2026-01-02", "device": "a CPU", "code": {}}
    return plain | {"lesson": build.lesson_hash(lesson.path)} | changes


def test_the_stalest_is_run_first(course):
    for name in ("01_fresh", "02_code", "03_text", "04_never", "05_older"):
        lesson = course(name)
        if name != "04_never":
            old = {"arch_jax/optimizer.py": "0", "arch_jax/fields.py": "0"} if name == "02_code" else {}
            date = "2025-01-02" if name == "05_older" else "2026-01-02"
            build.remember(name, entry(lesson, code=old, date=date))
    (build.COURSE / "03_text.py").write_text("x = 3\n")
    found = build.lessons()
    assert [one.name for one in build.stalest(found)] == ["04_never", "02_code", "03_text", "05_older", "01_fresh"]
    equal = [one for one in found if one.name in ("01_fresh", "05_older")]
    for lesson in equal:
        build.remember(lesson.name, entry(lesson))
    equal = build.lessons(["01", "05"])
    turns = [[one.name for one in build.stalest(equal, day)] for day in (0, 1, 2)]
    assert turns == [["01_fresh", "05_older"], ["05_older", "01_fresh"], ["01_fresh", "05_older"]]
    states = {one.name: one.state for one in found}
    assert states["01_fresh"] == "fresh (10 s on a CPU, 2026-01-02)"
    assert "course/03_text.py" in states["03_text"]
    assert "arch_jax/fields.py, arch_jax/optimizer.py changed since" in states["02_code"]


def test_check_stops_within_its_time_and_tells_what_is_left(course, monkeypatch, capsys):
    ran, clock, times = [], [0.0], [1]

    def execute(lesson):
        ran.append(lesson.name)
        clock[0] += times[0] * lesson.last["seconds"]
        return {"seconds": times[0] * lesson.last["seconds"]}

    monkeypatch.setattr(build, "execute", execute)
    monkeypatch.setattr(build.time, "monotonic", lambda: clock[0])
    for name, seconds in (("01_a", 100), ("02_b", 300), ("03_c", 100)):
        build.remember(
            name, entry(course(name), seconds=seconds, code={"arch_jax/no.py": "0"} if name == "02_b" else {})
        )
    assert build.check(build.lessons(), budget=350) == 0
    assert ran == ["02_b"]  # the stalest, though the others would fit twice
    assert "01_a: not run; fresh" in (told := capsys.readouterr().out)
    assert "03_c: not run; fresh" in told
    ran.clear()
    build.check(build.lessons(), budget=1000)
    assert ran[0] == "02_b"
    assert sorted(ran) == ["01_a", "02_b", "03_c"]
    ran.clear()
    times[0] = 3  # on a slower machine than the manifest's, the others are expected to be slow as well
    build.check(build.lessons(), budget=1150)
    assert ran == ["02_b"]
    ran.clear()
    build.check(build.lessons(), budget=1250)
    assert len(ran) == 2
    ran.clear()
    capsys.readouterr()
    assert build.main(["--check", "--seconds", "99"]) == 0
    assert ran == []  # on a machine that has been slow so far, .ci/run leaves few
    assert capsys.readouterr().out.count(": not run; ") == 3


@pytest.mark.thorough
def test_a_lesson_that_runs_and_one_that_fails(course, capsys):
    course(
        "01_good",
        "# %%\nimport arch_jax\n\nt = arch_jax.load_table('mixers_by_length')\narch_jax.Optimizer('sgd', clip=None)\n",
    )
    course("02_bad", "# %%\nassert 1 == 2, 'one is not two'\n")
    assert build.main(["--execute"]) == 1
    assert "one is not two" in capsys.readouterr().out
    (good, bad) = build.lessons()
    assert {"arch_jax/optimizer.py", "experiments/benchmarks/results/mixers_by_length.json"} <= set(good.last["code"])
    assert good.state.startswith("fresh")
    assert bad.last is None  # a failure is not remembered as a run
    assert build.main(["--check"]) == 1
    index = build.INDEX.read_text()
    assert index.startswith("before\n<!-- lessons -->\n| [01_good](../notebooks/01_good.ipynb) |")
    assert index.endswith("<!-- /lessons -->\nafter\n")
    assert "old" not in index


def test_unknown_lesson(course):
    course("01_a")
    with pytest.raises(SystemExit, match="there is no lesson '77'; expected one of 01_a"):
        build.main(["77"])


@pytest.mark.thorough
def test_manifest_is_of_lessons_that_are_there():
    assert set(build.manifest()) == {path.stem for path in LESSONS}


@pytest.mark.thorough
def test_list_needs_nothing_else(tmp_path):
    command = [sys.executable, str(ROOT / "course" / "build.py"), "--list"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in told.splitlines()] == [path.stem for path in LESSONS]


@pytest.mark.parametrize(("text", "told"), [("{", "is not JSON"), ("[]", "holds a list; expected lessons")])
def test_a_manifest_that_is_none(course, text, told):
    course("01_a")
    build.MANIFEST.write_text(text)
    with pytest.raises(SystemExit, match=told):
        build.main(["--list"])


def test_seconds_are_a_number(course, capsys):
    with pytest.raises(SystemExit):
        build.main(["--check", "--seconds", "nan"])
    assert "invalid seconds value: 'nan'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--check", "--execute"], "--check writes nothing, and --execute notes what ran; expected one of them"),
        (["--figures", "here"], "--figures draws what --execute runs; expected both"),
    ],
)
def test_flags_that_exclude_or_need_each_other(course, capsys, arguments, told):
    course("01_a")
    with pytest.raises(SystemExit):
        build.main(arguments)
    assert told in capsys.readouterr().err


def test_a_lesson_is_named_by_its_number_or_file(course):
    course("02_a")
    for wanted in ("2", "02", "02_a", "02_a.py", "course/02_a.py", "notebooks/02_a.ipynb"):
        assert [one.name for one in build.lessons([wanted])] == ["02_a"]
    for wanted in ("2.5", "a", "02_", "3"):
        with pytest.raises(SystemExit, match="there is no lesson"):
            build.lessons([wanted])


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n", "lesson 01_a is ended by signal 9 after"),
        ("import sys\nsys.exit(0)\n", "lesson 01_a leaves Python before its end, after"),
        ("x = = 2\n", "SyntaxError"),
    ],
)
def test_a_lesson_that_does_not_come_to_its_end(course, capsys, code, told):
    course("01_a", f"# %%\n{code}")
    assert build.main(["--execute"]) == 1
    assert told in capsys.readouterr().out
    assert build.manifest() == {}


def test_a_lesson_that_is_no_text(course):
    course("01_a").path.write_bytes(b"\xff\xfe# %%\n")
    with pytest.raises(SystemExit, match="is not UTF-8"):
        build.main(["--list"])
