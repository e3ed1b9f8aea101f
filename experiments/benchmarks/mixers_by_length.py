"""Every sequence mixer by length: time, memory and compilation of one layer, and by what power of the length they grow.

    python experiments/benchmarks/mixers_by_length.py [ROUNDS [LONGEST [MIXER ...]]]
    ARCH_JAX_LIBTPU=FOLDER python experiments/benchmarks/mixers_by_length.py --v5e [LENGTH [MIXER ...]]

One layer of width 64, batch 1, float32, defaults but for the heads; forward + backward (gradients in the parameters and
in x) under jit, at 1,024, 4,096, 16,384 and 65,536 tokens; attention, which is quadratic, up to 4,096. Slopes are of a
line through the logarithms; "work" is the processors' time, which others on the machine hardly change, over all lengths
and from 4,096 tokens on.

The second command asks the real TPU compiler (libtpu, which needs no TPU) for the temporaries on one v5e chip;
ARCH_JAX_LIBTPU is the folder that holds it, where it is not installed. Tables are stored only if they have every mixer.
"""

import functools
import sys
import time

if "--v5e" in sys.argv:  # sets what libtpu reads, before JAX is imported
    import flash_tpu

import jax
import jax.numpy as jnp
import numpy as np
from _table import publish, versions

from arch_jax import fields
from arch_jax.experiment import import_components

V5E = "--v5e" in sys.argv
WIDTH = 64
LENGTHS = (1024, 4096, 16384, 65536)
#: The longest sequence that is asked of what is quadratic in it.
QUADRATIC = 4096
LONGEST = {"attention": QUADRATIC, "latent_attention": QUADRATIC}
SETTINGS = {
    "attention": {"heads": 4},
    "latent_attention": {"heads": 4},
    "linear_attention": {"heads": 4},
    "linformer": {"heads": 4},
    "performer": {"heads": 4},
    "retention": {"heads": 4},
    "rwkv7": {"head_size": 16},
    "mamba2": {"head_size": 32, "state": 32},
}


def mixer_for(name: str, length: int):
    """A mixer by name, able to take sequences of this length."""
    mixer = fields.override(fields.components("mixer")[name](), SETTINGS.get(name, {}))
    return mixer.clone(length=length) if name in ("hyena", "linformer") else mixer


def both_passes(mixer):
    """(variables, x) -> gradients of a loss in both."""
    return jax.grad(lambda variables, x: jnp.sum(jnp.square(mixer.apply(variables, x)[0])), (0, 1))


def shapes(mixer, length: int):
    """The variables' shapes and that of x."""
    x = jax.ShapeDtypeStruct((1, length, WIDTH), jnp.float32)
    return jax.eval_shape(mixer.init, jax.random.key(0), x), x


@functools.cache
def variables_of(mixer):
    """A mixer's parameters, which no length changes that is not a setting."""
    return jax.jit(mixer.init)(jax.random.key(0), jnp.zeros((1, 16, WIDTH)))


