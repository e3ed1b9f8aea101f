"""DDPM's CIFAR-10 U-Net beside diffusers': a training step, and a sample by DDIM in 25 steps, on a CPU in float32.

    python experiments/benchmarks/diffusion.py [ROUNDS] [training|sampling]

A training step is forward, backward and Adam on 4 images of 32 x 32, without dropout on both sides. Ours is timed as it
is trained: two steps in one program. Sampling draws 2 images by 25 calls of the network, ours as one program.
"""

import sys
from collections.abc import Callable

import jax
import numpy as np
from _table import compare, publish, table

import arch_jax
from arch_jax.train.state import initial_state
from arch_jax.train.step import make_program

BATCH, STEPS, SAMPLES, CALLS = 4, 2, 2, 25


def model():
    """The network with 35,746,307 parameters."""
    return arch_jax.create("ddpm-cifar10", dropout=0.0)


def our_training() -> Callable[[], None]:
    """Two steps of the train program."""
    it = arch_jax.Experiment(
        model(),
        arch_jax.objective("diffusion"),
        data=None,
        optimizer=arch_jax.Optimizer("adam", learning_rate=1e-4, clip=None),
        steps=STEPS,
    )
    one = {"images": np.random.default_rng(0).uniform(-1, 1, (BATCH, 32, 32, 3)).astype(np.float32)}
    state = jax.jit(lambda b: initial_state(it, b))(one)
    stacked = jax.tree.map(lambda x: np.stack([x] * STEPS), one)
    program = jax.jit(make_program(it), donate_argnums=0).lower(state, stacked, np.int32(STEPS)).compile()

    def run():
        nonlocal state
        state, metrics = program(state, stacked, np.int32(STEPS))
        jax.block_until_ready(metrics)

    return run


def our_sampling() -> Callable[[], None]:
    """25 steps of DDIM."""
    task = arch_jax.objective("diffusion").with_model(model())
    variables = jax.jit(lambda k: task.init(k, {"images": np.zeros((1, 32, 32, 3), np.float32)}))(jax.random.key(0))
    sampler = arch_jax.DDIM(steps=CALLS, spacing="leading")
    return lambda: sampler.draw(task, variables, jax.random.key(0), SAMPLES)


def their_model():
    """diffusers' network of the same configuration."""
    import torch
    from diffusers import UNet2DModel

    torch.set_flush_denormal(True)
    down = ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"]
    return UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=down,
        up_block_types=[name.replace("Down", "Up") for name in reversed(down)],
        layers_per_block=2,
        attention_head_dim=None,
        freq_shift=1,
        flip_sin_to_cos=False,
        downsample_padding=0,
        norm_eps=1e-6,
    )


def their_training(compiled: bool) -> Callable[[], None]:
    """Two steps in PyTorch."""
    import torch

    network = their_model().train()
    call = torch.compile(network) if compiled else network
    images = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (BATCH, 3, 32, 32)).astype(np.float32))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)

    def run():
        for _ in range(STEPS):
            noise, times = torch.randn_like(images), torch.randint(0, 1000, (BATCH,))
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(call(images + noise, times).sample, noise).backward()
            optimizer.step()

    return run


def their_sampling() -> Callable[[], None]:
    """The pipeline's loop."""
    import torch
    from diffusers import DDIMScheduler

    network, scheduler = their_model().eval(), DDIMScheduler()
    scheduler.set_timesteps(CALLS)

    def run():
        x = torch.randn(SAMPLES, 3, 32, 32)
        with torch.no_grad():
            for time in scheduler.timesteps:
                x = scheduler.step(network(x, time).sample, time, x).prev_sample

    return run


def main() -> None:
    """Both tables."""
    words = sys.argv[1:]
    rounds = int(words.pop(0)) if words and words[0].isdigit() else 5
    texts = []
    if "sampling" not in words:
        contenders = {
            "diffusers": their_training(False),
            "diffusers, torch.compile": their_training(True),
            "arch_jax": our_training(),
        }
        title = f"DDPM's CIFAR-10 U-Net, training step, {BATCH} x 32 x 32, float32, 2 threads"
        texts.append(table(title, compare(contenders, rounds), STEPS, "milliseconds a step", "diffusers"))
    if "training" not in words:
        contenders = {"diffusers": their_sampling(), "arch_jax": our_sampling()}
        title = f"DDPM's CIFAR-10 U-Net, {SAMPLES} samples by DDIM in {CALLS} steps, float32, 2 threads"
        texts.append(table(title, compare(contenders, rounds), 1, "milliseconds", "diffusers"))
    text = "\n\n".join(texts)
    if words:
        print(text)
    else:
        publish("diffusion", text)


if __name__ == "__main__":
    main()
