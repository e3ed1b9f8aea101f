"""Decoding with GPT-2 against transformers' `generate`, side by side: batch 1, 256 new tokens, greedy.

python experiments/benchmarks/decoding.py [ROUNDS]
"""

import sys

import jax
import numpy as np
from _table import compare, publish, table

from arch_jax import create, generate

WIDTH, DEPTH, HEADS, VOCABULARY, PROMPT, NEW = 256, 6, 8, 256, 16, 256


def ours():
    """Generates with the cache of each layer apart, in one compiled loop."""
    sizes = {"vocabulary": VOCABULARY, "depth": DEPTH, "width": WIDTH, "mixer.heads": HEADS}
    model = create("gpt2", **sizes, **{"position.length": PROMPT + NEW})
    prompt = np.arange(PROMPT, dtype=np.int32)[None]
    variables = jax.jit(model.init)(jax.random.key(0), prompt)
    return lambda: jax.block_until_ready(generate(model, variables, prompt, NEW, temperature=0))


def theirs():
    """Generates with transformers, its key-value cache on."""
    import torch
    import transformers

    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_layer=DEPTH, n_embd=WIDTH, n_head=HEADS, n_positions=PROMPT + NEW,
        bos_token_id=0, eos_token_id=None,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    prompt = torch.arange(PROMPT)[None]
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}

    def run():
        with torch.no_grad():
            assert model.generate(prompt, **options).shape[1] == PROMPT + NEW

    return run


def main() -> None:
    """Prints and stores the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    times = compare({"transformers generate": theirs(), "arch_jax generate": ours()}, rounds)
    title = f"GPT-2 decoding, width {WIDTH}, depth {DEPTH}, batch 1, {NEW} new tokens, float32"
    publish("decoding", table(title, times, NEW, "milliseconds a token", "transformers generate"))


if __name__ == "__main__":
    main()
