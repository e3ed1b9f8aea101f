"""What the selective scan's gradient keeps: never the states of all tokens. By the compilers of a CPU and a TPU v5e.

    [ARCH_JAX_LIBTPU=FOLDER] python experiments/benchmarks/selective_scan_memory.py [TIME]

Batch 4, width 512, state 16, float32; TIME is 4,096. Nothing is run: a program's temporaries are what the compiler
counts, and the largest array is looked for in the text of the optimised program. The form "recurrent", which JAX
differentiates, is the one that keeps the states, for comparison. TPU rows need libtpu (ARCH_JAX_LIBTPU is its folder
where it is not installed) and a process of its own, which `--v5e` is for.
"""

import json
import math
import os
import re
import subprocess
import sys
from importlib.util import find_spec

if "--v5e" in sys.argv:  # sets what libtpu reads, before JAX is imported
    import flash_tpu  # noqa: F401

import jax
import jax.numpy as jnp
from _table import publish, versions

from arch_jax.ops.platform import acting_as
from arch_jax.ops.recurrence.selective_scan import selective_scan

V5E = "--v5e" in sys.argv
BATCH, TIME, WIDTH, STATE = 4, 4096, 512, 16
FORMS = ("auto", "chunked", "associative", "recurrent")
BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1, "f64": 8, "s8": 1, "u8": 1, "s64": 8, "u64": 8}


def gradients(form: str):
    """Of a loss, in all that goes into the scan."""
    loss = lambda *given: jnp.sum(jnp.square(selective_scan(*given, form=form)[0]))
    return jax.grad(loss, range(6))


def largest(program: str) -> tuple[int, str]:
    """(bytes, shape) of the largest array that a program names."""
    found = set(re.findall(r"\b(" + "|".join(BYTES) + r")\[([\d,]+)\]", program))
    sizes = {f"{kind}[{dims}]": BYTES[kind] * math.prod(map(int, dims.split(","))) for kind, dims in found}
    return max((size, shape) for shape, size in sizes.items())


def rows(time: int, platform: str) -> list[dict]:
    """One for each form."""
    sharding = None
    if platform == "tpu":
        from jax.experimental import topologies
        from jax.sharding import SingleDeviceSharding

        chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
        sharding = SingleDeviceSharding(chips[0])
    array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
    tokens, coefficients = array(BATCH, time, WIDTH), array(BATCH, time, STATE)
    given = (tokens, tokens, array(WIDTH, STATE), coefficients, coefficients, array(WIDTH))
    found = []
    for form in FORMS:
        with acting_as(platform):
            lowered = jax.jit(gradients(form)).lower(*given)
        compiled = lowered.compile()
        size, shape = largest(compiled.as_text())
        temporaries = compiled.memory_analysis().temp_size_in_bytes
        found.append({"form": form, "temporaries": temporaries, "largest": size, "shape": shape})
        print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found


def rows_on_v5e(time: int) -> list[dict] | None:
    """The same by the TPU's compiler, in a process of its own; None where there is none."""
    sys.path.extend(filter(None, [os.environ.get("ARCH_JAX_LIBTPU")]))
    if find_spec("libtpu") is None:
        return None
    command = [sys.executable, __file__, "--v5e", str(time)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def main() -> None:
    """Prints and stores the table."""
    numbers = [int(argument) for argument in sys.argv[1:] if argument != "--v5e"]
    time = numbers[0] if numbers else TIME
    if V5E:
        print(json.dumps(rows(time, "tpu")))
        return
    states = 4 * BATCH * time * WIDTH * STATE
    lines = [
        f"# Gradient of the selective scan, batch {BATCH}, time {time}, width {WIDTH}, state {STATE}, float32, by the "
        "compilers",
        f"# {versions()}",
        f"# a state for each token, batch x time x width x state: {states / 2**20:.0f} MiB",
        f"{'':6}{'form':12}{'temporaries MiB':>16}{'of the states':>15}{'largest array MiB':>19}   its shape",
    ]
    for device, found in (("CPU", rows(time, "cpu")), ("v5e", rows_on_v5e(time))):
        if found is None:
            lines.append(f"{device:6}libtpu is not installed")
        for each in found or ():
            lines.append(
                f"{device:6}{each['form']:12}{each['temporaries'] / 2**20:16.1f}{each['temporaries'] / states:15.3f}"
                f"{each['largest'] / 2**20:19.1f}   {each['shape']}"
            )
    publish("selective_scan_memory", "\n".join(lines))


if __name__ == "__main__":
    main()
