"""Recurrences on a GPU: beside what its memory allows, and beside their plain forms in PyTorch.

    python experiments/benchmarks/recurrences_gpu.py [ROUNDS [TIME]]
    python experiments/benchmarks/recurrences_gpu.py --tiny      on any machine: shows that it works, measures nothing

The linear recurrence, Mamba's selective scan and Mamba-2's SSD (a matrix recurrence with decay), forward and forward +
backward, float32, batch 8, TIME (4,096) tokens. The limit is the time to read each input and write each output once:
forward + backward also read the inputs again with the output's gradient, and write the inputs' gradients. Their plain
forms are loops over time in PyTorch, and for SSD one over chunks; they run where PyTorch has a GPU. The bandwidth is
the data sheet's, and for other devices that of copying.
"""

import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from _table import publish, versions

from arch_jax.ops.recurrence.linear import linear_recurrence
from arch_jax.ops.recurrence.matrix import matrix_recurrence
from arch_jax.ops.recurrence.selective_scan import selective_scan

TINY = "--tiny" in sys.argv
BATCH, CHANNELS, STATE, HEADS, DIM, VDIM = (2, 8, 4, 2, 4, 8) if TINY else (8, 2048, 16, 32, 128, 64)
#: Bytes a second of device memory, from the data sheets, by what JAX calls the device.
BANDWIDTH = {
    "NVIDIA H100 80GB HBM3": 3.35e12,
    "NVIDIA H100 PCIe": 2.0e12,
    "NVIDIA H200": 4.8e12,
    "NVIDIA A100-SXM4-80GB": 2.04e12,
    "NVIDIA A100-SXM4-40GB": 1.56e12,
}


def cases(length: int) -> dict[str, tuple[dict[str, Callable], Callable, list[np.ndarray]]]:
    """Name -> (our forms, the plain form in PyTorch, what goes in)."""
    draw = np.random.default_rng(0)
    normal = lambda *shape: draw.normal(size=shape).astype(np.float32)
    positive = lambda *shape: draw.uniform(0.01, 0.2, shape).astype(np.float32)
    tokens = (BATCH, length)
    linear = [1 - positive(*tokens, CHANNELS), normal(*tokens, CHANNELS)]
    A = -np.broadcast_to(np.arange(1, STATE + 1, dtype=np.float32), (CHANNELS, STATE)).copy()
    selective = [normal(*tokens, CHANNELS), positive(*tokens, CHANNELS), A]
    selective += [normal(*tokens, STATE), normal(*tokens, STATE)]
    shared = [normal(*tokens, 1, DIM) / DIM**0.5 for _ in range(2)]
    matrix = [*shared, normal(*tokens, HEADS, VDIM), -positive(*tokens, HEADS)]
    of = lambda op, form: lambda *given: op(*given, form=form)
    pick = lambda op, form: lambda *given: op(*given, form=form)[0]
    return {
        "linear recurrence": (
            {form: of(linear_recurrence, form) for form in ("associative", "pallas", "chunked")},
            plain_linear_recurrence,
            linear,
        ),
        "selective scan": (
            {form: pick(selective_scan, form) for form in ("associative", "chunked")},
            plain_selective_scan,
            selective,
        ),
        "SSD": ({"chunked": pick(matrix_recurrence, "chunked")}, plain_ssd, matrix),
    }


def plain_linear_recurrence(a, b):
    """h_t = a_t h_{t-1} + b_t, token by token, of PyTorch's tensors."""
    import torch

    h, out = torch.zeros_like(b[:, 0]), []
    for t in range(b.shape[1]):
        h = a[:, t] * h + b[:, t]
        out.append(h)
    return torch.stack(out, dim=1)


def plain_selective_scan(x, delta, A, B, C):
    """Algorithm 2 of arXiv 2312.00752, token by token."""
    import torch

    h, out = torch.zeros(x.shape[0], *A.shape, device=x.device), []
    for t in range(x.shape[1]):
        h = torch.exp(delta[:, t, :, None] * A) * h + (delta[:, t] * x[:, t])[..., None] * B[:, t, None]
        out.append((h * C[:, t, None]).sum(-1))
    return torch.stack(out, dim=1)


