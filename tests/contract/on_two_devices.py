"""Runs models under `pmap` on two CPU devices. A process of its own, since JAX counts its devices when it starts.

Each line of the input says what is asked of an architecture, a file with what it is given, which test_models.py has
pickled, and a file for what is found. "steps": given a state and a batch, the state on each device after some train
steps, and the metrics of each. "outputs": given the variables of several seeds and a batch, the model's outputs, as
"device seed row ...".
"""

import json
import pickle
import sys
from pathlib import Path

import jax
import numpy as np

from arch_jax import registry
from arch_jax.experiment import Experiment, import_asked_for, import_components
from arch_jax.inputs import GraphInputs
from arch_jax.objectives import objective
from arch_jax.optimizer import Optimizer
from arch_jax.train.mesh import Placement


def taken(entry: registry.Entry, optimizer: Optimizer, count: int, state, batch):
    """The state on both devices after `count` steps, and their metrics."""
    experiment = Experiment(entry.tiny(), objective(entry.objective), None, optimizer, steps=count, parallel="pmap")
    place = Placement(experiment)
    stacked = numbered_anew(entry, place.stack([batch] * count, count))
    both = jax.tree.map(lambda x: np.stack([x] * len(place.devices)), state)
    state, metrics = place.run(both.replace(key=jax.random.wrap_key_data(both.key)), stacked, count)
    return jax.device_get((state.replace(key=jax.random.key_data(state.key)), metrics))


def outputs(entry: registry.Entry, variables, batch):
    """What a model gives with the variables of each seed for each device's part of a batch."""
    module = entry.tiny()
    of_seeds = lambda variables, batch: jax.vmap(lambda one: module.apply(one, *entry.arguments(batch)))(variables)
    return jax.device_get(jax.pmap(of_seeds, in_axes=(None, 0))(variables, halves(entry, batch)))


def halves(entry: registry.Entry, batch):
    """The part of a batch that each of two devices has, stacked."""
    return numbered_anew(entry, jax.tree.map(lambda x: x.reshape(2, len(x) // 2, *x.shape[1:]), batch))


def numbered_anew(entry: registry.Entry, stacked):
    """The batches of several devices: each has whole graphs, whose nodes it numbers from 0."""
    if isinstance(entry.inputs, GraphInputs):
        stacked |= {name: stacked[name] % stacked["nodes"].shape[-2] for name in ("senders", "receivers")}
    return stacked


def main() -> None:
    import_components()
    import_asked_for()
    architectures = {entry.architecture: entry for entry in reversed(registry.models().values())}
    for line in sys.stdin:
        asked = json.loads(line)
        entry, (state, batch) = architectures[asked["name"]], pickle.loads(Path(asked["given"]).read_bytes())
        if asked["what"] == "steps":
            found = taken(entry, Optimizer(**asked["optimizer"]), asked["steps"], state, batch)
        else:
            found = outputs(entry, state, batch)
        Path(asked["found"]).write_bytes(pickle.dumps(found))
        print("done", flush=True)


if __name__ == "__main__":
    main()
