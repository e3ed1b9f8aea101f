"""A LeNet-5 training step (batch norm, 64 pictures, Adam): convolution as patches, XLA's own, and PyTorch.

python experiments/benchmarks/convolution.py [ROUNDS]

Ours are timed as they are trained: ten steps in one program.
"""

import sys
from unittest import mock

import jax
import numpy as np
from _table import compare, publish, table

import arch_jax
from arch_jax.train.state import initial_state
from arch_jax.train.step import make_program

BATCH, STEPS = 64, 10


def batch() -> dict[str, np.ndarray]:
    """Random pictures with labels."""
    draw = np.random.default_rng(0)
    return {
        "images": draw.uniform(size=(BATCH, 32, 32, 1)).astype(np.float32),
        "labels": draw.integers(0, 10, BATCH, dtype=np.int32),
        "weights": np.ones(BATCH, np.float32),
    }


def ours(implementation: str):
    """Ten steps of the train program with one form of convolution."""
    model, task = arch_jax.create("lenet5-bn"), arch_jax.objective("classify")
    it = arch_jax.Experiment(model, task, data=None, optimizer=arch_jax.Optimizer("adam"), steps=STEPS)
    state = jax.jit(lambda b: initial_state(it, b))(batch())
    stacked = jax.tree.map(lambda x: np.stack([x] * STEPS), batch())
    with mock.patch("arch_jax.ops.convolution.dense.choose", return_value=implementation):
        program = jax.jit(make_program(it)).lower(state, stacked, np.int32(STEPS)).compile()
    return lambda: jax.block_until_ready(program(state, stacked, np.int32(STEPS)))


def theirs():
    """Ten steps of the same network in PyTorch."""
    import torch
    from torch import nn

    model = nn.Sequential(
        nn.Conv2d(1, 6, 5, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 120, 5, bias=False), nn.BatchNorm2d(120), nn.ReLU(), nn.Flatten(),
        nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    images = torch.from_numpy(batch()["images"].transpose(0, 3, 1, 2).copy())
    labels = torch.from_numpy(batch()["labels"].astype(np.int64))

    def run():
        for _ in range(STEPS):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    return run


def main() -> None:
    """Prints and stores the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    contenders = {"PyTorch": theirs(), "patches": ours("patches"), "XLA's convolution": ours("xla")}
    times = compare(contenders, rounds)
    publish(
        "convolution", table("LeNet-5 training step, batch 64, float32", times, STEPS, "milliseconds a step", "PyTorch")
    )


if __name__ == "__main__":
    main()
