"""TFDS builders of this library's own data sets. They need no TensorFlow: array_record files, read as a data source.

Importing this module imports TFDS, so only the functions that use it do.
"""

import contextlib
import hashlib
import io
import pathlib
import platform
import sys
import sysconfig
from collections.abc import Iterator

import tensorflow_datasets as tfds

from arch_jax.data.files import directories, walk
from arch_jax.data.text.reading import text_of
from arch_jax.errors import RunError, UsageError

_FOLDER = "tensorflow_datasets"
# Third-party packages, tests (data, not prose: thousands of generated lines), and lib2to3, which left in Python 3.13.
_EXCLUDED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__"}


def standard_library_files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """The standard library's own .py files under `folder`: those of each folder before those of the folders in it."""
    found = walk.files(folder, {".py"}, _EXCLUDED_FOLDERS).paths if folder.is_dir() else ()
    place = lambda file: [*((True, part) for part in file.relative_to(folder).parts[:-1]), (False, file.name)]
    for file in sorted(found, key=place):
        # _sysconfigdata_*.py describes the machine Python was built on.
        if not file.name.startswith("_sysconfigdata"):
            yield file


def _standard_library() -> pathlib.Path:
    return pathlib.Path(sysconfig.get_path("stdlib"))


def _configuration() -> str:
    """Names this Python and what its library holds: two Pythons that share a data folder each find their own."""
    digest = hashlib.sha256()
    for file in standard_library_files(_standard_library()):
        digest.update(f"{file.relative_to(_standard_library()).as_posix()} {file.stat().st_size}\n".encode())
    return f"{sys.implementation.name}_{platform.python_version()}_{digest.hexdigest()[:12]}"


class _LocalInfo(tfds.core.DatasetInfo):
    """Local TFDS metadata; the public bucket is not asked about this library's data sets."""

    def initialize_from_bucket(self) -> None:
        pass  # the inherited method leaves an empty temporary folder behind at each call


class PythonSource(tfds.core.GeneratorBasedBuilder):
    """The standard library of the running Python: one example a file, with features `path` and `text`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=_configuration())]  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        return _LocalInfo(
            builder=self,
            description="The .py files of CPython's standard library, without its tests.",
            features=tfds.features.FeaturesDict({"path": tfds.features.Text(), "text": tfds.features.Text()}),
            homepage="https://github.com/python/cpython",
            license="Python Software Foundation License",
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        return {"train": self._generate_examples(_standard_library())}

    def _generate_examples(self, folder):
        for file in standard_library_files(folder):
            path = file.relative_to(folder).as_posix()
            try:
                text = text_of(file.read_bytes(), path)
            except UsageError:  # a handful of files are there to show another encoding
                continue
            if text.strip():
                yield path, {"path": path, "text": text}


def python_source() -> list[str]:
    """The texts of the standard library's files, in the order of their paths; prepares the data set on first use.

    Raises:
      RunError: this Python carries no library source (a zipped or stripped installation).
    """
    if next(standard_library_files(_standard_library()), None) is None:
        raise RunError(
            f"source 'pysource' needs the standard library's .py files, and {str(_standard_library())!r} has none"
        )
    source = _prepared(PythonSource).as_data_source(split="train")
    records = source.__getitems__(range(len(source)))
    # TFDS stores examples in the order of their hashed keys; paths bring back one that does not depend on TFDS.
    records = sorted(records, key=lambda record: record["path"])
    return [record["text"].decode() for record in records]


def _prepared(builder_class: type[tfds.core.GeneratorBasedBuilder]) -> tfds.core.DatasetBuilder:
    """The builder, its files written on first use; found in the data folder even where that is read-only."""
    for folder in (directories.data_directory(), directories.writable_directory()):
        builder = builder_class(data_dir=folder / _FOLDER, file_format="array_record")
        if _is_prepared(builder):
            return builder
    with directories.locked(folder / _FOLDER / builder.name):
        builder = builder_class(data_dir=folder / _FOLDER, file_format="array_record")
        if not _is_prepared(builder):  # else another process prepared it while this one waited
            with _silence():
                builder.download_and_prepare()
    return builder


def _is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    # TFDS renames the finished folder into place. Its own is_prepared() logs a warning where there is none yet.
    return (builder.data_path / "dataset_info.json").exists()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Hides TFDS's progress bars and output: preparation takes a second, once."""
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
