"""Image classifiers beside the same networks in PyTorch (transformers' classes), on a CPU, float32.

    python experiments/benchmarks/pictures.py [ROUNDS] [NAME ...]

NAMEs choose rows ("resnet-18", "resnet-50 inference"); without any, all are timed and the table is stored.

A training step is forward, backward and SGD with momentum on 8 pictures of 64 x 64 pixels, in training mode on both
sides. Ours are timed as they are trained: five steps in one program. Inference is one batch of 8 pictures of 224 x 224.
PyTorch is timed with channels first and last in memory, and speeds are against the faster of the two. "XLA's
convolution" is our program with the form that a GPU or TPU takes; "layers apart" has `scan=False`: it compiles longer.
"""

import os
import statistics
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import numpy as np
from _table import compare, publish, table

import arch_jax
from arch_jax.train.state import initial_state
from arch_jax.train.step import make_program

BATCH, STEPS, CLASSES = 8, 5, 1000
TRAINING_SIDE, INFERENCE_SIDE = 64, 224
TRAINING = ("resnet-18", "resnet-50", "mobilenet-v2", "convnext-tiny", "vit-tiny-16")
INFERENCE = ("resnet-50", "efficientnet-b0")

#: Name -> transformers' class and the settings that make it the same network.
THEIRS = {
    "resnet-18": ("ResNet", {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}),
    "resnet-50": ("ResNet", {"layer_type": "bottleneck"}),
    "mobilenet-v2": ("MobileNetV2", {"tf_padding": False, "classifier_dropout_prob": 0.2}),
    "convnext-tiny": ("ConvNext", {}),
    "vit-tiny-16": (
        "ViT",
        {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "image_size": TRAINING_SIDE},
    ),
    "efficientnet-b0": (
        "EfficientNet",
        {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280, "dropout_rate": 0.2},
    ),
}
#: Settings of ours that differ from the registered ones.
OURS = {"vit-tiny-16": {"resolution": TRAINING_SIDE}}


def batch(side: int) -> dict[str, np.ndarray]:
    """Random pictures with labels."""
    draw = np.random.default_rng(0)
    return {
        "images": draw.normal(size=(BATCH, side, side, 3)).astype(np.float32),
        "labels": draw.integers(0, CLASSES, BATCH, dtype=np.int32),
        "weights": np.ones(BATCH, np.float32),
    }


def our_training(name: str, **changes: Any) -> Callable[[], None]:
    """Five steps of the train program, with fields of the model that differ."""
    task = arch_jax.objective("classify")
    optimizer = arch_jax.Optimizer("sgd", learning_rate=1e-3)
    it = arch_jax.Experiment(
        arch_jax.create(name, **OURS.get(name, {}) | changes), task, data=None, optimizer=optimizer, steps=STEPS
    )
    one = batch(TRAINING_SIDE)
    state = jax.jit(lambda b: initial_state(it, b))(one)
    stacked = jax.tree.map(lambda x: np.stack([x] * STEPS), one)
    program = jax.jit(make_program(it), donate_argnums=0).lower(state, stacked, np.int32(STEPS)).compile()

    def run():
        nonlocal state
        state, metrics = program(state, stacked, np.int32(STEPS))
        jax.block_until_ready(metrics)

    return run


def our_inference(name: str) -> Callable[[], None]:
    """Logits of one batch."""
    model, images = arch_jax.create(name), jax.device_put(batch(INFERENCE_SIDE)["images"])
    variables = jax.jit(model.init)(jax.random.key(0), images)
    program = jax.jit(model.apply).lower(variables, images).compile()
    return lambda: jax.block_until_ready(program(variables, images))


def their_model(name: str, channels_last: bool):
    """Transformers' model."""
    import torch
    import transformers

    kind, settings = THEIRS[name]
    # As XLA does. Transformers' EfficientNet starts with weights whose activations vanish, and took 7 times as long.
    torch.set_flush_denormal(True)
    config = getattr(transformers, f"{kind}Config")(num_labels=CLASSES, **settings)
    model = getattr(transformers, f"{kind}ForImageClassification")(config)
    return model.to(memory_format=torch.channels_last) if channels_last else model


def their_pictures(side: int, channels_last: bool):
    """The same pictures, and their labels."""
    import torch

    one = batch(side)
    images = torch.from_numpy(one["images"]).permute(0, 3, 1, 2)  # a view: channels are last in memory
    labels = torch.from_numpy(one["labels"].astype(np.int64))
    return images if channels_last else images.contiguous(), labels


def their_training(name: str, channels_last: bool) -> Callable[[], None]:
    """Five steps in PyTorch."""
    import torch

    model = their_model(name, channels_last).train()
    images, labels = their_pictures(TRAINING_SIDE, channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def run():
        for _ in range(STEPS):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images).logits, labels).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    return run


def their_inference(name: str, channels_last: bool) -> Callable[[], None]:
    """Logits of one batch in PyTorch."""
    import torch

    model = their_model(name, channels_last).eval()
    images, _ = their_pictures(INFERENCE_SIDE, channels_last)

    def run():
        with torch.no_grad():
            model(images)

    return run


def row(name: str, rounds: int) -> str:
    """The table of one network in one mode."""
    network, _, inference = name.partition(" ")
    theirs, ours = (their_inference, our_inference) if inference else (their_training, our_training)
    contenders = {
        "PyTorch": theirs(network, False),
        "PyTorch, channels last": theirs(network, True),
        "arch_jax": ours(network),
    }
    if name == "resnet-18":
        with mock.patch("arch_jax.ops.convolution.dense.choose", return_value="xla"):
            contenders["XLA's convolution"] = ours(network)
    if name == "vit-tiny-16":
        contenders["arch_jax, layers apart"] = ours(network, scan=False)
    times = compare(contenders, rounds)
    faster = min((label for label in times if label.startswith("PyTorch")), key=lambda x: statistics.median(times[x]))
    what, side, steps = ("inference", INFERENCE_SIDE, 1) if inference else ("training step", TRAINING_SIDE, STEPS)
    title = f"{network} {what}, {BATCH} x {side} x {side}, float32, {len(os.sched_getaffinity(0))} threads"
    return table(title, times, steps, "milliseconds a step" if steps > 1 else "milliseconds a batch", faster)


def main() -> None:
    """Prints the table, and stores it where it is whole."""
    rounds = next((int(word) for word in sys.argv[1:] if word.isdigit()), 6)
    names = [word for word in sys.argv[1:] if not word.isdigit()]
    every = [*TRAINING, *(f"{name} inference" for name in INFERENCE)]
    if unknown := set(names) - set(every):
        sys.exit(f"unknown row {sorted(unknown)[0]!r}; expected one of {every}")
    tables = []
    for name in names or every:
        tables.append(row(name, rounds))
        print(tables[-1], end="\n\n", flush=True)
    if not names:
        publish("pictures", "\n\n".join(tables))


if __name__ == "__main__":
    main()
