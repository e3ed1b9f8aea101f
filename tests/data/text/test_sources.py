import hashlib
import os
import pathlib
import subprocess
import sys

import jaxtyping
import pytest

from arch_jax.data import Text
from arch_jax.data.files import directories
from arch_jax.data.text import sources
from arch_jax.errors import RunError, UsageError

# A value of a wrong type is refused by a sentence, or before that by the type checker where it is on.
REFUSED = (UsageError, jaxtyping.TypeCheckError)


def test_pydocs_are_the_help_topics_sorted_by_name():
    from pydoc_data.topics import topics

    read = sources.documents("pydocs")
    assert list(read) == [topics[name] for name in sorted(topics)]
    assert len(read) == len(topics)
    assert read[3] == topics[sorted(topics)[3]]
    assert read.name == "pydocs"


def test_the_hash_covers_every_character_and_every_border():
    base = sources.Documents("x", ("ab", "c")).sha256
    assert base == hashlib.sha256(b"2\nab1\nc").hexdigest()
    others = [("a", "bc"), ("abc",), ("ab", "d"), ("c", "ab"), ("ab", "c", "")]
    assert base not in {sources.Documents("x", texts).sha256 for texts in others}


def test_every_listed_source_is_read_and_every_reader_is_listed():
    assert set(sources.SOURCES) == {*sources._READERS, "text:PATH"}
    assert all(sources.SOURCES.values())


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("pydoc", "unknown source 'pydoc'; the nearest are 'pydocs'"),
        ("shakespeare", "'tinyshakespeare'"),
        ("", "unknown source ''"),
        ("text:", "names no file or folder; expected 'text:PATH'"),
        (3, "not 3"),
    ],
)
def test_an_unknown_source_is_one_sentence(source, says):
    with pytest.raises(REFUSED) as caught:
        sources.documents(source)
    if isinstance(caught.value, UsageError):
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_path_without_text_in_front_is_recognised(write):
    path = write("corpus.txt", "a\nb\n")
    with pytest.raises(UsageError, match=r"write 'text:.*corpus\.txt'"):
        sources.documents(str(path))


def test_a_file_is_one_document(write):
    path = write("corpus.anything", "first\r\nsecond\nÄther\n")
    assert sources.documents(f"text:{path}").texts == ("first\nsecond\nÄther\n",)


def test_a_corpus_of_one_line_is_cut_like_any_other(write):
    """As DNA and text8 come: it was refused, as if only whole lines could be split."""
    line = "".join("ACGT"[i * i % 97 % 4] for i in range(1000))
    for content in (line, line + "\n"):
        assert sources.documents(f"text:{write('dna.txt', content)}").texts == (content,)
        corpus = Text(f"text:{write('dna.txt', content)}", "characters", length=16, batch=2).load()
        assert corpus.facts["train_tokens"] + corpus.facts["validation_tokens"] == len(content)
        assert abs(corpus.facts["validation_tokens"] - 100) <= 1


def test_a_folder_is_a_document_for_each_text_file_in_order(write, tmp_path):
    write("folder/b.md", "b")
    write("folder/a.txt", "a")
    write("folder/sub/c.py", "c")
    write("folder/image.png", b"\x89PNG\0")
    write("folder/.hidden/d.txt", "d")
    write("folder/empty.txt", " \n")
    (tmp_path / "folder" / "named_like_a_file.txt").mkdir()
    assert sources.documents(f"text:{tmp_path / 'folder'}").texts == ("a", "b", "c")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"good\nb\xffd\n", "is not UTF-8 text (byte 0xff at offset 6, in line 2)"),
        (b"good\nb\0d\n", "is not UTF-8 text (byte 0x00 at offset 6, in line 2)"),
        ("zwei\nZeilen".encode("utf-16-le"), "is not UTF-8 text (byte 0x00 at offset 1, in line 1)"),
    ],
)
def test_a_file_that_is_no_corpus_is_one_sentence(write, content, says):
    path = write("corpus.txt", content)
    with pytest.raises(UsageError) as caught:
        sources.documents(f"text:{path}")
    assert says in str(caught.value)
    assert "corpus.txt" in str(caught.value)


def test_a_missing_file_names_its_nearest_neighbour(write, tmp_path):
    write("corpus.txt", "a\nb\n")
    with pytest.raises(UsageError, match=r"there is no file or folder '.*korpus\.txt'; the nearest is '.*corpus\.txt'"):
        sources.documents(f"text:{tmp_path / 'korpus.txt'}")
    with pytest.raises(UsageError, match="there is no file or folder"):
        sources.documents(f"text:{tmp_path / 'no' / 'such' / 'corpus.txt'}")


def test_folders_that_are_no_corpus_are_one_sentence(write, tmp_path):
    write("images/a.png", b"\x89PNG")
    with pytest.raises(UsageError, match="has no text files"):
        sources.documents(f"text:{tmp_path / 'images'}")
    write("blank/a.txt", "\n")
    with pytest.raises(UsageError, match="has only empty text files"):
        sources.documents(f"text:{tmp_path / 'blank'}")
    write("damaged/a.txt", "fine\nfine")
    write("damaged/b.txt", b"\xc3\x28")
    with pytest.raises(UsageError, match=r"b\.txt' is not UTF-8 text \(byte 0xc3 at offset 0, in line 1\)"):
        sources.documents(f"text:{tmp_path / 'damaged'}")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="is a device or pipe"):
        sources.documents(f"text:{tmp_path / 'pipe'}")


