"""A GPT-2 training step against transformers' GPT-2 in PyTorch, eager and compiled, side by side.

    python experiments/benchmarks/train_step.py [ROUNDS]

Width 256, depth 6, 8 heads, vocabulary 256, 8 x 256 tokens, float32, AdamW, as many threads as there are cores.
"""

import sys

import jax
import numpy as np
from _table import compare, publish, table

from arch_jax import Experiment, Optimizer, Text, create, objective, train

WIDTH, DEPTH, HEADS, VOCABULARY, BATCH, LENGTH, STEPS = 256, 6, 8, 256, 8, 256, 3


def ours(scan: bool):
    """Takes `STEPS` steps with the train loop's own program."""
    sizes = {"vocabulary": VOCABULARY, "depth": DEPTH, "width": WIDTH, "mixer.heads": HEADS, "position.length": LENGTH}
    experiment = Experiment(
        model=create("gpt2", scan=scan, **sizes),
        objective=objective("next_token"),
        data=Text(length=LENGTH, batch=BATCH),
        optimizer=Optimizer("adamw", 1e-4, clip=None),
    )
    stream = np.random.default_rng(0).integers(0, VOCABULARY, (STEPS, BATCH, LENGTH + 1)).astype(np.int32)
    batches = {"tokens": stream[..., :-1], "targets": stream[..., 1:], "weights": np.ones((STEPS, BATCH, LENGTH), "f4")}
    state = jax.jit(lambda b: train.initial_state(experiment, b))(jax.tree.map(lambda x: x[0], batches))
    program = jax.jit(train.make_program(experiment), donate_argnums=0)

    def run():
        nonlocal state
        state, metrics = program(state, batches, np.int32(STEPS))
        jax.block_until_ready(metrics)

    return run


def theirs(compiled: bool):
    """Takes `STEPS` steps with transformers' GPT2LMHeadModel and torch's AdamW."""
    import torch
    import transformers

    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_layer=DEPTH, n_embd=WIDTH, n_head=HEADS, n_positions=LENGTH,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    forward = torch.compile(model) if compiled else model
    tokens = torch.randint(0, VOCABULARY, (STEPS, BATCH, LENGTH + 1))

    def run():
        for batch in tokens:
            logits = forward(batch[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def main() -> None:
    """Prints and stores the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    contenders = {
        "transformers, eager": theirs(False),
        "transformers, torch.compile": theirs(True),
        "arch_jax, scanned layers": ours(True),
        "arch_jax, unrolled layers": ours(False),
    }
    title = f"GPT-2 training step, width {WIDTH}, depth {DEPTH}, {HEADS} heads, {BATCH} x {LENGTH} tokens, float32"
    publish(
        "train_step", table(title, compare(contenders, rounds), STEPS, "milliseconds a step", "transformers, eager")
    )


if __name__ == "__main__":
    main()
