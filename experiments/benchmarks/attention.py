"""Every form of attention by length: time, memory and slope; and beside PyTorch's scaled_dot_product_attention.

python experiments/benchmarks/attention.py [ROUNDS [LONGEST]]

The first table has one row of 8 heads of 64 dimensions, float32 (bfloat16 off the CPU), forward and forward +
backward under jit: milliseconds (the least of ROUNDS), temporaries of forward + backward as the compiler counts them,
seconds to compile it, and by what power of the length its time grows between 1,024 tokens and the longest. The second
has 8 rows, causal, forward + backward, in turns with PyTorch.
"""

import math
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from _table import compare, publish, table, versions

from arch_jax.ops.attention import linear
from arch_jax.ops.attention.dot_product import attention, implementations
from arch_jax.ops.attention.patterns import BigBird, Fixed, Longformer, Strided
from arch_jax.ops.attention.random_features import orthogonal_projection, positive_features
from arch_jax.ops.attention.scores import additive_scores, attend

HEADS, DIM = 8, 64
QUADRATIC, SHORT, LONG = 2048, 512, 16384
LENGTHS = (256, 1024, 2048, 4096, 8192, LONG)
ON_CPU = jax.default_backend() == "cpu"
DTYPE = jnp.float32 if ON_CPU else jnp.bfloat16


def mechanisms() -> dict[str, tuple[Callable, int]]:
    """Name -> (a function of q, k and v, the longest sequence it is asked for)."""
    found = {}
    for name in implementations():
        longest = QUADRATIC if name == "reference" else LENGTHS[-2]
        found[f"softmax, causal: {name}"] = (softmax(causal=True, implementation=name), longest)
    settings = {
        "window 256": {"window": 256},
        "strided 128": {"pattern": Strided(128)},
        "fixed 128, 8": {"pattern": Fixed(128, 8)},
        "longformer 256, 16": {"pattern": Longformer(256, 16)},
    }
    for name, setting in settings.items():
        found[f"{name}, causal"] = (softmax(causal=True, **setting), LENGTHS[-2])
    found["bigbird 64, 3 + 2 + 3"] = (softmax(pattern=BigBird(64)), LENGTHS[-2])
    for form, longest in (("chunked", LONG), ("parallel", QUADRATIC), ("recurrent", QUADRATIC)):
        found[f"linear, causal: {form}"] = (elu(form), longest)
    found["linear"] = (elu("chunked", causal=False), LONG)
    found["performer, causal: chunked"] = (performer, LONG)
    found["linformer, rank 128"] = (linformer, LONG)
    found["additive (Bahdanau)"] = (additive, SHORT)
    return found


def softmax(**settings) -> Callable:
    """Attention with the given settings."""
    return lambda q, k, v: attention(q, k, v, **settings)


def elu(form: str, causal: bool = True) -> Callable:
    """Linear attention with features elu + 1."""
    phi = linear.elu_features
    pair = lambda q, k: (phi(q), phi(k))
    return lambda q, k, v: linear.linear_attention(q, k, v, feature_map=pair, form=form, causal=causal)[0]


def performer(q, k, v):
    """FAVOR+ with d ln d features."""
    w, shared = orthogonal_projection(round(DIM * math.log(DIM)), DIM), DIM**-0.25
    pair = lambda q, k: (positive_features(q * shared, w, query=True), positive_features(k * shared, w))
    return linear.linear_attention(q, k, v, feature_map=pair, chunk=128)[0]


def linformer(q, k, v):
    """Keys and values of 128 mixtures, drawn inside so that no array of weights is counted."""
    e, f = jax.random.normal(jax.random.key(0), (2, 128, q.shape[1]), q.dtype) / 128**0.5
    return linear.low_rank_attention(q, k, v, e, f)


def additive(q, k, v):
    """Additive scores of each head, as wide as the head."""
    merge = lambda x: x.swapaxes(1, 2).reshape(-1, *x.shape[1:2], x.shape[-1])
    eye = jnp.eye(DIM, dtype=q.dtype)
    out, _ = attend(additive_scores(merge(q), merge(k), eye, eye, jnp.ones(DIM, q.dtype)), merge(v))
    return out


def arrays(batch: int, length: int) -> tuple:
    """Random q, k and v."""
    draw = np.random.default_rng(0).normal(size=(3, batch, length, HEADS, DIM))
    return tuple(jnp.asarray(x, DTYPE) for x in draw)


