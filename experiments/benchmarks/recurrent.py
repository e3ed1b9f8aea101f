"""Recurrent networks against the implementations that their users have in PyTorch, forward + backward, side by side.

    python experiments/benchmarks/recurrent.py [ROUNDS [TOKENS]]

Mamba, RWKV-4 and xLSTM as language models (vocabulary 256, width 128, 4 x TOKENS tokens, 256 by default) against
transformers and the package `xlstm`, and two bare LSTM layers of 256 cells (16 x TOKENS steps) against torch.nn.LSTM:
the mean loss and its gradient in every parameter, float32, on two threads. Weights need not be equal here; tests/parity
holds that equal ones give equal numbers. Beside RWKV-4 stand its matrix products alone, which bound how fast it can be.
"""

import sys
from collections.abc import Callable
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from _table import compare, publish, table

from arch_jax import create
from arch_jax.layers.mixers.rnn.lstm import LSTM
from arch_jax.models.emerging.xlstm import xlstm_decoder
from arch_jax.ops.losses import cross_entropy

VOCABULARY, WIDTH, BATCH, HEADS = 256, 128, 4, 4
CELLS, ROWS = 256, 16
THREADS = 2


def stream(length: int) -> np.ndarray:
    """Random tokens, one more a row than are read."""
    return np.random.default_rng(0).integers(0, VOCABULARY, (BATCH, length + 1)).astype(np.int32)


def ours(model, length: int) -> Callable[[], None]:
    """Loss and gradients of a language model, compiled."""
    tokens = stream(length)
    variables = jax.jit(model.init)(jax.random.key(0), tokens[:, :-1])
    loss = lambda variables: jnp.mean(cross_entropy(model.apply(variables, tokens[:, :-1]), tokens[:, 1:]))
    return compiled(loss, variables)


def compiled(loss: Callable, variables) -> Callable[[], None]:
    """One evaluation of a loss and its gradient; checks that all numbers of the first are finite."""
    step = jax.jit(jax.value_and_grad(loss)).lower(variables).compile()
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(step(variables)))
    return lambda: jax.block_until_ready(step(variables))


def theirs(model, logits_of: Callable, length: int) -> Callable[[], None]:
    """The same of a PyTorch model."""
    import torch

    tokens = torch.from_numpy(stream(length).astype(np.int64))

    def loss():
        logits = logits_of(model(tokens[:, :-1]))
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    return backpropagated(model, loss)


def backpropagated(model, loss: Callable) -> Callable[[], None]:
    """One evaluation of a loss and its gradient in PyTorch; checks that all numbers of the first are finite."""
    import torch

    torch.set_num_threads(THREADS)

    def run():
        model.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        return value

    assert torch.isfinite(run())
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)
    return run


def mamba(length: int) -> dict[str, Callable]:
    """Two layers of Mamba."""
    import transformers

    config = transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, use_cache=False)
    return {
        "transformers": theirs(transformers.MambaForCausalLM(config).train(), lambda out: out.logits, length),
        "arch_jax": ours(create("mamba-130m", vocabulary=VOCABULARY, depth=2, width=WIDTH), length),
    }


def rwkv4(length: int) -> dict[str, Callable]:
    """Two layers of RWKV-4, each time mixing and channel mixing."""
    import transformers

    config = transformers.RwkvConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, context_length=length, use_cache=False
    )
    return {
        "transformers": theirs(transformers.RwkvForCausalLM(config).train(), lambda out: out.logits, length),
        "arch_jax": ours(create("rwkv4-169m", vocabulary=VOCABULARY, depth=4, width=WIDTH), length),
        "its products alone": rwkv4_products(length),
    }


def rwkv4_products(length: int) -> Callable[[], None]:
    """The matrix products of two layers of RWKV-4 and its logits, one behind the other: what no recurrence can save."""
    between = ([WIDTH] * 5 + [4 * WIDTH, WIDTH]) * 2  # r, k, v, the output, and the other r; then k and v
    sizes = [WIDTH, *between, VOCABULARY]
    x = jax.random.normal(jax.random.key(0), (BATCH * length, WIDTH))
    weights = [jax.random.normal(jax.random.key(i), pair) * pair[0] ** -0.5 for i, pair in enumerate(pairwise(sizes))]

    def loss(weights):
        y = x
        for weight in weights:
            y = y @ weight
        return jnp.mean(jnp.square(y))

    return compiled(loss, weights)


