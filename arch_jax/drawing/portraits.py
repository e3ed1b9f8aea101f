"""The insides of layers that do not divide their work among layers, and what is said of a layer in words.

A portrait is made of a layer's fields and shapes. Where a layer has none, what is drawn of it is the data flow that
was traced, or a plain box.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from arch_jax.drawing.diagram import Node
from arch_jax.layers.dense import Dense, Embedding
from arch_jax.layers.graph.convolution import GraphConvolution
from arch_jax.layers.mixers.attention import Attention
from arch_jax.layers.mixers.delta_net import DeltaNet, GatedDeltaNet
from arch_jax.layers.mixers.hyena import Hyena
from arch_jax.layers.mixers.latent_attention import LatentAttention
from arch_jax.layers.mixers.linear_attention import LinearAttention, Linformer, Performer
from arch_jax.layers.mixers.mlstm import MLSTM
from arch_jax.layers.mixers.retention import Retention
from arch_jax.layers.mixers.rnn.gru import GRU
from arch_jax.layers.mixers.rnn.lstm import LSTM
from arch_jax.layers.mixers.rnn.rnn import RNN
from arch_jax.layers.mixers.rwkv4 import RWKV4
from arch_jax.layers.mixers.rwkv7 import RWKV7
from arch_jax.layers.mixers.short_convolution import ShortConvolution
from arch_jax.layers.mixers.slstm import SLSTM
from arch_jax.layers.mixers.ssm.mamba import SelectiveSSM
from arch_jax.layers.mixers.ssm.mamba2 import Mamba2
from arch_jax.layers.mixers.ssm.s4 import S4, S4D
from arch_jax.layers.seq2seq.cells import GRUCells, LSTMCells
from arch_jax.layers.transformer.cross_attention import CrossAttention
from arch_jax.layers.vision.convolution import AveragePool, Convolution, MaxPool, TransposedConvolution
from arch_jax.layers.vision.unet_blocks import SpatialAttention

#: (what is inside, with `ports` as the sources of its lines; the node whose output leaves; the size of a state that
#: goes round the whole, or "").
Inside = tuple[list[Node], Node, str]


def words(name: str) -> str:
    """The words of a name: "feed_forward" and "ConvolutionNorm" as one reads them."""
    pattern = r"(?<=[a-z0-9])(?=[A-Z][a-z])|(?<=[a-z]{4})(?=[A-Z]{2})|(?<=[A-Z])(?=[A-Z][a-z])"
    found: list[str] = []
    for part in name.replace("_", " ").split():
        pieces: list[str] = []
        for piece in re.sub(pattern, " ", part).split():
            if pieces and len(piece) < 3 and not piece.isupper():  # ConvNeXt
                pieces[-1] += piece
            else:
                pieces.append(piece)
        found += pieces
    # Names such as SwiGLU and RMS keep their capitals.
    return " ".join(w if sum(map(str.isupper, w)) != 1 or len(w) == 1 else w.lower() for w in found)


def times(shape: tuple[int, ...]) -> str:
    """A shape as it is read: "28 × 28 × 1"."""
    return " × ".join(map(str, shape))


def _attention(module: Attention, ports: list[Node], shapes: tuple) -> Inside:
    heads, kv_heads, size = module.sizes(shapes[0][-1])
    of = lambda n: f"{n} head{'s' if n > 1 else ''} × {size}"
    x = ports[0]
    q, k, v = (
        Node("box", name, (of(n),), [x]) for name, n in (("query", heads), ("key", kv_heads), ("value", kv_heads))
    )
    parts, ends = [q, k, v], [q, k]
    if module.qk_norm is not None:
        ends = [Node("function", "norm", (), [end]) for end in ends]
        parts += ends
    if module.rope is not None:
        ends = [Node("function", "rotary", (), [end]) for end in ends]
        parts += ends
    said = ["causal" if module.causal else "every token sees all"]
    said += [] if module.window is None else [f"window of {module.window}"]
    said += [] if module.pattern is None else [f"{words(type(module.pattern).__name__)} pattern"]
    said += [] if module.relative is None else [words(type(module.relative).__name__)]
    said += [] if module.softcap is None else [f"softcap {module.softcap:g}"]
    if kv_heads < heads:
        said.append(f"{heads // kv_heads} queries share a key")
    # A term that is added to the scores, "batch heads time source"; what else may come in are segments.
    ends += [port for port in ports[1:] if len(port.facts) == 4]
    return _attended(parts, ends, v, module.scale, (size, shapes[0][-1]), said)


def _attended(
    parts: list[Node], ends: list[Node], v: Node, scale: float | None, sizes: tuple[int, int], said: list[str]
) -> Inside:
    size, width = sizes
    score = f"Q Kᵀ / √{size}" if scale is None else ("Q Kᵀ" if scale == 1 else f"{scale:g} Q Kᵀ")
    softmax = Node("box", f"softmax({score})", (", ".join(said),) if len(said) < 3 else tuple(said), ends)
    product = Node("symbol", "·", (), [softmax, v])
    output = Node("box", "output", (f"→ {width}",), [product])
    return [*parts, softmax, product, output], output, ""


def _cross_attention(module: CrossAttention, ports: list[Node], shapes: tuple) -> Inside:
    size = module.size(shapes[0][-1])
    of = f"{module.heads} heads × {size}"
    memory = ports[1] if len(ports) > 1 else ports[0]
    q = Node("box", "query", (of,), [ports[0]])
    k, v = (Node("box", name, (of,), [memory]) for name in ("key", "value"))
    return _attended([q, k, v], [q, k], v, module.scale, (size, shapes[0][-1]), ["every source token"])


def _lstm(module: Any, ports: list[Node], shapes: tuple) -> Inside:
    hidden = module.hidden or shapes[0][-1]
    x = ports[0]
    said = (f"four gates of {hidden}", "peepholes: + p c") if getattr(module, "peepholes", False) else ()
    heard = Node("box", "x W + h U + b", said or (f"four gates of {hidden}",), [x])
    forget, entry, new, leave = (
        Node("function", f"{f} {name}", (), [heard])
        for f, name in (("σ", "forget"), ("σ", "input"), ("tanh", "new"), ("σ", "output"))
    )
    kept = Node("symbol", "×", (), [forget])
    written = Node("symbol", "×", (), [entry, new])
    added = Node("symbol", "+", (), [kept, written])
    cell = Node("box", "cell c", (), [added], loop=str(hidden))
    squashed = Node("function", "tanh", (), [cell])
    shown = Node("symbol", "×", (), [squashed, leave])
    parts = [heard, forget, entry, new, leave, kept, written, added, cell, squashed, shown]
    return _closing(module, parts, shown, shapes, f"h: {hidden}")


def _gru(module: Any, ports: list[Node], shapes: tuple) -> Inside:
    hidden = module.hidden or shapes[0][-1]
    x = ports[0]
    after = getattr(module, "reset", "before") == "after"
    heard = Node("box", "x W + b", (f"three parts of {hidden}",), [x])
    state = Node("box", "h before", (f"{hidden} units",), [])
    product = [Node("box", "h U", (f"{hidden} → {3 * hidden}",), [state])] if after else []
    told = product[0] if after else state
    reset = Node("function", "σ reset r", (), [heard, told])
    update = Node("function", "σ update z", (), [heard, told])
    gated = Node("symbol", "×", (), [reset, told])
    new = Node("function", "tanh(x W + r h U)" if after else "tanh(x W + (r h) U)", (), [heard, gated])
    rest = Node("function", "1 − z", (), [update])
    kept = Node("symbol", "×", (), [update, state])
    entered = Node("symbol", "×", (), [new, rest])
    total = Node("symbol", "+", (), [entered, kept])
    parts = [heard, state, *product, reset, update, gated, new, rest, entered, kept, total]
    return _closing(module, parts, total, shapes, f"h: {hidden}")


def _rnn(module: Any, ports: list[Node], shapes: tuple) -> Inside:
    hidden = module.hidden or shapes[0][-1]
    heard = Node("box", "x W + h U + b", (f"{hidden} units",), [ports[0]])
    state = Node("function", getattr(module, "activation", "tanh"), (), [heard])
    return _closing(module, [heard, state], state, shapes, f"h: {hidden}")


def _closing(module: Any, parts: list[Node], last: Node, shapes: tuple, loop: str) -> Inside:
    """With the matrix that brings the units back to the width, where a mixer has one."""
    hidden, width = module.hidden or shapes[0][-1], shapes[0][-1]
    if hidden == width or not hasattr(module, "residual_scale"):
        return parts, last, loop
    output = Node("box", "output", (f"{hidden} → {width}",), [last])
    return [*parts, output], output, loop


def _s4(module: Any, ports: list[Node], shapes: tuple) -> Inside:
    """x' = A x + B u, y = C x + D u, then the gated output where there is one."""
    width = shapes[0][-1]
    x = ports[0]
    kind = "diagonal" if isinstance(module, S4D) else "normal plus low rank"
    space = Node("box", "x' = A x + B u,  y = C x", (f"{width} state spaces, A {kind}",), [x])
    space.loop = f"x: {width} × {module.state}"
    skip = Node("function", "D u", (), [x])
    total = Node("symbol", "+", (), [space, skip])
    gelu = Node("function", "GELU", (), [total])
    if not module.glu:
        return [space, skip, total], total, ""
    parts = [space, skip, total, gelu]
    value = Node("box", "output", (f"{width} → {width}",), [gelu])
    gate = Node("box", "gate", (f"{width} → {width}",), [gelu])
    sigmoid = Node("function", "sigmoid", (), [gate])
    product = Node("symbol", "×", (), [value, sigmoid])
    return [*parts, value, gate, sigmoid, product], product, ""