def plain_ssd(q, k, v, log_decay, chunk: int = 64):
    """S_t = exp(d_t) S_{t-1} + k_t v_t^T and y_t = S_t^T q_t: all pairs of a chunk, then the state (2405.21060, 6)."""
    import torch

    s, out = torch.zeros(v.shape[0], v.shape[2], k.shape[-1], v.shape[-1], device=v.device), []
    for start in range(0, v.shape[1], chunk):
        now = slice(start, start + chunk)
        q_c, k_c, v_c, total = q[:, now, 0], k[:, now, 0], v[:, now], log_decay[:, now].cumsum(1)
        behind = total[:, :, None] - total[:, None]  # "batch to from heads"
        seen = torch.ones(behind.shape[1:3], device=v.device).tril().bool()[None, :, :, None]
        weights = torch.exp(behind.masked_fill(~seen, -torch.inf)) * (q_c @ k_c.mT)[..., None]
        y = torch.einsum("btsh,bshv->bthv", weights, v_c)
        out.append(y + torch.einsum("btd,bhdv->bthv", q_c, s) * torch.exp(total)[..., None])
        left = torch.exp(total[:, -1:] - total)[..., None]
        s = s * torch.exp(total[:, -1])[..., None, None] + torch.einsum("bsd,bshv->bhdv", k_c, v_c * left)
    return torch.cat(out, dim=1)


def least(run: Callable[[], None], rounds: int) -> float:
    """Seconds, the least of the rounds behind one that warms up."""
    run()
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def ours(form: Callable, given: list, backward: bool) -> tuple[Callable[[], None], np.ndarray]:
    """What to time, and the values."""
    given = [jax.device_put(x) for x in given]

    def both(weights, *given):
        y, back = jax.vjp(form, *given)
        return y, back(weights)

    value = jax.jit(form)(*given)
    arguments = [jnp.ones_like(value), *given] if backward else given
    program = jax.jit(both if backward else form).lower(*arguments).compile()
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(program(*arguments)))
    return lambda: jax.block_until_ready(program(*arguments)), np.asarray(value)


def theirs(form: Callable, given: list, backward: bool) -> tuple[Callable[[], None], np.ndarray]:
    """The same in PyTorch."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensors = [torch.from_numpy(x).to(device).requires_grad_(backward) for x in given]

    def run():
        y = form(*tensors)
        if backward:
            torch.autograd.grad(y.sum(), tensors)
        if device == "cuda":
            torch.cuda.synchronize()
        return y

    return run, run().detach().cpu().numpy()


def bandwidth(rounds: int) -> tuple[float, str]:
    """(bytes a second, where that is from)."""
    kind = jax.devices()[0].device_kind
    if kind in BANDWIDTH:
        return BANDWIDTH[kind], "data sheet"
    x = jnp.ones((2**16 if TINY else 2**28,), jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    return 2 * x.nbytes / least(lambda: jax.block_until_ready(copy(x)), rounds), "of copying"


def contenders(forms: dict[str, Callable], plain: Callable, given: list, backward: bool):
    """Name -> (what to time, its values); PyTorch's where it has the same kind of device."""
    for name, form in forms.items():
        yield name, ours(form, given, backward)
    try:
        import torch
    except ImportError:
        return
    if TINY or torch.cuda.is_available():
        yield "PyTorch, plain", theirs(plain, given, backward)


def main() -> None:
    """Prints and stores the table."""
    if jax.default_backend() != "gpu" and not TINY:
        print("There is no GPU here: nothing is measured (--tiny shows on any machine that the script works).")
        return
    numbers = [int(argument) for argument in sys.argv[1:] if argument.isdigit()]
    rounds, length = (*numbers, *((1, 70) if TINY else (20, 4096))[len(numbers) :])
    peak, source = bandwidth(rounds)
    lines = [
        f"# recurrences, batch {BATCH}, {length} tokens, float32, {jax.devices()[0].device_kind}, least of {rounds} "
        f"rounds, {versions()}",
        f"# limit: bytes that have to move at {peak / 1e12:.2f} TB/s ({source})",
        f"{'':20}{'':16}{'':20}{'ms':>9}{'limit ms':>10}{'of the limit':>14}",
    ]
    for name, (forms, plain, given) in cases(length).items():
        for passes in ("forward", "forward + backward"):
            expected = None
            for form, (run, value) in contenders(forms, plain, given, passes != "forward"):
                expected = value if expected is None else expected
                np.testing.assert_allclose(value, expected, atol=1e-3 * np.abs(expected).max())
                read = sum(x.nbytes for x in given)
                moved = read + value.nbytes if passes == "forward" else 3 * read + 2 * value.nbytes
                seconds, limit = least(run, rounds), moved / peak
                share = f"{limit / seconds:.1%}"
                lines.append(f"{name:20}{form:16}{passes:20}{1000 * seconds:9.2f}{1000 * limit:10.2f}{share:>14}")
                print(lines[-1], file=sys.stderr, flush=True)
    if TINY:
        print("\n".join(lines))
    else:
        publish("recurrences_gpu", "\n".join(lines))


if __name__ == "__main__":
    main()
