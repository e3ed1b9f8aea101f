"""Training ResNet-50 and ViT-B/16 on a GPU in bfloat16: pictures a second, beside PyTorch.

    python experiments/benchmarks/pictures_gpu.py [ROUNDS [BATCH]]
    python experiments/benchmarks/pictures_gpu.py --tiny         on any machine: shows that it works, measures nothing

128 pictures of 224 x 224; forward, backward and the optimizer (SGD with momentum for ResNet-50, AdamW for ViT-B/16),
parameters in float32 and computed in bfloat16. Ours are timed as they are trained, ten steps in one program. PyTorch's
are transformers' classes under autocast, channels last in memory, as they are and with torch.compile; without PyTorch
ours are timed alone. "Of the peak" counts the FLOPs of our matrix products and convolutions.
"""

import sys
import time
from collections.abc import Callable

import jax
import numpy as np
from _table import publish, versions

import arch_jax
from arch_jax.flops import count_flops
from arch_jax.plan.chips import A100, H100, H200
from arch_jax.train.state import initial_state
from arch_jax.train.step import make_program, make_step

TINY = "--tiny" in sys.argv
SIDE, STEPS, CLASSES = (32, 2, 5) if TINY else (224, 10, 1000)
#: Registered name -> optimizer, tiny settings of ours, transformers' class, and its settings in both sizes.
NETWORKS = {
    "resnet-50": (
        "sgd",
        {"blocks": (1, 1), "width": 4},
        "ResNet",
        {"layer_type": "bottleneck"},
        {"layer_type": "bottleneck", "embedding_size": 4, "hidden_sizes": [16, 32], "depths": [1, 1]},
    ),
    "vit-base-16": (
        "adamw",
        {"resolution": SIDE, "depth": 2, "width": 16, "mixer.heads": 2},
        "ViT",
        {},
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
         "image_size": SIDE},
    ),
}  # fmt: skip


def pictures(batch: int) -> dict[str, np.ndarray]:
    """Random pictures with labels."""
    draw = np.random.default_rng(0)
    return {
        "images": draw.normal(size=(batch, SIDE, SIDE, 3)).astype(np.float32),
        "labels": draw.integers(0, CLASSES, batch, dtype=np.int32),
        "weights": np.ones(batch, np.float32),
    }


def ours(name: str, batch: int) -> tuple[Callable[[], None], int]:
    """The train program of `STEPS` steps, and the FLOPs of one."""
    optimizer, tiny, *_ = NETWORKS[name]
    model = arch_jax.create(name, dtype="bfloat16", classes=CLASSES, **(tiny if TINY else {}))
    task, optimizer = arch_jax.objective("classify"), arch_jax.Optimizer(optimizer, learning_rate=1e-3)
    it = arch_jax.Experiment(model, task, data=None, optimizer=optimizer, steps=STEPS)
    one = pictures(batch)
    state = jax.jit(lambda b: initial_state(it, b))(one)
    flops = count_flops(make_step(it), state, one).products
    stacked = jax.device_put(jax.tree.map(lambda x: np.stack([x] * STEPS), one))
    program = jax.jit(make_program(it), donate_argnums=0).lower(state, stacked, np.int32(STEPS)).compile()

    def run():
        nonlocal state
        state, metrics = program(state, stacked, np.int32(STEPS))
        jax.block_until_ready(metrics)

    return run, flops


def theirs(name: str, batch: int, compiled: bool) -> Callable[[], None]:
    """The same in PyTorch."""
    import torch
    import transformers

    optimizer, _, kind, full, tiny = NETWORKS[name]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = getattr(transformers, f"{kind}Config")(num_labels=CLASSES, **(tiny if TINY else full))
    model = getattr(transformers, f"{kind}ForImageClassification")(config)
    model = model.train().to(device, memory_format=torch.channels_last)
    forward = torch.compile(model) if compiled else model
    make = {"sgd": lambda p: torch.optim.SGD(p, 1e-3, momentum=0.9), "adamw": lambda p: torch.optim.AdamW(p, 1e-3)}
    optimizer, one = make[optimizer](model.parameters()), pictures(batch)
    images = torch.from_numpy(one["images"]).permute(0, 3, 1, 2).to(device)  # a view: channels stay last in memory
    labels = torch.from_numpy(one["labels"].astype(np.int64)).to(device)

    def run():
        for _ in range(STEPS):
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16):
                logits = forward(images).logits
            torch.nn.functional.cross_entropy(logits.float(), labels).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def least(run: Callable[[], None], rounds: int) -> float:
    """Seconds, the least of the rounds behind one that warms up."""
    run()
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def peak() -> float | None:
    """FLOP/s of the device in bfloat16; none where it is not known."""
    kind = jax.devices()[0].device_kind
    return next((chip.bfloat16 for chip in (H100, H200, A100) if chip.name.split()[0] in kind), None)


def with_pytorch() -> bool:
    """Whether PyTorch can be compared with; says so where it can't."""
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as problem:
        print(f"PyTorch is left out: {problem}", file=sys.stderr)
        return False
    if not TINY and not torch.cuda.is_available():
        print("PyTorch is left out: it has no GPU here", file=sys.stderr)
        return False
    return True


def main() -> None:
    """Prints and stores the table."""
    if jax.default_backend() != "gpu" and not TINY:
        print("There is no GPU here: nothing is measured (--tiny shows on any machine that the script works).")
        return
    numbers = [int(argument) for argument in sys.argv[1:] if argument.isdigit()]
    rounds, batch = (*numbers, *((1, 2) if TINY else (5, 128))[len(numbers) :])
    lines = [
        f"# a training step, {batch} x {SIDE} x {SIDE}, bfloat16, {jax.devices()[0].device_kind}, least of {rounds} "
        f"rounds, {versions()}",
        f"{'':14}{'':24}{'ms a step':>11}{'pictures/s':>12}{'of the peak':>13}",
    ]
    compare_with = with_pytorch()
    for name in NETWORKS:
        run, flops = ours(name, batch)
        contenders = {"arch_jax": lambda run=run: run}
        if compare_with:
            contenders["PyTorch"] = lambda name=name: theirs(name, batch, False)
        if compare_with and not TINY:
            contenders["PyTorch, torch.compile"] = lambda name=name: theirs(name, batch, True)
        for label, make in contenders.items():  # made one by one: memory of one contender at a time
            seconds = least(make(), rounds) / STEPS
            share = f"{flops / seconds / peak():.1%}" if peak() else ""
            lines.append(f"{name:14}{label:24}{1000 * seconds:11.2f}{batch / seconds:12.0f}{share:>13}")
            print(lines[-1], file=sys.stderr, flush=True)
    if TINY:
        print("\n".join(lines))
    else:
        publish("pictures_gpu", "\n".join(lines))


if __name__ == "__main__":
    main()
