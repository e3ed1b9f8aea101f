"""What one process does on its own so that several can work together."""

import io
import os
import sys
import types

import pytest

from arch_jax.errors import UsageError
from arch_jax.train import distributed


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files are counted in /proc")
def test_what_c_writes_is_kept_back_and_no_file_stays_open(capfd):
    opened = lambda: len(os.listdir("/proc/self/fd"))
    for _ in range(2):  # what the first time alone opens is no leak
        before = opened()
        with distributed._kept_back() as read:
            os.write(1, b"from a library\n")
            print("from Python")
            assert read() == "from a library\n"
            streams = sys.stdout, sys.stderr
        for stream in streams:
            stream.close()
    assert opened() == before
    assert capfd.readouterr().out == "from Python\n" * 2


@pytest.mark.parametrize(("leads", "waits"), [(True, [2.5]), (False, [0.0])])
def test_the_leader_ends_once_the_others_can_have_read_why(monkeypatch, leads, waits):
    """The coordinator, which hands them the sentence, lives in its process."""
    told, slept = [], []

    def ended(code):
        raise SystemExit(code)

    client = types.SimpleNamespace(key_value_set=lambda key, value, **options: told.append(value))
    ending = distributed._Ending(kept=lambda: "", absent="")
    ending.unwatch()
    ending._error = io.StringIO()
    monkeypatch.setattr(distributed, "_client", lambda: client)
    monkeypatch.setattr(distributed, "leader", lambda: leads)
    monkeypatch.setattr(distributed.time, "sleep", slept.append)
    monkeypatch.setattr(distributed.os, "_exit", ended)
    with pytest.raises(SystemExit, match="2"):
        ending.fail(UsageError("the data is too small"))
    assert told == ["2 0 the data is too small"]
    assert slept == waits
    assert ending._error.getvalue() == "arch-jax: the data is too small\n"