def _graph_convolution(module: GraphConvolution, ports: list[Node], shapes: tuple) -> Inside:
    dense = Node("box", "dense", (f"{shapes[0][-1]} → {module.features}",), [ports[0]])
    mean = Node("box", "normalised (A + I) X W", ("sum over neighbours and itself",), [dense, *ports[1:]])
    return [dense, mean], mean, ""


def _selective(module: SelectiveSSM, ports: list[Node], shapes: tuple) -> Inside:
    channels = shapes[0][-1]
    u = ports[0]
    low = Node("box", "delta low", (f"{channels} → {module.rank}",), [u])
    b, c = (Node("box", name, (f"{channels} → {module.state}",), [u]) for name in "BC")
    delta = Node("box", "softplus(delta)", (f"{module.rank} → {channels}",), [low])
    scan = Node("box", "h = exp(Δ A) h + Δ B u", ("selective scan, y = C h",), [delta, b, c, u])
    scan.loop = f"h: {channels} × {module.state}"
    skip = Node("function", "D u", (), [u])
    total = Node("symbol", "+", (), [scan, skip])
    return [low, b, c, delta, scan, skip, total], total, ""


_PORTRAITS: dict[type, Callable[[Any, list[Node], tuple], Inside]] = {
    Attention: _attention,
    CrossAttention: _cross_attention,
    LSTM: _lstm,
    LSTMCells: _lstm,
    GRU: _gru,
    GraphConvolution: _graph_convolution,
    GRUCells: _gru,
    RNN: _rnn,
    S4: _s4,
    S4D: _s4,
    SelectiveSSM: _selective,
}