def xlstm(kinds: str) -> Callable[[int], dict[str, Callable]]:
    """Blocks of mLSTM and sLSTM ("m" and "s") in this order."""

    def contenders(length: int) -> dict[str, Callable]:
        import xlstm as package

        at = [i for i, kind in enumerate(kinds) if kind == "s"]
        slstm = package.sLSTMBlockConfig(
            package.sLSTMLayerConfig(backend="vanilla", num_heads=HEADS), package.FeedForwardConfig(proj_factor=1.3)
        )
        config = package.xLSTMLMModelConfig(
            mlstm_block=package.mLSTMBlockConfig(package.mLSTMLayerConfig(num_heads=HEADS)),
            slstm_block=slstm if at else None, slstm_at=at, context_length=length,
            num_blocks=len(kinds), embedding_dim=WIDTH, vocab_size=VOCABULARY,
        )  # fmt: skip
        model = package.xLSTMLMModel(config)
        model.reset_parameters()
        return {
            "xlstm": theirs(model.train(), lambda logits: logits, length),
            "arch_jax": ours(our_xlstm(kinds), length),
        }

    return contenders


def our_xlstm(kinds: str):
    """The same blocks as a decoder of ours."""
    at = tuple(i for i, kind in enumerate(kinds) if kind == "s")
    return xlstm_decoder(depth=len(kinds), width=WIDTH, slstm_at=at).clone(vocabulary=VOCABULARY)


def lstm(length: int) -> dict[str, Callable]:
    """Two LSTM layers. PyTorch gets time first, as it prefers."""
    import torch

    model = torch.nn.LSTM(CELLS, CELLS, num_layers=2)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(length, ROWS, CELLS)).astype(np.float32))
    return {
        "torch.nn.LSTM": backpropagated(model, lambda: model(x)[0].square().mean()),
        "arch_jax": our_lstm(length),
    }


def our_lstm(length: int) -> Callable[[], None]:
    """The same two layers, without residual paths or norms."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(ROWS, length, CELLS)), jnp.float32)
    layer = LSTM()

    def loss(variables):
        y = x
        for each in variables:
            y, _ = layer.apply(each, y)
        return jnp.mean(jnp.square(y))

    return compiled(loss, [jax.jit(layer.init)(jax.random.key(i), x) for i in range(2)])


#: Title -> (its contenders by length, what we have where the other package is missing).
CASES = {
    "Mamba, 2 layers": (mamba, lambda n: ours(create("mamba-130m", vocabulary=VOCABULARY, depth=2, width=WIDTH), n)),
    "RWKV-4, 2 layers": (rwkv4, lambda n: ours(create("rwkv4-169m", vocabulary=VOCABULARY, depth=4, width=WIDTH), n)),
    "xLSTM, an mLSTM and an sLSTM block": (xlstm("ms"), lambda n: ours(our_xlstm("ms"), n)),
    "xLSTM, two mLSTM blocks": (xlstm("mm"), lambda n: ours(our_xlstm("mm"), n)),
    "LSTM, 2 layers": (lstm, our_lstm),
}


def sizes(name: str, length: int) -> str:
    """What a case is computed on."""
    lstm = name.startswith("LSTM")
    return f"{CELLS} cells, {ROWS} x {length} steps" if lstm else f"width {WIDTH}, {BATCH} x {length} tokens"


def main() -> None:
    """Prints and stores the tables."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    length = int(sys.argv[2]) if len(sys.argv) > 2 else 256
    texts = []
    for name, (contenders, alone) in CASES.items():
        title = f"{name}, {sizes(name, length)}, forward + backward, float32, {THREADS} threads"
        try:
            found = contenders(length)
        except ImportError as problem:
            title += f" ({problem.name} is not installed: ours alone)"
            found = {"arch_jax": alone(length)}
        texts.append(table(title, compare(found, rounds), 1, "milliseconds", next(iter(found))))
    publish("recurrent", "\n\n".join(texts))


if __name__ == "__main__":
    main()
