"""BERT-base forward against transformers' BERT in PyTorch on the same weights, side by side.

    python experiments/benchmarks/bert.py [ROUNDS]

8 x 128 tokens, float32, no padding, evaluation, as many threads as there are cores. The outputs are compared first.
"""

import sys
import tempfile

import jax
import numpy as np
from _table import compare, publish, table

import arch_jax

BATCH, LENGTH = 8, 128


def main() -> None:
    """Prints and stores the table."""
    import torch
    import transformers

    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    model = transformers.BertModel(transformers.BertConfig()).eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        module, variables = arch_jax.load_pretrained(folder)
    tokens = np.random.default_rng(0).integers(0, 30_522, (BATCH, LENGTH))
    apart, layers = module.unrolled(variables)
    weights = {"arch_jax, scanned layers": variables, "arch_jax, unrolled layers": layers}
    modules = dict(zip(weights, (module, apart)))
    ids = tokens.astype(np.int32)
    forward = {name: jax.jit(modules[name].apply).lower(weights[name], ids).compile() for name in weights}
    inputs = torch.from_numpy(tokens)

    def theirs(run):
        def once():
            with torch.no_grad():
                return run(inputs).last_hidden_state

        return once

    def ours(name):
        return lambda: jax.block_until_ready(forward[name](weights[name], ids)["hidden"])

    contenders = {"transformers, eager": theirs(model), "transformers, torch.compile": theirs(torch.compile(model))}
    expected = contenders["transformers, eager"]().numpy()
    contenders |= {name: ours(name) for name in forward}
    for name in forward:
        print(f"{name}: largest difference {np.abs(np.asarray(contenders[name]()) - expected).max():.1e}")
    title = f"BERT-base forward, {BATCH} x {LENGTH} tokens, float32"
    publish("bert", table(title, compare(contenders, rounds), 1, "milliseconds a forward pass", "transformers, eager"))


if __name__ == "__main__":
    main()
