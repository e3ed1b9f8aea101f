"""Training ViT-B/16 and ResNet-50 on one TPU v5e chip: memory, FLOPs and compile time by the TPU's own compiler.

    ARCH_JAX_LIBTPU=FOLDER python experiments/benchmarks/pictures_tpu.py [BATCH]

128 pictures of 224 x 224, computed in bfloat16 with float32 parameters; ViT-B/16 by AdamW, ResNet-50 by SGD with
momentum. libtpu needs no TPU; nothing is run, so there are no times of a step: "at peak" is how long its matrix
products and convolutions would take at the chip's peak, which no program reaches. ARCH_JAX_LIBTPU is the folder that
holds libtpu, where it is not installed.
"""

import sys

import jax.numpy as jnp
from _table import publish, versions

from arch_jax.plan.chips import GIB, V5E, target
from arch_jax.plan.costing import Compiler
from arch_jax.plan.workload import workload

#: Label -> registered name, and what differs from it.
ROWS = {
    "ViT-B/16": ("vit-base-16", {"optimizer.name": "adamw"}),
    "ViT-B/16, recomputed": ("vit-base-16", {"optimizer.name": "adamw", "remat": "true"}),
    "ResNet-50": ("resnet-50", {"optimizer.name": "sgd"}),
}


def line(label: str, batch: int, compiler: Compiler) -> str:
    """One row of the table."""
    name, changes = ROWS[label]
    step, _ = compiler.train(workload(name, {"batch": batch, "steps_per_dispatch": 1, **changes}))
    at_peak = f"{1000 * step.flops / V5E.peak(jnp.dtype('bfloat16')):11.0f}"
    head, tail = f"{label:22}", f"{step.flops / 1e12:10.2f}{at_peak}{step.seconds:12.0f}"
    if step.memory is None:
        return f"{head}{'':33}{'no':>6}{tail}  {step.reason}"
    memory, gib = step.memory, lambda n: f"{n / GIB:11.2f}"
    arguments = memory.parameters + memory.optimizer + memory.batch + memory.other
    sizes = gib(arguments) + gib(memory.temporaries) + gib(memory.total)
    return f"{head}{sizes}{'yes' if step.fits else 'no':>6}{tail}"


def main() -> None:
    """The table."""
    batch = int(sys.argv[1]) if len(sys.argv) > 1 else 128
    lines = [
        f"# A training step, {batch} x 224 x 224, bfloat16 with float32 parameters, one v5e chip, by its compiler",
        f"# fits: in the {V5E.usable / GIB:.2f} GiB that a program can have; {versions()}",
        f"{'':22}{'arguments':>11}{'temporaries':>11}{'in all GiB':>11}{'fits':>6}{'TFLOP':>10}{'ms at peak':>11}"
        f"{'s to compile':>12}",
    ]
    with Compiler(target("v5e-1"), 1) as compiler:
        for label in ROWS:
            lines.append(line(label, batch, compiler))
            print(lines[-1], file=sys.stderr, flush=True)
    publish("pictures-v5e-compiled", "\n".join(lines))


if __name__ == "__main__":
    main()
