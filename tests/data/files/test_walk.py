"""The one walk through folders: what is read, and what is left out and told, whatever people and tools leave there."""

import ast
import os
import unicodedata
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import arch_jax
from arch_jax.data.files import walk
from arch_jax.data.text import sources
from arch_jax.errors import UsageError

DATA = Path(arch_jax.__file__).parent / "data"


def read(folder, suffixes=(".txt",)):
    found = walk.files(folder, suffixes)
    return [path.relative_to(folder).as_posix() for path in found.paths], dict(+found.skipped)


def test_no_reader_walks_by_itself():
    """The next reader, too, would meet hidden files, links and unreadable folders."""
    walks = {"rglob", "iterdir", "glob", "iglob", "walk", "listdir", "scandir"}
    found = {}
    for file in DATA.rglob("*.py"):
        calls = [node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
        names = {getattr(call, "attr", getattr(call, "id", None)) for call in calls}
        if names & walks:
            found[file.relative_to(DATA).as_posix()] = names & walks
    assert found == {"files/walk.py": {"listdir"}}


def test_leftovers_of_tools_are_counted_by_reason(write, tmp_path):
    for name in ["b/2.txt", "a.TXT", "b/1.txt", ".hidden.txt", "._a.txt", ".ipynb_checkpoints/a-checkpoint.txt"]:
        write(f"root/{name}", "x")
    for name in ["__MACOSX/b/._1.txt", "b/__pycache__/x.txt", "@eaDir/a.txt", "image.png", "Thumbs.db"]:
        write(f"root/{name}", "x")
    root = tmp_path / "root"
    (root / "gone.txt").symlink_to(root / "nowhere.txt")
    (root / "self.txt").symlink_to(root / "self.txt")
    os.mkfifo(root / "pipe.txt")
    files, skipped = read(root)
    assert files == ["a.TXT", "b/1.txt", "b/2.txt"]
    assert skipped == {"hidden": 3, "tools": 3, "type": 2, "broken": 2, "special": 1}
    assert walk.note("'text:root'", walk.files(root, {".txt"}).skipped) == (
        "'text:root' is read without 3 hidden files or folders, 3 folders of tools, 2 links that lead nowhere, "
        "1 device or pipe, 2 files of other types",
    )
    assert walk.note("'text:b'", walk.Skipped()) == ()


def test_linked_folders_are_read_once_and_no_loop_is_made(write, tmp_path):
    for name in ["root/own/1.txt", "root/other/9.txt", "store/2.txt", "store/deep/3.txt"]:
        write(name, "x")
    own, store = tmp_path / "root" / "own", tmp_path / "store"
    (own / "a_link").symlink_to(store, target_is_directory=True)
    (own / "b_link").symlink_to(store / "deep", target_is_directory=True)  # is read through the first already
    (own / "here").symlink_to(own, target_is_directory=True)
    (own / "up").symlink_to(tmp_path / "root", target_is_directory=True)  # would read the other class as this one
    (own / "file.txt").symlink_to(store / "2.txt")
    (store / "up").symlink_to(tmp_path, target_is_directory=True)
    (store / "across").symlink_to(tmp_path / "root", target_is_directory=True)
    files, skipped = read(own)
    assert files == ["1.txt", "a_link/2.txt", "a_link/deep/3.txt", "file.txt"]
    assert skipped == {"again": 5}
    assert [path.name for path in walk.folders(own).paths] == ["a_link", "b_link"]


def test_a_folder_that_may_not_be_read_is_a_sentence(tmp_path, monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", refused)
    for listing in (walk.folders, lambda root: walk.files(root, {".txt"})):
        with pytest.raises(UsageError, match=r"^cannot read the folder '.*': Permission denied; expected one"):
            listing(tmp_path)
    assert walk.names(tmp_path) == []


HOSTILE = st.one_of(
    st.sampled_from([b"caf\xe9", b"\xff\xfe", b"-rf", b"a b", b"a\nb", b"%s", b"~", b"CON", b"x" * 200, b"a'b\"c"]),
    st.sampled_from([unicodedata.normalize(form, "ä").encode() for form in ("NFC", "NFD")]),
    st.binary(min_size=1, max_size=12).filter(lambda name: not {0, ord("/")} & set(name) and name[0] != ord(".")),
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(HOSTILE, min_size=2, max_size=4, unique=True).filter(lambda names: not set(names) & {b"__MACOSX"}))
def test_every_reader_takes_any_name(tmp_path_factory, names):
    root = os.fsencode(tmp_path_factory.mktemp("names"))
    pixels = PIL.Image.fromarray(np.zeros((2, 2, 3), np.uint8))
    for name in names:
        for base, suffix in ((b"images", b".png"), (b"texts", b".txt")):
            os.makedirs(os.path.join(root, base, name), exist_ok=True)
            for number in (b"1", b"2"):
                with open(os.path.join(root, base, name, number + name[:200] + suffix), "wb") as file:
                    pixels.save(file, "PNG") if base == b"images" else file.write(b"one\ntwo\n")
    folder = os.fsdecode(root)
    corpus = arch_jax.Images(source=f"images:{folder}/images", batch=2, validation=0.5).load()
    assert corpus.classes == len(names)
    assert corpus.facts["train_images"] + corpus.facts["validation_images"] == 2 * len(names)
    "".join(corpus.class_names).encode()  # fit for figures, files and terminals
    assert len(sources.documents(f"text:{folder}/texts")) == 2 * len(names)


def test_parts_by_their_usual_names(tmp_path):
    paths = [tmp_path / name for name in ("Training", "VAL", "testing", "notes")]
    found = walk.parts(paths)
    assert {part: path.name for part, path in found.items()} == {
        "train": "Training",
        "validation": "VAL",
        "test": "testing",
    }
    with pytest.raises(UsageError, match=r"'.*VAL' and 'valid' beside it are both named for the part 'validation'"):
        walk.parts([*paths, tmp_path / "valid"])
