"""Run by test_devices.py in processes that see several CPU devices; and a person's experiment file, `config()`.

python devices.py layouts NAME:LAYOUT...              the first losses of experiments in layouts, as JSON
python devices.py quick NAME:LAYOUT...                and what else the quick tests ask of several devices
python devices.py pair PORT PROCESS NAME:LAYOUT...    the same in two processes, over the devices of both
"""

import dataclasses
import io
import json
import os
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import arch_jax
from arch_jax.objectives.base import ObjectiveBase

STEPS = 20


@arch_jax.component("devices_net", kind="model")
class Net(nn.Module):
    """Two layers with batch statistics between them."""

    width: int = 16
    dropout: float = 0.0
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        # No bias: its gradient is nothing but rounding, of which Adam would make steps of full size.
        x = nn.Dense(self.width, use_bias=False)(x)
        x = nn.BatchNorm(use_running_average=not train, axis_name=self.axis_name if train else None)(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(nn.tanh(x))
        return nn.Dense(1)(x)[:, 0]


class Answers(arch_jax.Figure):
    """The first batch's answers as text."""

    def __call__(self, task, variables, sampler, data, key):
        # What it is given must be all there, in this process alone.
        assert all(isinstance(x, np.ndarray) or x.is_fully_addressable for x in jax.tree.leaves(variables))
        return {"text": str(np.asarray(task.model.apply(variables, data.numbers(0)["x"])).tolist())}


@arch_jax.component("devices_squares", kind="objective")
@dataclasses.dataclass(frozen=True)
class Squares(ObjectiveBase):
    """Squared error, each row with a weight."""

    def arguments(self, batch):
        return (batch["x"],)

    def loss(self, player, phase, variables, batch, key, step):
        y, updates = self.apply(variables, batch["x"], key=key)
        loss = jnp.sum(batch["weights"] * jnp.square(y - batch["y"])), jnp.sum(batch["weights"])
        return loss, ({"loss": loss}, updates)

    def evaluate(self, variables, batch):
        y = self.model.apply(variables, batch["x"])
        return {"loss": (jnp.sum(jnp.square(y - batch["y"])), jnp.float32(y.size))}

    figures = (Answers(),)


class Endless:
    """An endless stream of a data source's batches, or of one process's rows of them."""

    def __init__(self, data, shard=(0, 1)):
        self.data, self.shard, self.taken = data, shard, 0

    def __next__(self):
        self.taken += 1
        time.sleep(float(os.environ.get("SECONDS_PER_STEP", 0)))
        index, count = self.shard
        rows = self.data.batch // count
        return {name: x[index * rows : (index + 1) * rows] for name, x in self.data.numbers(self.taken).items()}

    def get_state(self):
        return {"taken": self.taken}

    def set_state(self, state):
        self.taken = state["taken"]


@arch_jax.component("devices_numbers", kind="data")
@dataclasses.dataclass(frozen=True)
class Numbers:
    """Random numbers, in rows of uneven weight."""

    batch: int = 16

    facts: ClassVar = {"sha256": "0", "source": "numbers"}

    def load(self):
        return self

    @property
    def shapes(self):
        return {
            "x": ((self.batch, 4), "float32"),
            "y": ((self.batch,), "float32"),
            "weights": ((self.batch,), "float32"),
        }

    def numbers(self, n):
        x = np.random.default_rng(n).normal(size=(self.batch, 4)).astype(np.float32)
        return {"x": x, "y": np.sin(3 * x[:, 0]), "weights": np.arange(self.batch, dtype=np.float32) % 3}

    def train(self, seed, shard=(0, 1)):
        return Endless(self, shard)

    def validation(self):
        return [self.numbers(0)]


@arch_jax.component("devices_one_batch", kind="data")
@dataclasses.dataclass(frozen=True)
class OneBatch:
    """The same numbers as one batch of all the data, in arrays that a mesh can and can't cut."""

    facts: ClassVar = {"sha256": "1", "source": "numbers"}
    full_batch = True

    def load(self):
        return self

    @property
    def shapes(self):
        return {
            "x": ((24, 4), "float32"),
            "y": ((24,), "float32"),
            "weights": ((24,), "float32"),
            "sizes": ((1, 2), "int32"),
        }

    def numbers(self, n):
        return Numbers(24).numbers(0) | {"sizes": np.array([[24, 4]], np.int32)}

    def train(self, seed):
        batch = self.numbers(0)
        return iter(lambda: batch, None)

    def validation(self):
        return [self.numbers(0)]


def config() -> arch_jax.Experiment:
    """For `arch-jax train devices.py`: everything that a state can hold, with dropout."""
    return arch_jax.Experiment(
        model=Net(dropout=0.2),
        objective=Squares(),
        data=Numbers(),
        optimizer=arch_jax.Optimizer("adamw", learning_rate=1e-2, warmup=3, weight_decay=0.1),
        steps=60,
        evaluate_every=20,
        checkpoint_every=5,
        steps_per_dispatch=2,
        ema=0.9,
    )


def experiments() -> dict[str, Any]:
    """Name -> what makes the experiment: one of each shape of training."""
    adam = arch_jax.Optimizer("adamw", learning_rate=3e-3, warmup=5, weight_decay=0.1)
    sgd = arch_jax.Optimizer("sgd", learning_rate=0.05)

    def gpt(**fields):
        small = {"depth": 2, "width": 32, "mixer.heads": 4, "mixer.kv_heads": 2, "scan": True} | fields
        text = arch_jax.Text(source="pydocs", length=16, batch=16)
        # At 3e-3 step 15 has a gradient thrice the usual, which makes a rounding error 2e-4 of step 17's.
        slow = dataclasses.replace(adam, learning_rate=1e-3)
        return arch_jax.Experiment(arch_jax.create("gpt", **small), arch_jax.objective("next_token"), text, slow)

    def images():
        data = arch_jax.Images(source="digits", batch=16, resize=28, pad=2)
        return arch_jax.Experiment(arch_jax.create("lenet5-bn"), arch_jax.objective("classify"), data, sgd)

    def ring():
        return arch_jax.Experiment(
            arch_jax.create("gan", **{"generator.hidden": (64,) * 4, "discriminator.hidden": (32,) * 3}),
            arch_jax.objective("adversarial"),
            arch_jax.Ring(batch=16),
            sgd,
        )

    def nodes():
        return arch_jax.Experiment(
            arch_jax.create("gcn"), arch_jax.objective("nodes"), arch_jax.Nodes("karate", multiple=8), adam
        )

    return {
        "gpt": gpt,
        "gpt-dropout": lambda: gpt(dropout=0.1),
        "toy": lambda: arch_jax.Experiment(Net(), Squares(), Numbers(), adam, ema=0.9),
        "toy-one-batch": lambda: arch_jax.Experiment(Net(dropout=0.2), Squares(), OneBatch(), adam),
        "lenet5-bn": images,
        "gan": ring,
        "gcn": nodes,
    }


LAYOUTS: dict[str, dict[str, Any]] = {
    "one": {"mesh.data": 1},
    "data": {},
    "fsdp": {"mesh.fsdp": 8},
    "both": {"mesh.data": 2, "mesh.fsdp": 4},
    "pmap": {"parallel": "pmap"},
    "tensor": {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2},
}


def first_losses(experiment: arch_jax.Experiment) -> tuple[dict[str, list], Any, Any]:
    """The metrics of the first steps, in dispatches of 7; with the placement and the last state."""
    from arch_jax.train.mesh import Placement
    from arch_jax.train.state import initial_state

    experiment = dataclasses.replace(experiment, steps=STEPS, steps_per_dispatch=7)
    corpus = experiment.data.load()
    shapes = {name: jax.ShapeDtypeStruct(*facts) for name, facts in corpus.shapes.items()}
    place = Placement(experiment, full_batch=getattr(corpus, "full_batch", False))
    state = place.place(place.fresh(lambda b: initial_state(experiment, b), shapes))
    shard = (jax.process_index(), jax.process_count())
    iterator = corpus.train(0, **({} if shard[1] == 1 or place.full_batch else {"shard": shard}))
    found: dict[str, list] = {}
    for first in range(0, STEPS, 7):
        count = min(7, STEPS - first)
        batches = [next(iterator) for _ in range(count)]
        state, metrics = place.run(state, place.stack(batches, 7), count)
        for name, pair in jax.device_get(metrics).items():
            found.setdefault(name, []).extend(float(s / w) if w else None for s, w in list(zip(*pair))[:count])
    return found, place, state


def layouts(words: list[str]) -> dict[str, Any]:
    """Name -> layout -> the first metrics."""
    found: dict[str, Any] = {}
    for word in words:
        name, layout = word.split(":")
        metrics, place, state = first_losses(experiments()[name]().overridden(LAYOUTS[layout]))
        here = found.setdefault(name, {}).setdefault(layout, {"metrics": metrics})
        if name == "gpt" and not place.mapped:
            here["pieces"] = {
                jax.tree_util.keystr(path, simple=True, separator="/"): [
                    list(x.shape),
                    list(x.addressable_shards[0].data.shape),
                ]
                for path, x in jax.tree_util.tree_leaves_with_path(state)
            }
            here["bytes"] = [
                sum(s.data.nbytes for x in jax.tree.leaves(state) for s in x.addressable_shards if s.device == one)
                for one in place.devices
            ]
    return found


def another_layout() -> dict[str, Any]:
    """A run that is begun on a mesh and goes on on another, beside one that stays."""
    from arch_jax.train.loop import train

    experiment = dataclasses.replace(config(), steps=12, evaluate_every=12, name="devices")
    lines = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, changes in (("stays", {}), ("moves", {"mesh.fsdp": 8})):
            path = Path(folder) / name
            if changes:
                train(experiment.overridden(changes), path, stop_after=6)
            train(experiment, path)
            lines[name] = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return lines


#: What can't be laid out, and is told in one sentence.
REFUSED = (
    ["data.batch=12"],
    ["mesh.fsdp=3"],
    ["mesh.tensor=2"],
    ["data=devices_one_batch", "parallel=pmap"],
)


def refused() -> dict[str, tuple[int, str, str, bool]]:
    """What the command says to each: exit code, stdout, stderr, and whether it has begun a run."""
    from arch_jax.cli import main

    found = {}
    for changes in REFUSED:
        sets = [word for change in changes for word in ("--set", change)]
        out, err = io.StringIO(), io.StringIO()
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(out), redirect_stderr(err):
            code = main(["train", __file__, "--workdir", f"{folder}/run", *sets])
            begun = (Path(folder) / "run" / "config.json").exists()
            found[" ".join(changes)] = code, out.getvalue(), err.getvalue(), begun
    return found


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "pair":
        jax.distributed.initialize(f"127.0.0.1:{rest[0]}", 2, int(rest[1]), cluster_detection_method="deactivate")
        result: Any = {}
        for name, layout in (word.split(":") for word in rest[2:]):
            found = first_losses(experiments()[name]().overridden(LAYOUTS[layout]))[0]
            result.setdefault(name, {})[layout] = {"metrics": found}
    else:
        result = layouts(rest)
        if what == "quick":
            result |= {"another layout": another_layout(), "refused": refused()}
    print("RESULT" + json.dumps(result))