def test_pysource_is_read_through_tfds_without_tensorflow(data_folder):
    program = """
import sys
from arch_jax.data import documents
read = documents("pysource")
assert "tensorflow" not in sys.modules, "TensorFlow was imported"
assert "tensorflow_datasets" in sys.modules
print(len(read), read.sha256)
"""
    first = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=_root())
    assert first.returncode == 0, first.stderr
    # Nothing but what the program prints: TFDS's own progress is hidden.
    assert first.stdout.count("\n") == 1
    assert first.stderr == ""

    import dataclasses as known

    files = [*data_folder.glob("tensorflow_datasets/python_source/*/1.0.0/*.array_record*")]
    assert len(files) == 1
    written = files[0].stat().st_mtime_ns
    read = sources.documents("pysource")
    assert first.stdout.split() == [str(len(read)), read.sha256]
    assert files[0].stat().st_mtime_ns == written, "prepared a second time"
    assert pathlib.Path(known.__file__).read_text() in read.texts
    assert len(read) > 300
    assert sum(map(len, read)) > 5e6


def test_pysource_leaves_tests_packages_and_build_records_out(write, tmp_path):
    from arch_jax.data.files import tfds_builders

    kept = ["abc.py", "json/decoder.py", "unittest/case.py"]
    for name in [
        *kept,
        "test/test_abc.py",
        "site-packages/x.py",
        "idlelib/idle_test/y.py",
        "_sysconfigdata_z.py",
        "a.txt",
    ]:
        write(f"lib/{name}", "pass")
    (tmp_path / "lib" / "broken.py").symlink_to(tmp_path / "nowhere.py")
    found = tfds_builders.standard_library_files(tmp_path / "lib")
    assert [file.relative_to(tmp_path / "lib").as_posix() for file in found] == kept


def test_pysource_without_library_source_is_one_sentence(tmp_path, monkeypatch):
    from arch_jax.data.files import tfds_builders

    monkeypatch.setattr(tfds_builders, "_standard_library", lambda: tmp_path)
    with pytest.raises(RunError, match=r"needs the standard library's \.py files"):
        sources.documents("pysource")


def test_the_data_folder_is_the_environments_or_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ARCH_JAX_DATA", str(tmp_path / "here"))
    assert sources.data_directory() == tmp_path / "here"
    assert directories.writable_directory() == tmp_path / "here"  # to be made where it does not exist
    monkeypatch.setenv("ARCH_JAX_DATA", "")
    assert sources.data_directory() == directories.user_cache()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ARCH_JAX_DATA", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"ARCH_JAX_DATA is .*file', which is a file; expected a folder"):
        sources.data_directory()


def test_a_read_only_data_folder_is_read_and_the_cache_written(empty_folder, tmp_path):
    (empty_folder / "there").mkdir(parents=True)
    empty_folder.chmod(0o555)
    try:
        assert directories.writable_directory() == directories.user_cache() != empty_folder
        assert directories.find("there") == empty_folder / "there"
        assert directories.find("missing") is None
        directories.write_atomically(directories.writable_directory() / "made", b"x")
        assert directories.find("made") == directories.user_cache() / "made"
    finally:
        empty_folder.chmod(0o755)


def test_pysource_prepares_into_the_cache_where_the_data_folder_is_read_only(
    empty_folder, monkeypatch, write, tmp_path
):
    from arch_jax.data.files import tfds_builders

    write("lib/one.py", "x = 1\n")
    write("lib/two.py", "# Ä\n".encode("latin-1"))  # not UTF-8: left out
    write("lib/three.py", "x = 3\n")
    monkeypatch.setattr(tfds_builders, "_standard_library", lambda: tmp_path / "lib")
    empty_folder.mkdir()
    empty_folder.chmod(0o555)
    try:
        assert sources.documents("pysource").texts == ("x = 1\n", "x = 3\n")
        assert not any(empty_folder.iterdir())
        assert [*directories.user_cache().glob("tensorflow_datasets/python_source/*/1.0.0/dataset_info.json")]
    finally:
        empty_folder.chmod(0o755)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "file"
    directories.write_atomically(path, b"first")
    assert path.read_bytes() == b"first"

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match=r"cannot write '.*file': No space left on device"):
        directories.write_atomically(path, b"second")
    assert path.read_bytes() == b"first"
    assert [p.name for p in path.parent.iterdir()] == ["file"], "the temporary file stayed behind"


def test_importing_the_package_imports_nothing_heavy():
    program = """
import sys
import arch_jax.data
heavy = {"numpy", "grain", "jax", "flax", "tokenizers", "tensorflow_datasets", "platformdirs"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
arch_jax.data.Text(), arch_jax.data.documents("pydocs")
assert {"grain", "jax", "tensorflow_datasets", "tokenizers"}.isdisjoint(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=_root())
    assert done.returncode == 0, done.stderr


def test_the_package_knows_only_its_names():
    import arch_jax.data

    assert {"Text", "documents", "data_directory"} <= set(dir(arch_jax.data))
    with pytest.raises(AttributeError, match="has no attribute 'Txt'"):
        arch_jax.data.Txt  # noqa: B018


def _root() -> pathlib.Path:
    return pathlib.Path(sources.__file__).parents[3]
