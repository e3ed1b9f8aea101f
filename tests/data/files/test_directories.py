"""The lock for writing a file: one holder at a time, and none after the block, however it ended."""

import filelock
import pytest

from arch_jax.data.files.directories import locked
from arch_jax.errors import RunError


def test_one_holds_the_lock_and_nobody_after_an_error(tmp_path):
    path = tmp_path / "folder" / "file"
    other = filelock.FileLock(path.with_name("file.lock"))

    def fail():
        with locked(path):
            with pytest.raises(filelock.Timeout):
                other.acquire(timeout=0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with other.acquire(timeout=0):
        assert other.is_locked


def test_a_lock_that_can_not_be_made(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RunError, match="cannot create the lock"), locked(tmp_path / "file" / "file"):
        pytest.fail("nothing is locked")
