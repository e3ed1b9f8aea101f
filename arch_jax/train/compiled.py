"""The compiled programs of a run, apart from it, so that runs which differ in numbers alone can share them."""

import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from arch_jax.experiment import Experiment
from arch_jax.train.checks import evaluation_program
from arch_jax.train.mesh import Placement
from arch_jax.train.state import NOTHING, Given, initial_state

#: Settings that no compiled program depends on.
_OUTSIDE = (
    "name", "seed", "steps", "evaluate_every", "checkpoint_every", "log_every", "keep", "tensorboard", "data",
    "sampler", "measures", "figures",
)  # fmt: skip


class Compiled:
    """The programs of a run: the first state, the steps, the evaluation. The steps begin to compile in the background.

    It serves every run that `alike` calls the same: seeds, learning rates, decays, lengths.

    Attributes:
      placement: where arrays live, and the program of the steps.
      make: (batch, seed, given) -> the state before the first step.
      shapes: of the state, with where each leaf goes.
      evaluate: (variables, batch) -> metrics as name -> (sum, weight); jitted.
      finite: a tree -> whether each leaf has only finite numbers; jitted.
      given: frozen parts, and the weights that the run starts from.

    Args:
      experiment: what is run.
      batch: name -> shape and dtype, of one batch.
      full_batch: every batch is the same one, of all the data.
      given: arrays from elsewhere; an argument of the programs, on the host.

    Raises:
      UsageError: the mesh can't be laid over the devices, or the batch can't be divided among them.
    """

    def __init__(
        self, experiment: Experiment, batch: Mapping[str, Any], full_batch: bool = False, given: Given = NOTHING
    ) -> None:
        self.batch, self.given = dict(batch), given
        self.placement = Placement(experiment, full_batch=full_batch)
        self.make = lambda batch, seed, given: initial_state(experiment, batch, seed, given)
        self.evaluate = evaluation_program(experiment.task)
        self.finite = jax.jit(lambda tree: jax.tree.map(lambda x: jnp.isfinite(x).all(), tree))
        self.shapes = self.placement.laid(jax.eval_shape(self.make, self.batch, np.uint32(0), given))
        self.placement.compile_ahead(self.shapes, self.batch, experiment.steps_per_dispatch)

    def fresh(self, seed: int) -> Any:
        """The state before the first step of the run with a seed."""
        return self.placement.fresh(self.make, self.batch, np.uint32(seed), self.given)

    @property
    def saved(self) -> Any:
        """The shapes of what a checkpoint holds: the state without its frozen parts."""
        return self.shapes.replace(frozen={})

    def with_frozen(self, state: Any) -> Any:
        """A state from a checkpoint, with its frozen parts."""
        return state.replace(frozen=self.placement.everywhere(self.given.frozen)) if self.given.frozen else state


def alike(experiment: Experiment, batch: Mapping[str, Any], full_batch: bool = False) -> str:
    """Equal for runs that one `Compiled` can serve, and only for those: a schedule without an end has no horizon."""
    experiment = experiment.settled()
    data = {name: value for name, value in experiment.to_json().items() if name not in _OUTSIDE}
    several = isinstance(experiment.optimizer, tuple)
    optimizers = experiment.optimizer if several else (experiment.optimizer,)
    written = data["optimizer"] if several else [data["optimizer"]]
    free = lambda one: {**one.numbers, **({"horizon": 0} if one.schedule in ("constant", "rsqrt") else {})}
    data["optimizer"] = [one | dict.fromkeys(free(optimizer), "any") for one, optimizer in zip(written, optimizers)]
    # One for all players is another program than as many equal ones, for all that is known here.
    data["each"] = several
    data["batch"] = {name: [list(x.shape), str(x.dtype)] for name, x in batch.items()}
    return json.dumps(data | {"full_batch": full_batch}, sort_keys=True)


def memory(program: Any) -> int | None:
    """Bytes that a compiled program holds on one device: arguments, results and temporaries.

    By the compiler's own account; none where it gives none. A donated argument counts once.
    """
    found = program.memory_analysis()
    if found is None:
        return None
    # On a TPU temporaries are summed over spaces of several kinds, and the peak is what the compiler refuses by; on a
    # CPU the peak leaves temporaries out.
    if jax.default_backend() == "tpu" and getattr(found, "peak_memory_in_bytes", 0):
        return int(found.peak_memory_in_bytes)
    parts = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
    return int(parts - found.alias_size_in_bytes)
