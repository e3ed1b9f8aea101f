"""What the tests of training share."""

from typing import Any

import jax
import pytest

from arch_jax.train import loop
from arch_jax.train.compiled import Compiled, alike
from arch_jax.train.state import NOTHING, Given

_compiled: dict[Any, Compiled] = {}


def _shared(experiment: Any, batch: Any, full_batch: bool = False, given: Given = NOTHING) -> Compiled:
    kind = type(experiment.model)  # files that are loaded anew have classes of their own under the same names
    key = kind, id(given) if given.frozen or given.start else None, alike(experiment, batch, full_batch)
    if key not in _compiled:
        _compiled[key] = Compiled(experiment, batch, full_batch, given)
    return _compiled[key]


@pytest.fixture
def compiled_once(monkeypatch):
    """Runs of one experiment share what is compiled, as those of a study do: most of these tests run one many times.

    That a process which begins anew gives the same bits is what the tests with processes show.
    """
    monkeypatch.setattr(loop, "Compiled", _shared)


@pytest.fixture(scope="module")
def compiled():
    """The names of the programs that were compiled so far; `chex.assert_max_traces` sees one function's alone."""
    names = []

    def heard(event, duration, **facts):
        if event.endswith("backend_compile_duration"):
            names.append(facts.get("fun_name", "?"))

    jax.monitoring.register_event_duration_secs_listener(heard)
    yield names
    jax.monitoring.unregister_event_duration_listener(heard)
