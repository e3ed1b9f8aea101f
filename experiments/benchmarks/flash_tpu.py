"""Memory on one TPU v5e chip: our attention kernel, dense and blocked XLA; alone, and in a GPT-2 training step.

ARCH_JAX_LIBTPU=FOLDER python experiments/benchmarks/flash_tpu.py

By the real TPU compiler (libtpu), which needs no TPU; nothing is run, so there are no times. ARCH_JAX_LIBTPU is the
folder that holds libtpu, where it is not installed.
"""

import os
import sys

os.environ.update(
    JAX_PLATFORMS="cpu",
    JAX_ENABLE_COMPILATION_CACHE="false",
    TPU_SKIP_MDS_QUERY="1",
    TPU_ACCELERATOR_TYPE="v5litepod-8",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_WORKER_ID="0",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    TF_CPP_MIN_LOG_LEVEL="3",
)
sys.path.extend(filter(None, [os.environ.get("ARCH_JAX_LIBTPU")]))


import jax
import jax.numpy as jnp
from _table import publish, versions
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from arch_jax.ops.attention.dot_product import attention
from arch_jax.ops.pallas.flash import flash_attention
from arch_jax.ops.platform import acting_as
from arch_jax.plan.plan import workload
from arch_jax.plan.tpu_compiler import train_step

HEADS, DIM = 12, 64
FORMS = {
    "kernel": lambda q, k, v: flash_attention(q, k, v, causal=True, scale=DIM**-0.5, platform="tpu"),
    "dense": lambda q, k, v: attention(q, k, v, causal=True, implementation="reference"),
    "xla": lambda q, k, v: attention(q, k, v, causal=True, implementation="xla"),
}


def memory(lower, *arguments) -> tuple[str, str]:
    """Mebibytes of arguments and of temporaries; where it does not fit, what the compiler says of it."""
    with acting_as("tpu"):
        lowered = lower(*arguments)
    try:
        found = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as problem:
        return "", "does not fit: " + " ".join(str(problem).split())[:120]
    return tuple(f"{n / 2**20:.1f}" for n in (found.argument_size_in_bytes, found.temp_size_in_bytes))


def alone(form, batch: int, time: int, device):
    """Attention's output and gradients, lowered."""
    q = jax.ShapeDtypeStruct((batch, time, HEADS, DIM), jnp.bfloat16, sharding=SingleDeviceSharding(device))
    out_and_gradients = lambda q, k, v, do: (lambda out, back: (out, *back(do)))(*jax.vjp(form, q, k, v))
    return jax.jit(out_and_gradients).lower(q, q, q, q)


def in_training(implementation: str, device):
    """GPT-2 124M's training step (AdamW, 8 x 1024 tokens, computed in bfloat16), lowered."""
    changes = {"batch": 8, "length": 1024, "dtype": "bfloat16", "mixer.implementation": implementation}
    of = workload("gpt2", changes)
    return train_step(of.experiment, of.batch, [device])[0]()


def main() -> None:
    """The table."""
    device = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices[0]
    lines = [
        f"# Causal attention, {HEADS} heads of {DIM}, bfloat16, forward + backward, one v5e chip, by its compiler",
        f"# {versions()}",
        f"{'batch x tokens':16}{'form':8}{'arguments MiB':>15}{'temporaries MiB':>17}",
    ]
    for batch, time in ((8, 1024), (1, 8192)):
        for name, form in FORMS.items():
            arguments, temporaries = memory(alone, form, batch, time, device)
            lines.append(f"{f'{batch} x {time}':16}{name:8}{arguments:>15}{temporaries:>17}")
    lines.append("# GPT-2 124M, training step, 8 x 1024 tokens, bfloat16, AdamW")
    for name, implementation in (("kernel", "pallas"), ("dense", "reference"), ("xla", "xla")):
        arguments, temporaries = memory(in_training, implementation, device)
        lines.append(f"{'8 x 1024':16}{name:8}{arguments:>15}{temporaries:>17}")
    publish("flash-tpu-compiled", "\n".join(lines))


if __name__ == "__main__":
    main()