class Program:
    """One mixer at one length, compiled, with something to run it on.

    Attributes:
      compile_seconds: what it took to compile.
      memory: bytes of temporaries.
      least: seconds, the least of all runs.
      least_work: seconds of processors, the least of all runs; another process on them does not change it.
    """

    def __init__(self, name: str, length: int):
        mixer = mixer_for(name, length)
        started = time.perf_counter()
        self.program = jax.jit(both_passes(mixer)).lower(*shapes(mixer, length)).compile()
        self.compile_seconds = time.perf_counter() - started
        self.memory = self.program.memory_analysis().temp_size_in_bytes
        self.length, self.least, self.least_work = length, float("inf"), float("inf")
        x = np.random.default_rng(0).normal(size=(1, length, WIDTH))
        self.given = (variables_of(mixer), jnp.asarray(x, jnp.float32))
        found = self.run()
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(found)), name

    def run(self):
        """The gradients, timed."""
        started, worked = time.perf_counter(), time.process_time()
        found = jax.block_until_ready(self.program(*self.given))
        self.least = min(self.least, time.perf_counter() - started)
        self.least_work = min(self.least_work, time.process_time() - worked)
        return found

    def round(self) -> None:
        """What is short is run more often."""
        for _ in range(max(1, LENGTHS[2] // self.length)):
            self.run()


def slope(lengths: list[int], values: list[float]) -> str:
    """The power of the length by which the values grow."""
    return f"{np.polyfit(np.log(lengths), np.log(values), 1)[0]:.2f}" if len(lengths) > 1 else ""


def row(name: str, rounds: int, longest: int) -> tuple[str, dict[int, dict[str, float]]]:
    """The line of one mixer, and its times and sizes by length.

    Lengths take turns, so that a drifting machine drifts for all.
    """
    lengths = [n for n in LENGTHS if n <= min(longest, LONGEST.get(name, longest))]
    programs = [Program(name, n) for n in lengths]
    for _ in range(rounds):
        for program in programs:
            program.round()
    times, sizes = [p.least * 1000 for p in programs], [p.memory / 2**20 for p in programs]
    empty = [""] * (len(LENGTHS) - len(lengths))
    cells = "".join(f"{x:>9}" for x in [f"{ms:.1f}" for ms in times] + empty)
    cells += "".join(f"{x:>8}" for x in [f"{mb:.1f}" for mb in sizes] + empty)
    work = [p.least_work for p in programs]
    slopes = (slope(lengths, times), slope(lengths, work), slope(lengths[1:], work[1:]), slope(lengths, sizes))
    line = f"{name:17}{cells}{max(p.compile_seconds for p in programs):8.2f}" + "".join(f"{x:>8}" for x in slopes)
    found = {n: {"milliseconds": round(ms, 1), "MiB": round(mb, 1)} for n, ms, mb in zip(lengths, times, sizes)}
    return line.rstrip(), found


def by_length(names: list[str], rounds: int, longest: int) -> tuple[str, dict[str, dict[int, dict[str, float]]]]:
    """The table of times, as text and as numbers."""
    heads = "".join(f"{n // 1024:>8}k" for n in LENGTHS) + "".join(f"{n // 1024:>7}k" for n in LENGTHS)
    lines = [
        f"# mixers by length, one layer, width {WIDTH}, batch 1, forward + backward, float32, "
        f"{jax.devices()[0].device_kind}, least of {rounds} rounds, {versions()}",
        f"{'':17}{'milliseconds':>36}{'temporaries, MiB':>32}{'compile':>8}{'slopes of':>32}",
        f"{'':17}{heads}{'s':>8}{'time':>8}{'work':>8}{'4k on':>8}{'memory':>8}",
    ]
    found = {}
    for name in names:
        line, found[name] = row(name, rounds, longest)
        lines.append(line)
        print(line, file=sys.stderr, flush=True)
    return "\n".join(lines), found


def on_v5e(names: list[str], length: int) -> str:
    """The table of temporaries on a TPU."""
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    device = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices[0]
    place = lambda shape: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=SingleDeviceSharding(device))
    lines = [
        f"# mixers at {length} tokens, one layer, width {WIDTH}, batch 1, forward + backward, float32, one v5e chip, "
        "by its compiler",
        f"# {versions()}",
        f"{'':17}{'arguments MiB':>15}{'temporaries MiB':>17}{'compile s':>11}",
    ]
    for name in names:
        mixer = mixer_for(name, length)
        started = time.perf_counter()
        lower = lambda mixer: jax.jit(both_passes(mixer)).lower(*jax.tree.map(place, shapes(mixer, length)))
        arguments, temporaries = flash_tpu.memory(lower, mixer)
        lines.append(f"{name:17}{arguments:>15}{temporaries:>17}{time.perf_counter() - started:11.1f}")
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def main() -> None:
    """Prints the table, and stores it where it is whole."""
    import_components()
    every = sorted(fields.components("mixer"))
    given = [argument for argument in sys.argv[1:] if argument != "--v5e"]
    numbers, names = [int(x) for x in given if x.isdigit()], [x for x in given if not x.isdigit()] or every
    if V5E:
        text, rows, stored = on_v5e(names, *(numbers or [LENGTHS[2]])), None, "mixers-v5e-compiled"
    else:
        rounds, longest = (*numbers, *(3, LENGTHS[-1])[len(numbers) :])
        (text, rows), stored = by_length(names, rounds, longest), "mixers_by_length"
    if names == every:
        publish(stored, text, rows)
    else:
        print(text)


if __name__ == "__main__":
    main()
