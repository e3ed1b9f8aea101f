"""Attention mechanisms against transformers' layers, on random tiny weights: latent attention, Longformer, BigBird."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.layers.mixers.latent_attention import LatentAttention
from arch_jax.ops.attention.dot_product import attention
from arch_jax.ops.attention.patterns import BigBird, Longformer

torch = pytest.importorskip("torch", reason="parity needs torch: pip install arch-jax[parity]")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install arch-jax[parity]")

WIDTH, TIME = 24, 13


@pytest.mark.parametrize("query_rank", [None, 10])
@pytest.mark.parametrize("interleave", [False, True])
def test_latent_attention(query_rank, interleave):
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as theirs

    heads, kv_rank, head_size, rope_size, value_size = 3, 7, 6, 4, 5
    config = transformers.DeepseekV3Config(
        hidden_size=WIDTH, num_attention_heads=heads, num_key_value_heads=heads, q_lora_rank=query_rank,
        kv_lora_rank=kv_rank, qk_nope_head_dim=head_size, qk_rope_head_dim=rope_size, v_head_dim=value_size,
        rope_interleave=interleave, attention_bias=True, attn_implementation="eager", max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    module = theirs.DeepseekV3Attention(config, 0).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-0.6, 0.6)
    x = torch.randn(2, TIME, WIDTH)
    place = theirs.DeepseekV3RotaryEmbedding(config)(x, torch.arange(TIME)[None])
    hidden = torch.full((TIME, TIME), -1e9).triu(1)[None, None]
    with torch.no_grad():
        expected = module(x, place, hidden)[0].numpy()

    read = {name: parameter.detach().numpy() for name, parameter in module.named_parameters()}
    # Pairs that lie side by side become pairs that lie half a head apart.
    order = np.concatenate([np.arange(0, rope_size, 2), np.arange(1, rope_size, 2)])
    order = order if interleave else np.arange(rope_size)

    def dense(name):
        bias = {"bias": read[f"{name}.bias"]} if f"{name}.bias" in read else {}
        return {"kernel": read[f"{name}.weight"].T, **bias}

    def rotated(x, parts):
        """The last `rope_size` of every part's features, in our order."""
        x = x.reshape(*x.shape[:-1], parts, -1)
        x = np.concatenate([x[..., :-rope_size], x[..., -rope_size:][..., order]], axis=-1)
        return x.reshape(*x.shape[:-2], -1)

    query = dense("q_proj" if query_rank is None else "q_b_proj")
    up = dense("kv_b_proj")["kernel"].reshape(kv_rank, heads, head_size + value_size)
    params = {
        "query": {name: rotated(x, heads) for name, x in query.items()},
        "key_value_down": {name: rotated(x, 1) for name, x in dense("kv_a_proj_with_mqa").items()},
        "key_value_norm": {"scale": read["kv_a_layernorm.weight"]},
        "key": {"kernel": up[..., :head_size].reshape(kv_rank, -1)},
        "value": {"kernel": up[..., head_size:].reshape(kv_rank, -1)},
        "output": dense("o_proj"),
    }
    if query_rank is not None:
        params |= {"query_down": dense("q_a_proj"), "query_norm": {"scale": read["q_a_layernorm.weight"]}}
    ours = LatentAttention(
        heads, query_rank, kv_rank, head_size, rope_size, value_size, bias=True, causal=True, initial_std=0.02
    )
    variables = {"params": jax.tree.map(jnp.asarray, params)}
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(
        jnp.shape, jax.eval_shape(ours.init, jax.random.key(0), jnp.zeros((2, TIME, WIDTH)))
    )
    whole, _ = ours.apply(variables, jnp.asarray(x.numpy()))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(whole, expected, atol=1e-5)
    state = ours.initial_state(2, TIME, WIDTH)
    decoded, _ = ours.apply(variables, jnp.asarray(x.numpy()), None, state)
    np.testing.assert_allclose(decoded, expected, atol=1e-5)


def test_longformer():
    """Their global tokens have projections of their own; with the same weights in both, theirs is our pattern."""
    from transformers.models.longformer import modeling_longformer as theirs

    heads, window, global_tokens, time = 2, 4, 2, 16
    config = transformers.LongformerConfig(hidden_size=WIDTH, num_attention_heads=heads, attention_window=[window])
    torch.manual_seed(0)
    module = theirs.LongformerSelfAttention(config, 0).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-0.6, 0.6)
        for name in ("query", "key", "value"):
            getattr(module, f"{name}_global").load_state_dict(getattr(module, name).state_dict())
    x = torch.randn(2, time, WIDTH)
    is_global = torch.zeros(2, time, dtype=torch.bool)
    is_global[:, :global_tokens] = True
    with torch.no_grad():
        expected = module(
            x,
            attention_mask=torch.where(is_global, 10000.0, 0.0),
            is_index_masked=torch.zeros_like(is_global),
            is_index_global_attn=is_global,
            is_global_attn=True,
        )[0].numpy()
        q, k, v = (
            jnp.asarray(getattr(module, name)(x).numpy()).reshape(2, time, heads, -1)
            for name in ("query", "key", "value")
        )
    ours = attention(q, k, v, pattern=Longformer(window, global_tokens)).reshape(2, time, WIDTH)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_bigbird():
    """Outside of training theirs draws nothing new: every "random" block is the first, which is global anyway."""
    from transformers.models.big_bird import modeling_big_bird as theirs

    heads, block, time = 2, 4, 32
    config = transformers.BigBirdConfig(
        hidden_size=WIDTH,
        num_attention_heads=heads,
        block_size=block,
        num_random_blocks=1,
        max_position_embeddings=time,
    )
    torch.manual_seed(0)
    module = theirs.BigBirdBlockSparseAttention(config, seed=0).eval()
    x = torch.randn(2, time, WIDTH)
    ones = torch.ones(2, time)
    masks = theirs.BigBirdModel.create_masks_for_block_sparse_attn(ones, block)
    blocked, band, from_mask, to_mask = masks
    with torch.no_grad():
        _, weights = module(
            x, band_mask=band, from_mask=from_mask, to_mask=to_mask, from_blocked_mask=blocked, to_blocked_mask=blocked
        )
    seen = weights.numpy().max(axis=(0, 1)) > 0
    np.testing.assert_array_equal(seen, BigBird(block, 3, 2, 0).mask(time, time))