#: The state of one head.
_MATRIX = "of a matrix by head"
#: The arithmetic of layers between the layers that they have: an equation, its name, and the state that goes round.
_EQUATIONS: dict[type, tuple[str, str, str]] = {
    MLSTM: ("C = f C + i v kᵀ,  n = f n + i k", "h = C q / max(|n q|, 1), stabilised", _MATRIX),
    Retention: ("S = γ S + kᵀ v,  y = q S", "retention", _MATRIX),
    DeltaNet: ("S = S − β (S k − v) kᵀ,  y = S q", "delta rule", _MATRIX),
    GatedDeltaNet: ("S = α S − β (α S k − v) kᵀ,  y = S q", "gated delta rule", _MATRIX),
    LinearAttention: ("φ(q) (Σ φ(k)ᵀ v) / φ(q) Σ φ(k)ᵀ", "linear attention", ""),
    Performer: ("φ(q) (Σ φ(k)ᵀ v) / φ(q) Σ φ(k)ᵀ", "random features", ""),
    LatentAttention: ("softmax(Q Kᵀ / √d) V", "keys and values from a small code", ""),
    Linformer: ("softmax(Q (E K)ᵀ / √d) F V", "E, F shorten the sequence", ""),
    Mamba2: ("h = exp(Δ A) h + Δ B x,  y = C h + D x", "state space duality", _MATRIX),
    RWKV4: ("Σ exp(decay + k) v / Σ exp(decay + k)", "WKV, of each channel", "of two sums by channel"),
    RWKV7: ("S = S (diag(w) − κᵀ (a κ)) + vᵀ k", "generalised delta rule", _MATRIX),
    Hyena: ("y = x · (filter ∗ v), in turn", "long convolutions and gates", ""),
    SpatialAttention: ("softmax(Q Kᵀ / √d) V", "every pixel sees all", ""),
}


