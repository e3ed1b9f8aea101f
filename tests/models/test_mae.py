"""The masked autoencoder's identities: what is masked has no influence, and what becomes of the encoder."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.layers.mixers.attention import Attention
from arch_jax.models.transformer.mae import MAE, classifier_of
from arch_jax.ops.convolution.patches import Masking, patches, random_masking, unpatchify

SETTINGS = {
    "resolution": 16,
    "channels": 2,
    "patch": 4,
    "depth": 2,
    "width": 12,
    "mixer": Attention(heads=2, bias=True, causal=True),  # not causal here, whatever it says
    "decoder_depth": 1,
    "decoder_width": 8,
    "decoder_mixer": Attention(heads=2, bias=True),
}


def images(height=16, width=16):
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, height, width, 2)), jnp.float32)


def noise(count=16):
    return jnp.asarray(np.random.default_rng(2).uniform(size=(2, count)), jnp.float32)


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def applied(module, variables, *arguments, method=None):
    """Compiled whole, once for all tests of the same module."""
    return module.apply(variables, *arguments, method=method)


@functools.cache
def initial(module):
    return jax.jit(module.init)(jax.random.key(0), images())


def noisy(module, x):
    variables = initial(module)
    draw = np.random.default_rng(1)
    added = lambda leaf: jnp.asarray(np.asarray(leaf) + 0.3 * draw.normal(size=leaf.shape).astype(np.float32))
    return jax.tree.map(added, variables)


@pytest.mark.thorough
def test_masked_pixels_have_no_influence():
    """The Jacobian of encoder and decoder in them is exactly 0; in each visible patch it is not."""
    module, x = MAE(**SETTINGS), images()
    variables, masking = noisy(module, x), random_masking(noise(), 0.75)
    encoded = lambda x: module.apply(variables, x, masking, method="encode")
    predicted = lambda x: module.apply(variables, x, noise(), method="masked")[0]
    hidden = np.asarray(masking.mask)
    for function in (encoded, predicted):
        of_pixel = jax.jit(lambda x, f=function: jnp.abs(jax.jacrev(f)(x)).max(axis=(0, 1, 2)))
        of_patch = np.asarray(patches(of_pixel(x), 4)).max(-1)
        np.testing.assert_array_equal(of_patch[hidden], 0)
        assert of_patch[~hidden].min() > 1e-4
    assert jax.eval_shape(encoded, x).shape == (2, 1 + 4, 12)


def test_the_order_of_the_visible_does_not_matter():
    """Tokens carry their positions: where all are visible, a masking only shuffles them."""
    module, x = MAE(**SETTINGS), images()
    variables = noisy(module, x)
    whole = np.asarray(applied(module, variables, x, method="encode"))
    order = np.argsort(noise(), axis=1)
    everything = Masking(*map(jnp.asarray, (order, np.argsort(order, axis=1), np.zeros((2, 16), bool))))
    shuffled = np.asarray(applied(module, variables, x, everything, method="encode"))
    back = np.take_along_axis(shuffled[:, 1:], np.asarray(everything.restore)[:, :, None], axis=1)
    np.testing.assert_allclose(back, whole[:, 1:], atol=1e-5)
    np.testing.assert_allclose(shuffled[:, 0], whole[:, 0], atol=1e-5)
    decode = lambda features, masking: applied(module, variables, features, masking, method="decode")
    np.testing.assert_allclose(decode(shuffled, everything), decode(whole, None), atol=1e-5)


def test_a_masked_place_knows_its_position_and_what_attention_brings():
    """Without the decoder's layers, predictions of masked places say nothing of the image, but differ by place."""
    module, x = MAE(**SETTINGS), images()
    params = noisy(module, x)["params"]
    params = params | {"decoder_stack": jax.tree.map(jnp.zeros_like, params["decoder_stack"])}
    rows, masking = applied(module, {"params": params}, x, noise(), method="masked")
    others, _ = applied(module, {"params": params}, 2 * np.asarray(x), noise(), method="masked")
    mask = np.asarray(masking.mask)
    np.testing.assert_array_equal(np.asarray(rows)[mask], np.asarray(others)[mask])
    assert np.abs(np.diff(np.asarray(rows)[0][mask[0]], axis=0)).max(-1).min() > 1e-3


def test_a_reconstruction_is_the_predictions_in_their_places():
    module, x = MAE(**SETTINGS), images(8, 20)  # patches of another grid than the model's own
    variables = noisy(module, images())
    # Programs of their own: within one, the compiler would compute once what is compared.
    predicted, _ = applied(module, variables, x, noise(10), method="masked")
    decode = jax.jit(lambda features: module.apply(variables, features, None, (2, 5), method="decode"))
    seen = decode(applied(module, variables, x, method="encode"))
    for rows, made in ((predicted, applied(module, variables, x, noise(10))), (seen, applied(module, variables, x))):
        np.testing.assert_array_equal(made, unpatchify(rows, 4, 8, 20))


@pytest.mark.parametrize("scan", [True, pytest.param(False, marks=pytest.mark.thorough)])
def test_the_encoder_becomes_a_classifier(scan):
    module, x = MAE(**SETTINGS, scan=scan), images()
    variables = noisy(module, x)
    vit, kept = classifier_of(module, variables, jax.random.key(0), classes=7)
    expected = jax.eval_shape(vit.init, jax.random.key(0), x)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), kept) == jax.tree.map(lambda a: (a.shape, a.dtype), expected)
    capture = functools.partial(vit.apply, capture_intermediates=lambda m, _: m.name == "final_norm")
    # Two programs: within one, the compiler would compute once what is compared.
    logits, seen = jax.tree.map(np.asarray, jax.jit(capture)(kept, x))
    features = np.asarray(applied(module, variables, x, method="encode"))
    np.testing.assert_array_equal(seen["intermediates"]["final_norm"]["__call__"][0], features)
    np.testing.assert_allclose(logits, features[:, 0] @ np.asarray(kept["params"]["logits"]["kernel"]), atol=1e-6)


def test_what_is_refused():
    with pytest.raises(
        UsageError, match="resolution is 18 and patch is 4; expected a multiple of the patch, such as 16"
    ):
        MAE(**SETTINGS | {"resolution": 18})
    with pytest.raises(UsageError, match=r"masking_ratio is 0\.99 of 16 patches; expected a fraction that masks some"):
        MAE(**SETTINGS, masking_ratio=0.99)
    with pytest.raises(UsageError, match="decoder_width is 10, and sine-cosine positions need a multiple of 4"):
        MAE(**SETTINGS | {"decoder_width": 10})
    with pytest.raises(UsageError, match=r"have 3 channels and the model predicts 2; set model\.channels=3"):
        MAE(**SETTINGS).check((16, 16, 3))
    with pytest.raises(UsageError, match="18 x 16 pixels, which patches of 4 don't divide"):
        MAE(**SETTINGS).check((18, 16, 2))