def with_gradient(form: Callable) -> Callable:
    """The gradients of a loss in q, k and v."""
    return jax.grad(lambda q, k, v: jnp.sum(jnp.square(form(q, k, v).astype(jnp.float32))), (0, 1, 2))


def measure(form: Callable, length: int, rounds: int) -> dict[str, float]:
    """Milliseconds of both passes, seconds to compile the gradient, and its temporaries in MB."""
    given, found = arrays(1, length), {}
    for name, function in (("forward", form), ("both", with_gradient(form))):
        started = time.perf_counter()
        compiled = jax.jit(function).lower(*given).compile()
        found["compile"] = time.perf_counter() - started
        found["memory"] = compiled.memory_analysis().temp_size_in_bytes / 2**20
        jax.block_until_ready(compiled(*given))
        seconds = []
        for _ in range(rounds):
            started = time.perf_counter()
            jax.block_until_ready(compiled(*given))
            seconds.append(time.perf_counter() - started)
        found[name] = 1000 * min(seconds)
    return found


def by_length(rounds: int, longest: int) -> str:
    """The first table."""
    device = jax.devices()[0].device_kind
    lines = [
        f"# attention by length, 1 x {HEADS} heads of {DIM}, {jnp.dtype(DTYPE)}, {device}, {versions()}",
        f"{'':27} {'tokens':>6} {'forward':>9} {'+ backward':>10} {'MB':>8} {'compile':>8}   slope",
    ]
    for name, (form, most) in mechanisms().items():
        points = {}
        for length in (n for n in LENGTHS if n <= min(most, longest)):
            found = measure(form, length, rounds)
            points[length] = found["both"]
            reach = {n: ms for n, ms in points.items() if n >= 1024}
            slope = ""
            if length == max(n for n in LENGTHS if n <= min(most, longest)) and len(reach) > 1:
                slope = f"{np.polyfit(np.log(list(reach)), np.log(list(reach.values())), 1)[0]:.2f}"
            lines.append(
                f"{name:27} {length:6} {found['forward']:9.1f} {found['both']:10.1f} {found['memory']:8.1f} "
                f"{found['compile']:8.2f}   {slope}".rstrip()
            )
            print(lines[-1], file=sys.stderr, flush=True)
    lines.append("(milliseconds; temporaries and seconds to compile of forward + backward)")
    return "\n".join(lines)


def beside_pytorch(rounds: int) -> str:
    """The second table; without PyTorch, ours alone."""
    texts = []
    for length in (256, 1024):
        contenders, given = {}, arrays(8, length)
        try:
            contenders["PyTorch"] = theirs(given)
        except ImportError:
            print("PyTorch is not installed: ours alone", file=sys.stderr)
        for name in implementations():
            contenders[name] = ours(name, given)
        title = f"causal attention, forward + backward, 8 x {length} tokens, {HEADS} heads of {DIM}, {jnp.dtype(DTYPE)}"
        texts.append(table(title, compare(contenders, rounds), 1, "milliseconds", next(iter(contenders))))
    return "\n\n".join(texts)


def ours(implementation: str, given: tuple) -> Callable[[], None]:
    """One of our forms, compiled."""
    compiled = jax.jit(with_gradient(softmax(causal=True, implementation=implementation))).lower(*given).compile()
    return lambda: jax.block_until_ready(compiled(*given))


def theirs(given: tuple) -> Callable[[], None]:
    """PyTorch's attention on the same arrays."""
    import torch

    q, k, v = (torch.from_numpy(np.array(x, np.float32)).transpose(1, 2).contiguous() for x in given)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    q, k, v = (x.to(device, torch.float32 if ON_CPU else torch.bfloat16).requires_grad_() for x in (q, k, v))

    def run():
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        torch.autograd.grad(out.square().sum(), (q, k, v))
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def main() -> None:
    """Prints and stores both tables."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    longest = int(sys.argv[2]) if len(sys.argv) > 2 else LONG
    text = beside_pytorch(2 * rounds) + "\n\n" + by_length(rounds, longest)
    publish("attention" if jax.default_backend() == "cpu" else f"attention-{jax.default_backend()}", text)


if __name__ == "__main__":
    main()
