"""The game of generator and discriminator: its value, its losses, its measures."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.evaluation.mode_coverage import modes
from arch_jax.models.gan.gan import GAN, Generator


def loss_of(it, *given):
    """The loss, compiled whole: op by op, every small operation would be compiled on its own."""
    player, *rest = given
    return jax.jit(it.loss, static_argnums=(0, 1))(player, "main", *rest, 0)


def evaluated(it, *given):
    """The evaluation, compiled whole."""
    return jax.jit(it.evaluate)(*given)


class Known(nn.Module):
    """A game whose discriminator is the best one between two normal distributions, which `shift` sets apart."""

    shift: float = 0.0
    generator: nn.Module = Generator(latent=1, features=1)

    def generate(self, latent, train=False):
        return latent + self.shift

    def score(self, x, train=False):
        """log p(x) / q(x) of N(0, 1) against N(shift, 1)."""
        return (self.shift**2 / 2 - self.shift * x)[:, 0]

    def __call__(self, latent, train=False):
        return self.score(self.generate(latent))


def game(model, **fields):
    return arch_jax.objective("adversarial", **fields).with_model(model)


def value(pair):
    return float(pair[0] / pair[1])


def real(count=4000):
    return {"x": jax.random.normal(jax.random.key(9), (count, 1))}


def test_value_at_the_optimum():
    """Equal distributions, and a discriminator that can't tell them: V = -log 4 (theorem 1)."""
    task = game(Known(shift=0.0))
    assert value(evaluated(task, {}, real())["loss"]) == pytest.approx(-math.log(4), rel=1e-6)
    (loss, _), (metrics, _) = (lambda r: (r[0], r[1]))(loss_of(task, "discriminator", {}, real(), jax.random.key(0)))
    assert float(loss) / 4000 == pytest.approx(math.log(4), rel=1e-6)
    assert set(metrics) == {"loss", "accuracy"}


def test_value_is_the_divergence():
    """With the best discriminator V = -log 4 + 2 JSD (theorem 1); JSD of N(0, 1) and N(2, 1) by quadrature."""
    x = np.linspace(-10, 12, 20001)
    p, q = (np.exp(-((x - m) ** 2) / 2) / math.sqrt(2 * math.pi) for m in (0, 2))
    divergence = sum(np.trapezoid(f * np.log(2 * f / (p + q)), x) for f in (p, q)) / 2
    task = game(Known(shift=2.0))
    assert value(evaluated(task, {}, real(200_000))["loss"]) == pytest.approx(-math.log(4) + 2 * divergence, abs=0.01)


def test_losses_are_those_of_the_paper():
    model = GAN()
    task, batch, key = game(model), {"x": jax.random.normal(jax.random.key(1), (16, 2))}, jax.random.key(2)
    variables = jax.jit(task.init)(jax.random.key(0), batch)
    noise, _ = jax.random.split(key)
    latent = jax.random.normal(noise, (16, 2))
    options = {"train": True, "method": "generate", "mutable": ["batch_stats"]}
    made, _ = jax.jit(functools.partial(model.apply, **options))(variables, latent)
    score = jax.jit(functools.partial(model.apply, method="score"))
    d_real, d_made = (1 / (1 + np.exp(-np.asarray(score(variables, x), np.float64))) for x in (batch["x"], made))
    expected = {
        ("discriminator", False): -np.mean(np.log(d_real) + np.log(1 - d_made)),
        ("generator", False): -np.mean(np.log(d_made)),
        ("generator", True): np.mean(np.log(1 - d_made)),
    }
    for (player, saturating), number in expected.items():
        of = game(model, saturating=saturating).loss
        pair, _ = jax.jit(of, static_argnums=(0, 1))(player, "main", variables, batch, key, 0)
        assert value(pair) == pytest.approx(float(number), rel=1e-5), (player, saturating)


def test_players_own_their_parameters():
    task = game(GAN(), discriminator_steps=3)
    variables = jax.jit(task.init)(jax.random.key(0), {"x": jnp.zeros((4, 2))})
    owned = {player.name: player.owns for player in task.players}
    assert {name for names in owned.values() for name in names} == set(variables["params"])
    assert {player.name: player.every for player in task.players} == {"discriminator": 1, "generator": 3}


def test_modes_are_counted_within_three_deviations():
    centres = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    points = jnp.array([[0.29, 0.0], [1.0, 0.31], [0.02, 0.01], [5.0, 5.0]])
    found, (near, count) = modes(points, centres, jnp.float32(0.1))
    assert found.tolist() == [True, False, False]
    assert (float(near), float(count)) == (2, 4)


def test_wrong_settings():
    with pytest.raises(arch_jax.UsageError, match="discriminator_steps is 0; expected at least 1"):
        game(GAN(), discriminator_steps=0)
    with pytest.raises(arch_jax.UsageError, match=r"model.generator.features is 3, but the data's points have 2"):
        game(GAN(generator=Generator(features=3))).check(arch_jax.Ring().load())
    with pytest.raises(arch_jax.UsageError, match="hidden is 0; expected at least 1"):
        Generator(hidden=(0,))
