"""Time a token while decoding, by how many tokens there were before: flat for a state of fixed size.

    python experiments/benchmarks/decoding_recurrent.py [ROUNDS [LONGEST [MIXER ...]]]

A decoder of 2 layers, width 64, batch 1, with each causal mixer; its compiled step, which takes a token and a state to
logits and the next state, called 32 times from the state behind 0, 1,024, 4,096 and 16,384 tokens. Positions take
turns; the least time of all rounds counts. Caches of attention, and what Hyena keeps, have room for as many tokens as
there are, and so grow. The table is stored only if it has every mixer.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from _table import publish, versions

from arch_jax import fields
from arch_jax.errors import UsageError
from arch_jax.experiment import import_components
from arch_jax.layers.transformer.decoder import Decoder

WIDTH, DEPTH, VOCABULARY, STEPS, CHUNK = 64, 2, 256, 32, 1024
BEFORE = (0, 1024, 4096, 16384)
SETTINGS = {
    "attention": {"heads": 4},
    "latent_attention": {"heads": 4},
    "linear_attention": {"heads": 4},
    "performer": {"heads": 4},
    "retention": {"heads": 4},
    "hyena": {"length": BEFORE[-1] + STEPS},
    "rwkv7": {"head_size": 16},
    "mamba2": {"head_size": 32, "state": 32},
}


def model_with(name: str) -> Decoder | None:
    """The decoder with a mixer of this name; None if that has no state."""
    mixer = fields.override(fields.components("mixer")[name](), SETTINGS.get(name, {}))
    try:
        mixer.initial_state(1, 1, WIDTH, jnp.float32)
    except UsageError:
        return None
    return Decoder(VOCABULARY, DEPTH, WIDTH, mixer=mixer, feed_forward=None, scan=False)


def after(model: Decoder, variables, tokens: int):
    """The state behind this many tokens, with room for the steps that follow."""
    state = jax.jit(lambda: model.initial_state(1, tokens + STEPS))()
    read = jax.jit(lambda variables, part, state: model.apply(variables, part, None, state)[1])
    stream = np.random.default_rng(0).integers(0, VOCABULARY, (1, tokens)).astype(np.int32)
    for start in range(0, tokens, CHUNK):
        state = read(variables, stream[:, start : start + CHUNK], state)
    return jax.block_until_ready(state)


class Decoding:
    """The steps of a model from one state on."""

    def __init__(self, model: Decoder, variables, step, tokens: int):
        self.variables, self.step, self.state = variables, step, after(model, variables, tokens)
        self.bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.state))
        self.least = float("inf")
        self.token = jnp.ones((1, 1), jnp.int32)
        assert bool(jnp.all(jnp.isfinite(self.run())))

    def run(self):
        """Decodes `STEPS` tokens, and returns the last one's logits."""
        state = jax.block_until_ready(jax.tree.map(jnp.copy, self.state))  # a step takes its state's memory
        started = time.perf_counter()
        for _ in range(STEPS):
            logits, state = self.step(self.variables, self.token, state)
        jax.block_until_ready(logits)
        self.least = min(self.least, (time.perf_counter() - started) / STEPS)
        return logits


def row(name: str, model: Decoder, rounds: int, longest: int) -> tuple[str, dict[int, dict[str, float]]]:
    """The line of one mixer, and its times and sizes by how many tokens came before."""
    variables = jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 4), jnp.int32))
    step = jax.jit(lambda variables, token, state: model.apply(variables, token, None, state), donate_argnums=2)
    places = [Decoding(model, variables, step, tokens) for tokens in BEFORE if tokens <= longest]
    for place in places:
        place.least = float("inf")  # the first run compiled
    for _ in range(rounds):
        for place in places:
            place.run()
    times = "".join(f"{1000 * place.least:9.3f}" for place in places) + " " * 9 * (len(BEFORE) - len(places))
    ratio = places[-1].least / places[0].least
    found = {
        n: {"milliseconds": round(1000 * p.least, 3), "KiB": round(p.bytes / 1024, 1)} for n, p in zip(BEFORE, places)
    }
    return f"{name:17}{times}{ratio:14.2f}{places[0].bytes / 1024:10.1f}{places[-1].bytes / 1024:10.1f}", found


def main() -> None:
    """Prints the table, and stores it where it is whole."""
    import_components()
    every = sorted(name for name in fields.components("mixer") if not name.endswith("_channel"))
    numbers = [int(x) for x in sys.argv[1:] if x.isdigit()]
    names = [x for x in sys.argv[1:] if not x.isdigit()] or every
    rounds, longest = (*numbers, *(10, BEFORE[-1])[len(numbers) :])
    columns = "".join(f"{n:9}" for n in BEFORE)
    lines = [
        f"# decoding, {DEPTH} layers, width {WIDTH}, batch 1, float32, {jax.devices()[0].device_kind}, least of "
        f"{rounds} rounds of {STEPS} tokens, {versions()}",
        f"{'':17}{'milliseconds a token, behind':>36}{'the last to':>14}{'state, KiB, behind':>20}",
        f"{'':17}{columns}{'the first':>14}{BEFORE[0]:10}{min(longest, BEFORE[-1]):10}",
    ]
    found = {}
    for name in names:
        model = model_with(name)
        if model is None:
            continue
        line, found[name] = row(name, model, rounds, longest)
        lines.append(line)
        print(lines[-1], file=sys.stderr, flush=True)
    if names == every:
        publish("decoding_recurrent", "\n".join(lines), found)
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
