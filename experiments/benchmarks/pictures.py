"""A training step of image classifiers beside the same networks in PyTorch (transformers' ResNet), on a CPU.

    python experiments/benchmarks/pictures.py [ROUNDS]

Forward, backward and SGD with momentum on 8 pictures of 64 x 64 pixels, float32. Ours are timed as they are trained:
five steps in one program. "XLA's convolution" is the same program with the form that a GPU or TPU takes.
"""

import sys
from unittest import mock

import jax
import numpy as np
from _table import compare, publish, table

import arch_jax
from arch_jax.train.state import initial_state
from arch_jax.train.step import make_program

BATCH, SIDE, STEPS = 8, 64, 5


def batch() -> dict[str, np.ndarray]:
    """Random pictures with labels."""
    draw = np.random.default_rng(0)
    return {
        "images": draw.normal(size=(BATCH, SIDE, SIDE, 3)).astype(np.float32),
        "labels": draw.integers(0, 1000, BATCH, dtype=np.int32),
        "weights": np.ones(BATCH, np.float32),
    }


def ours(name: str, xla: bool = False):
    """Five steps of the train program."""
    task = arch_jax.objective("classify")
    optimizer = arch_jax.Optimizer("sgd", learning_rate=1e-3)
    it = arch_jax.Experiment(arch_jax.create(name), task, data=None, optimizer=optimizer, steps=STEPS)
    state = jax.jit(lambda b: initial_state(it, b))(batch())
    stacked = jax.tree.map(lambda x: np.stack([x] * STEPS), batch())
    forced = mock.patch("arch_jax.ops.convolution.choose", return_value="xla")
    with forced if xla else mock.patch.dict({}):
        program = jax.jit(make_program(it)).lower(state, stacked, np.int32(STEPS)).compile()
    return lambda: jax.block_until_ready(program(state, stacked, np.int32(STEPS)))


def theirs(layers: int):
    """Five steps of transformers' ResNet in PyTorch."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    if layers == 18:
        sizes = {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}
    else:
        sizes = {"layer_type": "bottleneck"}
    model = ResNetForImageClassification(ResNetConfig(num_labels=1000, **sizes)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    images = torch.from_numpy(batch()["images"].transpose(0, 3, 1, 2).copy())
    labels = torch.from_numpy(batch()["labels"].astype(np.int64))

    def run():
        for _ in range(STEPS):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images).logits, labels).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    return run


def main() -> None:
    """Prints and stores the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 6
    tables = []
    for layers in (18, 50):
        contenders = {"PyTorch": theirs(layers), "arch_jax": ours(f"resnet-{layers}")}
        if layers == 18:
            contenders["XLA's convolution"] = ours("resnet-18", xla=True)
        times = compare(contenders, rounds)
        title = f"ResNet-{layers} training step, {BATCH} x {SIDE} x {SIDE}, float32"
        tables.append(table(title, times, STEPS, "milliseconds a step", "PyTorch"))
    publish("pictures", "\n\n".join(tables))


if __name__ == "__main__":
    main()
