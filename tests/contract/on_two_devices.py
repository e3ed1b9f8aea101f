"""Takes train steps under `pmap` on two CPU devices. A process of its own, since JAX counts its devices when it starts.

Each line of the input names an architecture, a file with a state and a batch that test_models.py has pickled, and a
file for what is found: the metrics of each step, and the state on each device after the last.
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
    stacked = place.stack([batch] * count, count)
    if isinstance(entry.inputs, GraphInputs):  # each device has whole graphs, whose nodes it numbers from 0
        stacked |= {name: stacked[name] % stacked["nodes"].shape[2] for name in ("senders", "receivers")}
    both = jax.tree.map(lambda x: np.stack([x] * len(place.devices)), state)
    state, metrics = place.run(both.replace(key=jax.random.wrap_key_data(both.key)), stacked, count)
    return jax.device_get((state.replace(key=jax.random.key_data(state.key)), metrics))


def main() -> None:
    import_components()
    import_asked_for()
    architectures = {entry.architecture: entry for entry in reversed(registry.models().values())}
    for line in sys.stdin:
        asked = json.loads(line)
        state, batch = pickle.loads(Path(asked["given"]).read_bytes())
        found = taken(architectures[asked["name"]], Optimizer(**asked["optimizer"]), asked["steps"], state, batch)
        Path(asked["found"]).write_bytes(pickle.dumps(found))
        print("done", flush=True)


if __name__ == "__main__":
    main()
