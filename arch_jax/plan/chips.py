"""Accelerators that a plan can be made for: peaks, memory, bandwidth, slices and sessions, each with its source.

Sources, by the letters at the entries:

- (a) cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e: peak compute, HBM capacity and HBM bandwidth a chip, slice shapes,
  and how slices are named (v4 and v5p by TensorCores, of which a chip has two; v5e and v6e by chips).
- (b) What libtpu 0.0.42 leaves a program: the "available HBM" of its own messages. It is less than the capacity, and
  decides.
- (c) NVIDIA's data sheets of T4, P100 PCIe, L4, A100 SXM, H100 SXM and H200 SXM. Peaks are without sparsity. T4 and
  P100 have no bfloat16, which is then computed in float32. What a program gets is capacity less 1 GiB for driver and
  context, an assumption.
- (d) research.google.com/colaboratory/faq.html: notebooks run for at most 12 hours without payment, 24 with Pro+.
  Quotas may end a session earlier. v5e-1: github.com/googlecolab/colabtools/issues/5566.
- (e) kaggle.com/docs/notebooks and /docs/tpu: 12 hours a GPU session, 9 hours a TPU session; also weekly quotas.

The pages of (c), (e) and the 24 hours of (d) could not be opened when this was written: those figures are as they are
commonly quoted from them.
"""

import dataclasses
from typing import Any

from arch_jax.errors import UsageError, unknown

GIB = 2**30
TERA = 1e12

