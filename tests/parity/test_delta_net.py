"""Delta networks against transformers' Qwen3-Next, whose linear layers are Gated DeltaNet, on the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.layers.mixers.delta_net import GatedDeltaNet
from arch_jax.ops.recurrence.matrix import delta_rule

torch = pytest.importorskip("torch", reason="parity needs torch: pip install arch-jax[parity]")
qwen = pytest.importorskip(
    "transformers.models.qwen3_next.modeling_qwen3_next",
    reason="parity needs transformers: pip install arch-jax[parity]",
)

BATCH, TIME, WIDTH = 2, 70, 24
KEY_HEADS, VALUE_HEADS, KEY, VALUE = 2, 4, 8, 6


@pytest.mark.parametrize("theirs", ["torch_recurrent_gated_delta_rule", "torch_chunk_gated_delta_rule"])
def test_the_rule(theirs):
    """Outputs, last state and gradients; 70 tokens are more than a chunk of 64."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=(BATCH, TIME, 2, *shape)).astype(np.float32)
    q, k, v = normal(KEY), normal(KEY), normal(VALUE)
    q, k = (y / np.linalg.norm(y, axis=-1, keepdims=True) for y in (q, k))
    beta, decay = 1 / (1 + np.exp(-normal())), -np.exp(normal() - 2)
    given = [torch.from_numpy(y).requires_grad_() for y in (q, k, v, decay, beta)]
    expected, end = getattr(qwen, theirs)(*given, output_final_state=True)
    weights = normal(VALUE)
    (expected * torch.from_numpy(weights)).sum().backward()

    def loss(q, k, v, decay, beta):
        y, state = delta_rule(q * KEY**-0.5, k, v, beta, decay)
        return jnp.sum(y * weights), (y, state)

    gradients, (y, state) = jax.jit(jax.grad(loss, tuple(range(5)), has_aux=True))(q, k, v, decay, beta)
    assert np.abs(expected.detach().numpy()).max() > 0.5
    np.testing.assert_allclose(y, expected.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(state.s, end.detach().numpy(), atol=1e-5)
    for ours, of_theirs in zip(gradients, given):
        np.testing.assert_allclose(ours, of_theirs.grad.numpy(), atol=2e-5)


def params_of(theirs):
    """Qwen's weights as ours: it keeps what belongs to one key together in one matrix."""
    w = {name: tensor.detach().numpy() for name, tensor in theirs.named_parameters()}
    ratio = VALUE_HEADS // KEY_HEADS
    joint = w["in_proj_qkvz.weight"].reshape(KEY_HEADS, -1, WIDTH)
    parts = np.split(joint, np.cumsum([KEY, KEY, ratio * VALUE]), axis=1)
    gates = np.split(w["in_proj_ba.weight"].reshape(KEY_HEADS, -1, WIDTH), 2, axis=1)
    names = ("query", "key", "value", "gate", "beta", "decay")
    kernels = {name: {"kernel": part.reshape(-1, WIDTH).T} for name, part in zip(names, (*parts, *gates))}
    return kernels | {
        "short_convolution": {"kernel": w["conv1d.weight"][:, 0].T},
        "a_log": w["A_log"],
        "decay_bias": w["dt_bias"],
        "norm_scale": w["norm.weight"],
        "output": {"kernel": w["out_proj.weight"].T},
    }


def test_the_layer():
    config = qwen.Qwen3NextConfig(
        hidden_size=WIDTH, linear_num_key_heads=KEY_HEADS, linear_num_value_heads=VALUE_HEADS,
        linear_key_head_dim=KEY, linear_value_head_dim=VALUE, linear_conv_kernel_dim=3, num_hidden_layers=1,
        rms_norm_eps=1e-5, layer_types=["linear_attention"],
    )  # fmt: skip
    theirs = qwen.Qwen3NextGatedDeltaNet(config, 0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    x = np.random.default_rng(1).normal(size=(BATCH, TIME, WIDTH)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x)).numpy()
    ours = GatedDeltaNet(
        heads=KEY_HEADS, value_heads=VALUE_HEADS, head_size=KEY, value_size=VALUE, convolution=3, norm_epsilon=1e-5
    )
    params, x = jax.tree.map(jnp.asarray, (params_of(theirs), x))
    shapes = lambda tree: jax.tree.map(np.shape, tree)
    assert shapes(params) == shapes(jax.eval_shape(ours.init, jax.random.key(0), x)["params"])
    largest = np.abs(expected).max()
    assert largest > 0.5
    y = jax.jit(ours.apply)({"params": params}, x)[0]
    np.testing.assert_allclose(y, expected, atol=1e-5 * max(1, largest))
