"""Weights of `torch.nn.RNN`, `LSTM` and `GRU` <-> parameters of our mixers, one layer at a time.

Theirs are stored for a product from the left and have two biases, one with each matrix, of which only the sum counts
(but for the GRU's candidate, whose second bias the reset gate multiplies). A stack of layers is several mixers here.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from arch_jax.errors import UsageError, nearest
from arch_jax.layers.mixers.rnn.bidirectional import Bidirectional
from arch_jax.layers.mixers.rnn.gru import GRU
from arch_jax.layers.mixers.rnn.lstm import LSTM
from arch_jax.layers.mixers.rnn.rnn import RNN

#: Our biases, in the order of PyTorch's gates.
_BIASES = {RNN: ("bias",), LSTM: ("bias_i", "bias_f", "bias_g", "bias_o"), GRU: ("bias_r", "bias_z", "bias_n")}


def from_torch(mixer: nn.Module, tensors: Mapping[str, Any], layer: int = 0) -> dict[str, Any]:
    """Parameters of `mixer` from the `state_dict()` of a PyTorch layer.

    Args:
      mixer: an RNN, LSTM or GRU, or a `Bidirectional` around one.
      tensors: by PyTorch's names: weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0 (with "_reverse" for the second
        direction); biases that are absent are 0.
      layer: which one of a stack.

    Returns:
      The mixer's parameters without "output", the matrix back to the width, which PyTorch's layers don't have.

    Raises:
      UsageError: a mixer that PyTorch has no layer for, a missing tensor, or one of the wrong number of gates.
    """
    if isinstance(mixer, Bidirectional):
        return {
            "forward": _read(mixer.mixer, tensors, f"l{layer}"),
            "backward": _read(mixer.mixer, tensors, f"l{layer}_reverse"),
        }
    return _read(mixer, tensors, f"l{layer}")


def to_torch(mixer: nn.Module, params: Mapping[str, Any], layer: int = 0) -> dict[str, np.ndarray]:
    """Tensors for a PyTorch layer's `load_state_dict` from the parameters of `mixer`: the inverse of `from_torch`.

    Our one bias becomes the first of PyTorch's two, and the second is 0 (but for the GRU's candidate).

    Raises:
      UsageError: a mixer that PyTorch has no layer for.
    """
    if isinstance(mixer, Bidirectional):
        return _write(mixer.mixer, params["forward"], f"l{layer}") | _write(
            mixer.mixer, params["backward"], f"l{layer}_reverse"
        )
    return _write(mixer, params, f"l{layer}")


def _names(mixer: nn.Module) -> tuple[str, ...]:
    """Our biases in PyTorch's order, for a mixer that PyTorch has a layer for."""
    if isinstance(mixer, GRU) and mixer.reset != "after":
        raise UsageError(f"reset of gru is {mixer.reset!r}; expected 'after', which is PyTorch's")
    if isinstance(mixer, LSTM) and mixer.peepholes:
        raise UsageError("lstm has peepholes, which PyTorch's has not; expected peepholes=False")
    if type(mixer) not in _BIASES:
        raise UsageError(f"PyTorch has no layer for {type(mixer).__name__}; expected RNN, LSTM or GRU")
    return _BIASES[type(mixer)]


def _read(mixer, tensors, suffix):
    names = _names(mixer)

    def read(name, shape=None):
        full = f"{name}_{suffix}"
        if full not in tensors and shape is not None:
            return np.zeros(shape, np.float32)
        if full not in tensors:
            raise UsageError(f"the tensor {full!r} is missing{nearest(full, tensors)}")
        return np.asarray(tensors[full])

    w, u = read("weight_ih"), read("weight_hh")
    gates, hidden = len(names), u.shape[-1]
    for name, tensor in (("weight_ih", w), ("weight_hh", u)):
        if tensor.shape[0] != gates * hidden:
            raise UsageError(
                f"the tensor '{name}_{suffix}' has {tensor.shape[0]} rows; expected {gates * hidden}, "
                f"{gates} times the {hidden} units"
            )
    first, second = (np.split(read(name, (gates * hidden,)), gates) for name in ("bias_ih", "bias_hh"))
    biases = {name: a + b for name, a, b in zip(names, first, second)}
    if isinstance(mixer, GRU):
        biases |= {"bias_n": first[2], "bias_u": second[2]}
    return jax.tree.map(jnp.asarray, {"input": {"kernel": w.T}, "recurrent": {"kernel": u.T}} | biases)


def _write(mixer, params, suffix):
    biases = [np.asarray(params[name]) for name in _names(mixer)]
    second = [np.zeros_like(bias) for bias in biases]
    if isinstance(mixer, GRU):
        second[2] = np.asarray(params["bias_u"])
    return {
        f"weight_ih_{suffix}": np.asarray(params["input"]["kernel"]).T,
        f"weight_hh_{suffix}": np.asarray(params["recurrent"]["kernel"]).T,
        f"bias_ih_{suffix}": np.concatenate(biases),
        f"bias_hh_{suffix}": np.concatenate(second),
    }