def is_known(module: nn.Module) -> bool:
    """True if it is known what the arithmetic of a layer is."""
    return type(module) in _EQUATIONS or isinstance(module, SLSTM)


def arithmetic(module: nn.Module, shapes: tuple) -> tuple[str, tuple[str, ...], str]:
    """(title, lines, state) of the box for a layer's own arithmetic between the layers that it has."""
    width = shapes[0][-1] if shapes else 0
    heads = getattr(module, "heads", 0)
    heads = heads if isinstance(heads, int) else 0
    if isinstance(module, SLSTM):
        said = ("z = tanh, o = σ, i and f exponential", f"h = o c / n, h U by head, {heads} heads")
        return "c = f c + i z,  n = f n + i", said, f"h, c, n, m: {width} each"
    if type(module) in _EQUATIONS:
        equation, name, state = _EQUATIONS[type(module)]
        return equation, (name, f"{heads} heads") if heads else (name,), state
    return "arithmetic", (f"of {words(type(module).__name__)}",), ""


def inside(module: nn.Module, method: str, ports: list[Node], shapes: tuple) -> Inside | None:
    """The portrait of a called layer; None where its traced data flow is what there is to see.

    Args:
      module: the layer.
      method: called.
      ports: where its inputs come from, those that it uses.
      shapes: of its inputs.
    """
    portrait = _PORTRAITS.get(type(module)) if method == "__call__" and ports else None
    return None if portrait is None else portrait(module, ports, shapes)


def sentence(module: nn.Module, method: str, before: tuple, after: tuple) -> str:
    """The line of a box about its layer beside the name: sizes of a matrix or a kernel; "" if there is none.

    Args:
      module: the layer.
      method: called.
      before: shape of the first input, without the batch; empty if there is none.
      after: of the output.
    """
    if isinstance(module, Dense):
        return f"{before[-1]} → {module.features}" if before else f"→ {module.features}"
    if isinstance(module, Embedding):
        if method == "attend":
            return "x Eᵀ, tied"
        return f"table of {module.entries:,} × {module.features}"
    if isinstance(module, ShortConvolution):
        return f"causal, {module.size} tokens, by channel"
    if isinstance(module, Convolution | TransposedConvolution):
        said = f"{module.size} × {module.size}, {before[-1] if before else '?'} → {module.features}"
        said += f", stride {module.stride}" if module.stride != 1 else ""
        groups = getattr(module, "groups", 1)
        said += ", by channel" if groups is None else (f", {groups} groups" if groups != 1 else "")
        dilation = getattr(module, "dilation", 1)
        return said + (f", dilation {dilation}" if dilation != 1 else "")
    if isinstance(module, AveragePool | MaxPool):
        stride = module.size if module.stride is None else module.stride
        return f"{module.size} × {module.size}, stride {stride}"
    return ""


def magnitude(count: int) -> str:
    """A number of parameters in three digits: "85.1 M"."""
    if count < 1000:
        return str(count)
    power = min(int(math.log10(count)) // 3, 4)
    scaled = count / 1000**power
    if scaled >= 999.5 and power < 4:
        scaled, power = scaled / 1000, power + 1
    digits = 0 if scaled >= 99.95 else (1 if scaled >= 9.995 else 2)
    return f"{scaled:.{digits}f}\u00a0{' kMBT'[power]}"
