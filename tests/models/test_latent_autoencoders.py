"""The autoencoders of latent diffusion: shapes at published sizes, what decoding undoes, likelihood, codes."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import arch_jax
from arch_jax.errors import UsageError
from arch_jax.layers.vision.unet_blocks import upsampled
from arch_jax.models.autoencoder.autoencoder_kl import AutoencoderKL
from arch_jax.models.autoencoder.vq_model import VQModel
from arch_jax.ops.latents import gaussian_kl
from arch_jax.ops.vector_quantisation import nearest_code_reference

TINY = {"resolution": 8, "channels": 1, "widths": (4, 6), "units": 1, "groups": 2}


def images(*sides, channels=1):
    draw = np.random.default_rng(0)
    return jnp.asarray(draw.normal(size=(2, *(sides or (8, 8)), channels)), jnp.float32)


def noisy(module, x):
    draw = np.random.default_rng(1)
    made = lambda leaf: jnp.asarray((leaf.ndim == 1) + 0.3 * draw.normal(size=leaf.shape), leaf.dtype)
    return jax.tree.map(made, jax.eval_shape(module.init, jax.random.key(0), x))


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def applied(module, variables, *arguments, method=None):
    """Compiled whole, once for all tests of the same module."""
    return module.apply(variables, *arguments, method=method)


@pytest.fixture(scope="module")
def kl():
    module = AutoencoderKL(latent=3, variance=0.25, **TINY)
    return module, noisy(module, images())


@pytest.fixture(scope="module")
def vq():
    module = VQModel(latent=3, codes=9, code_width=2, **TINY)
    return module, noisy(module, images())


@pytest.mark.parametrize(("name", "factor", "latent"), [("autoencoder-kl", 8, 4), ("autoencoder-kl-f16", 16, 16)])
def test_sides_are_divided_at_published_sizes(name, factor, latent):
    module = arch_jax.create(name)
    x = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32)
    (made, mean, log_variance), _ = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
    assert made.shape == x.shape
    assert mean.shape == log_variance.shape == (1, 64 // factor, 96 // factor, latent)
    assert mean.shape[1:] == module.latent_shape(x.shape[1:])


def test_doubling_is_nearest_neighbours():
    x = np.asarray(images(3, 5, channels=2))
    expected = np.stack([[[x[b, i // 2, j // 2] for j in range(10)] for i in range(6)] for b in range(2)])
    np.testing.assert_array_equal(upsampled(jnp.asarray(x)), expected)


def test_the_reconstruction_is_the_mean_decoded(kl):
    module, variables = kl
    x = images(6, 10)
    made, mean, log_variance = applied(module, variables, x)
    again, spread = applied(module, variables, x, method="encode")
    np.testing.assert_allclose(mean, again, atol=1e-6)
    np.testing.assert_allclose(log_variance, spread, atol=1e-6)
    np.testing.assert_allclose(made, applied(module, variables, mean, method="decode"), atol=1e-5)
    several = applied(module, variables, np.stack([mean, 2 * np.asarray(mean)]), method="decode")
    assert several.shape == (2, *x.shape)
    np.testing.assert_allclose(np.asarray(several)[0], made, atol=1e-5)


def test_scale_and_shift_change_no_number(kl):
    module, variables = kl
    moved = module.clone(scale=3.0, shift=1.0)
    for a, b in zip(applied(moved, variables, images()), applied(module, variables, images())):
        np.testing.assert_array_equal(a, b)


def test_the_logarithm_of_the_variance_is_kept_in_range(kl):
    module, variables = kl
    large = jax.tree.map(lambda leaf: np.float32(1e4) * np.asarray(leaf), variables["params"]["moments"])
    params = {**variables["params"], "moments": large}
    _, log_variance = applied(module, {"params": params}, images(), method="encode")
    assert (float(log_variance.min()), float(log_variance.max())) == (-30, 20)


@pytest.mark.thorough
def test_the_likelihood_is_normal_and_the_divergence_counts_every_place(kl):
    module, variables = kl
    x, noise = images(), np.random.default_rng(2).normal(size=(5, 2, 4, 4, 3)).astype(np.float32)
    likely, z, mean, log_variance = map(np.asarray, applied(module, variables, x, noise, method="draws"))
    np.testing.assert_allclose(z, mean + np.exp(log_variance / 2) * noise, atol=1e-5)
    made = np.asarray(applied(module, variables, z, method="decode"), np.float64)
    expected = stats.norm(made, 0.5).logpdf(np.asarray(x)).sum((2, 3, 4))
    np.testing.assert_allclose(likely, expected, rtol=1e-4)

    task = arch_jax.objective("variational", beta=2.0).with_model(module)
    batch = {"images": x, "labels": jnp.zeros(2, jnp.int32), "weights": jnp.ones(2)}
    loss = lambda task: jax.jit(lambda variables, key: task.loss("model", "main", variables, batch, key, 0))
    (total, count), (metrics, _) = loss(task)(variables, jax.random.key(1))
    kl = float(np.sum(jax.jit(gaussian_kl)(mean.reshape(2, -1), log_variance.reshape(2, -1))))
    assert float(metrics["kl"][0]) == pytest.approx(kl, rel=1e-5)
    assert float(total) == pytest.approx(float(metrics["reconstruction"][0]) + 2 * kl, rel=1e-5)
    assert float(count) == 2
    importance = arch_jax.objective("variational", bound="importance").with_model(module)
    assert np.isfinite(float(loss(importance)(variables, jax.random.key(1))[0][0]))


@pytest.mark.thorough
def test_what_is_shown_of_codes_that_are_images(kl):
    module, variables = kl
    batch = {"images": np.asarray(images()), "labels": np.zeros(2, np.int32), "weights": np.ones(2)}
    data = types.SimpleNamespace(low=-1.0, high=1.0, validation=lambda: [batch], shapes={"images": ((2, 8, 8, 1), "f")})
    task = arch_jax.objective("variational", show_images=2).with_model(module)
    task.check(data)
    shown = task.draw(variables, data, jax.random.key(0))
    assert set(shown) == {"reconstructions", "samples", "interpolations"}


@pytest.mark.thorough
def test_codes_say_everything_that_is_decoded(vq):
    module, variables = vq
    x = images(6, 10)

    # Programs of their own: within one, the compiler would compute once what is compared.
    apply = lambda method, *given: jax.tree.map(np.asarray, applied(module, variables, *given, method=method))
    made, encoded, nearest, chosen = apply("quantised", x)
    again = apply("encode", x)
    others = apply("decode", chosen), apply("decode_latents", apply("latents", x)), apply(None, x)
    codes = np.asarray(variables["params"]["codebook"]["codes"])
    np.testing.assert_array_equal(chosen, nearest_code_reference(encoded, codes))
    np.testing.assert_array_equal(nearest, codes[chosen])
    np.testing.assert_array_equal(chosen, again)
    assert chosen.shape == (2, 3, 5)
    for other in others:
        np.testing.assert_allclose(other, made, atol=1e-5)


@pytest.mark.thorough
def test_codes_may_follow_by_moving_averages():
    module = VQModel(latent=3, codes=9, average=0.5, **TINY)
    task = arch_jax.objective("vector_quantised").with_model(module)
    batch = {"images": images(), "labels": jnp.zeros(2, jnp.int32), "weights": jnp.ones(2)}

    @jax.jit
    def step(key):
        variables = task.init(key, batch)
        return variables, task.loss("model", "main", variables, batch, key, 0)

    variables, (_, (_, updates)) = step(jax.random.key(0))
    assert "codebook" not in variables["params"]
    before, after = (np.asarray(each["codebook"]["codebook"]["codes"]) for each in (variables, updates))
    assert np.abs(before - after).max() > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": 4}, r"widths is \(4, 6\) and groups is 4; expected multiples of the groups"),
        ({"widths": ()}, r"widths is \(\) and groups is 2"),
        ({"attention": (2,)}, r"attention is \(2,\); expected levels from 0 to 1"),
        ({"resolution": 9}, "resolution is 9, which 1 convolutions can't halve; expected a multiple of 2, such as 8"),
        ({"units": 0}, "units is 0; expected at least 1"),
        ({"scale": 0.0}, "scale is 0.0; expected a number above 0"),
    ],
)
@pytest.mark.parametrize("cls", [AutoencoderKL, VQModel])
def test_settings_that_are_refused(cls, settings, message):
    with pytest.raises(UsageError, match=message):
        cls(**{**TINY, **settings})


@pytest.mark.parametrize("sides", [(7, 8), (8, 7), (0, 8)])
def test_images_that_are_refused(kl, sides):
    message = rf"shape {sides[0]} x {sides[1]} x 1, .*multiples of 2 with 1 channels; expected such as"
    with pytest.raises(UsageError, match=message):
        kl[0].check((*sides, 1))
    if all(sides):
        with pytest.raises(UsageError, match=message):
            jax.eval_shape(kl[0].apply, kl[1], images(*sides))
    with pytest.raises(UsageError, match="expected such as 8 x 8 x 1"):
        kl[0].check((8, 8, 3))
