import pathlib

import pytest


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory) -> pathlib.Path:
    """One data folder for all tests of a session, so that what is prepared once is prepared once."""
    return tmp_path_factory.mktemp("arch_jax_data")


@pytest.fixture(autouse=True)
def data_folder(session_folder, monkeypatch) -> pathlib.Path:
    """Keeps every test away from the user's own folders, and from what their environment sets."""
    monkeypatch.setenv("ARCH_JAX_DATA", str(session_folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(session_folder / "cache"))
    return session_folder


@pytest.fixture
def empty_folder(tmp_path, monkeypatch) -> pathlib.Path:
    """A data folder of the test's own."""
    monkeypatch.setenv("ARCH_JAX_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "data"


@pytest.fixture
def write(tmp_path):
    """Writes a file (text or bytes) into the test's folder; gives its path."""

    def write(name: str, content: str | bytes) -> pathlib.Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write