Number = float | int


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
      name: of its kind.
      bfloat16: peak FLOP/s of matrix products in bfloat16; where a chip has no units for it, that of float32.
      float16: the same in float16.
      float32: the same in float32, as XLA computes them unless told otherwise: in one bfloat16 pass on a TPU, in TF32
        on a GPU that has it.
      memory: bytes it has.
      usable: bytes of these that one program can use.
      bandwidth: bytes a second from its memory.
      cores: TensorCores of a TPU chip.
      family: libtpu's name of its topologies; None if nothing can be compiled for it.
      accelerator: the same in `TPU_ACCELERATOR_TYPE`.
    """

    name: str
    bfloat16: float
    float16: float
    float32: float
    memory: int
    usable: int
    bandwidth: float
    cores: int = 1
    family: str | None = None
    accelerator: str = ""

    def peak(self, dtype: Any) -> float:
        """FLOP/s of matrix products in a dtype, by its name: "bfloat16", "float16", or anything wider."""
        return {"bfloat16": self.bfloat16, "float16": self.float16}.get(str(dtype), self.float32)


def _tpu(name: str, peak: Number, memory: Number, usable: Number, bandwidth: Number, cores: int, *names: str) -> Chip:
    """A TPU chip, of TFLOP/s, GiB and GB/s."""
    peak *= TERA
    return Chip(name, peak, peak, peak, int(memory * GIB), int(usable * GIB), bandwidth * 1e9, cores, *names)


def _gpu(
    name: str, half: Number, float32: Number, memory: Number, bandwidth: Number, bfloat16: Number | None = None
) -> Chip:
    """A GPU, of TFLOP/s, GiB and GB/s."""
    size, peak = int(memory * GIB), half if bfloat16 is None else bfloat16
    return Chip(name, peak * TERA, half * TERA, float32 * TERA, size, size - GIB, bandwidth * 1e9)


V4 = _tpu("TPU v4", 275, 32, 30.75, 1200, 2, "v4", "v4")  # (a, b)
V5E = _tpu("TPU v5e", 197, 16, 15.75, 819, 1, "v5e", "v5litepod")  # (a, b)
V5P = _tpu("TPU v5p", 459, 96, 95.74, 2765, 2, "v5p", "v5p")  # (a, b); (a) rounds to 95 GB
V6E = _tpu("TPU v6e", 918, 32, 31.25, 1638, 1, "v6e", "v6e")  # (a, b)
T4 = _gpu("T4", 65, 8.1, 16, 320, bfloat16=8.1)  # (c)
P100 = _gpu("P100", 18.7, 9.3, 16, 732, bfloat16=9.3)  # (c)
L4 = _gpu("L4", 121, 60, 24, 300)  # (c)
A100 = _gpu("A100 40 GB", 312, 156, 40, 1555)  # (c)
A100_80 = _gpu("A100 80 GB", 312, 156, 80, 2039)  # (c)
H100 = _gpu("H100", 989, 494, 80, 3350)  # (c)
H200 = _gpu("H200", 989, 494, 141, 4800)  # (c)

#: Chips -> shape of the slice (a).
_FLAT = {
    1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16),
}  # fmt: skip
_CUBIC = {4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4)}


@dataclasses.dataclass(frozen=True)
class Target:
    """A machine that a plan is made for.

    Attributes:
      name: as requested.
      chip: the accelerator.
      chips: number of chips.
      shape: of the slice, in chips; None if nothing can be compiled for it.
      hours: the longest session, if the machine is lent for sessions.
    """

    name: str
    chip: Chip
    chips: int
    shape: tuple[int, ...] | None = None
    hours: Number | None = None

    @property
    def compiles(self) -> bool:
        """True if there is a compiler for it; other targets are estimated."""
        return self.chip.family is not None and self.shape is not None

    @property
    def topology(self) -> dict[str, Any]:
        """The arguments of `jax.experimental.topologies.get_topology_desc`.

        Raises:
          UsageError: nothing can be compiled for it.
        """
        if not self.compiles:
            raise UsageError(f"nothing can be compiled here for {self.name!r}; it can only be estimated")
        host = (*self.shape, 1) if len(self.shape) == 2 and self.chips <= 8 else None
        return {
            "topology_name": f"{self.chip.family}:{'x'.join(map(str, self.shape))}",
            **({"chips_per_host_bounds": host} if host else {}),  # 1x1 is refused without
            # One device a chip, as on the machine itself, and not one a TensorCore.
            **({"chip_config_name": "megacore"} if self.chip.cores > 1 else {}),
        }

    @property
    def accelerator(self) -> str:
        """The value of `TPU_ACCELERATOR_TYPE` on it."""
        return f"{self.chip.accelerator}-{self.chips * self.chip.cores}"


def _targets() -> dict[str, Target]:
    found = [
        Target(f"{chip.family}-{chips * chip.cores}", chip, chips, shape)
        for chip, shapes in ((V5E, _FLAT), (V6E, _FLAT), (V4, _CUBIC), (V5P, _CUBIC))
        for chips, shape in shapes.items()
    ]
    gpus = {"t4": T4, "l4": L4, "a100-40": A100, "a100-80": A100_80, "h100": H100, "h200": H200}
    found += [Target(f"{n}x{k}" if k > 1 else n, chip, k) for n, chip in gpus.items() for k in (1, 2, 4, 8)]
    found += [
        Target("colab-v5e-1", V5E, 1, (1, 1), 12),  # (d)
        Target("colab-v6e-1", V6E, 1, (1, 1), 24),  # (d), for those who pay
        Target("colab-t4", T4, 1, None, 12),  # (d)
        Target("colab-l4", L4, 1, None, 24),  # (d), for those who pay
        Target("colab-a100", A100, 1, None, 24),  # (d), for those who pay
        Target("kaggle-v5e-8", V5E, 8, (2, 4), 9),  # (e)
        Target("kaggle-t4x2", T4, 2, None, 12),  # (e)
        Target("kaggle-p100", P100, 1, None, 12),  # (e)
    ]
    return {one.name: one for one in found}


TARGETS = _targets()


def target(name: str) -> Target:
    """The target of a name.

    Raises:
      UsageError: unknown, with the nearest names, or the list.
    """
    wanted = str(name).lower()
    if wanted not in TARGETS:
        raise unknown("target", name, TARGETS)
    return TARGETS[wanted]
