"""Losses, metrics and outputs that layers sow: collected under every kind of stack, and in training alone."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.errors import UsageError
from arch_jax.fields import component
from arch_jax.layers.dense import Dense
from arch_jax.layers.mixers.attention import Attention
from arch_jax.layers.sowing import sow_loss, sow_metric
from arch_jax.layers.transformer.decoder import Decoder
from arch_jax.train.state import initial_state
from arch_jax.train.step import make_step

FACTOR = 0.5


@component("test_sowing_feed_forward", kind="feed_forward")
class Sowing(nn.Module):
    """A linear layer that asks its outputs to be small, and counts real tokens. Padding counts nowhere."""

    name_of_loss: str = "size"

    @nn.compact
    def __call__(self, x, segment_ids=None, train=False):
        y = Dense(x.shape[-1], initial_std=0.3, name="linear")(x)
        real = jnp.ones(x.shape[:2]) if segment_ids is None else (segment_ids > 0).astype(jnp.float32)
        sow_loss(self, self.name_of_loss, FACTOR * jnp.sum(jnp.square(y) * real[..., None]), real.sum())
        sow_metric(self, "real", real.sum(), real.size)
        return y


def decoder(**changes) -> Decoder:
    settings = {"vocabulary": 7, "depth": 2, "width": 8, "mixer": Attention(heads=2), "feed_forward": Sowing()}
    return Decoder(**settings | changes)


@pytest.fixture(scope="module")
def batch():
    stream = np.random.default_rng(0).integers(0, 7, (4, 6)).astype(np.int32)
    ids = np.ones((4, 5), np.int32)
    ids[1, 3:] = 0
    rows = {"tokens": stream[:, :-1], "targets": stream[:, 1:], "weights": (ids > 0).astype(np.float32)}
    return jax.tree.map(jnp.asarray, rows | {"segment_ids": ids})


@pytest.fixture(scope="module")
def variables(batch):
    """Of unrolled layers; and the same stacked, as a scan takes them."""
    apart = jax.jit(decoder(scan=False).init)(jax.random.key(1), batch["tokens"])
    assert set(apart) == {"params"}, "what is sown at initialisation would be a part of the model"
    tree = dict(apart["params"])
    stack = dict(tree["stack"])
    layers = [stack.pop(f"layer_{i}") for i in range(2)]
    stack["layers"] = {"block_0": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}
    return apart, {"params": tree | {"stack": stack}}


def loss(model, variables, batch):
    task = arch_jax.objective("next_token").with_model(model)
    run = lambda p: (lambda out: (out[0][0], out))(
        task.total_loss("model", "main", {"params": p}, batch, jax.random.key(0), 0)
    )
    (_, out), slope = jax.jit(jax.value_and_grad(run, has_aux=True))(variables["params"])
    return out, slope


def test_scanned_rematerialised_and_unrolled_layers_report_the_same(batch, variables):
    apart, stacked = variables
    (expected, (told, updates)), slope = loss(decoder(scan=False), apart, batch)
    assert updates == {}
    assert {"loss", "size", "real"} <= told.keys()
    for changes, given in (({}, stacked), ({"remat": True}, stacked), ({"remat": True, "scan": False}, apart)):
        (found, (metrics, updates)), gradient = loss(decoder(**changes), given, batch)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        for name in told:
            np.testing.assert_allclose(metrics[name], told[name], rtol=1e-5)
        total = lambda tree: sum(float(jnp.sum(jnp.square(leaf))) for leaf in jax.tree.leaves(tree))
        np.testing.assert_allclose(total(gradient), total(slope), rtol=1e-5)
        assert updates == {}


def test_the_sum_is_what_the_layers_sowed(batch, variables):
    """The main loss, plus each layer's mean over real tokens; padding counts nowhere."""
    apart, _ = variables
    model = decoder(scan=False)
    (total, weight), (told, _) = loss(model, apart, batch)[0]
    seen = jax.jit(functools.partial(model.apply, capture_intermediates=True, mutable=["intermediates"]))
    _, kept = seen(apart, batch["tokens"], segment_ids=batch["segment_ids"])
    real = batch["segment_ids"] > 0
    expected = 0.0
    for i in range(2):
        y = kept["intermediates"]["stack"][f"layer_{i}"]["feed_forward"]["__call__"][0]
        expected += FACTOR * float(np.sum(np.square(y)[np.asarray(real)]) / real.sum())
    np.testing.assert_allclose(told["size"][0] / told["size"][1], expected, rtol=1e-5)
    np.testing.assert_allclose(total, told["loss"][0] + weight * expected, rtol=1e-5)
    np.testing.assert_allclose(told["real"][0] / told["real"][1], float(real.mean()), rtol=1e-6)


def test_evaluation_leaves_them_out(batch, variables):
    apart, _ = variables
    task = arch_jax.objective("next_token").with_model(decoder(scan=False))
    (_, (told, _)), _ = loss(decoder(scan=False), apart, batch)
    evaluated = jax.jit(task.evaluate)(apart, batch)
    np.testing.assert_allclose(evaluated["loss"], told["loss"], rtol=1e-5)
    assert not {"size", "real"} & evaluated.keys()


def test_training_minimises_them_and_keeps_no_collection(batch):
    """With micro-batches too: each one's mean counts with its main loss's weight."""
    rate = arch_jax.Optimizer("sgd", learning_rate=0.1, schedule="constant")
    experiment = arch_jax.Experiment(decoder(), arch_jax.objective("next_token"), data=None, optimizer=rate, steps=3)
    state = jax.jit(lambda b: initial_state(experiment, b))(batch)
    assert state.others == {}
    after, metrics = jax.jit(make_step(experiment))(state, batch)
    assert after.others == {}
    (_, _), slope = loss(decoder(), {"params": state.parameters["model"]}, batch)
    weight = batch["weights"].sum()
    norm = np.sqrt(sum(float(jnp.sum(jnp.square(leaf))) for leaf in jax.tree.leaves(slope)))
    np.testing.assert_allclose(metrics["gradient_norm"][0], norm / weight, rtol=1e-5)
    assert float(metrics["size"][0] / metrics["size"][1]) > 0
    halves = dataclasses.replace(experiment, accumulate=2)
    _, metrics = jax.jit(make_step(halves))(state, batch)
    parts = []
    for rows in (np.s_[:2], np.s_[2:]):
        half = {name: array[rows] for name, array in batch.items()}
        parts.append(loss(decoder(), {"params": state.parameters["model"]}, half)[0])
    expected = sum(part[1][0]["size"][0] for part in parts) / weight
    np.testing.assert_allclose(metrics["size"][0] / metrics["size"][1], expected, rtol=1e-5)


def test_a_name_that_the_objective_has_is_refused(batch, variables):
    apart, _ = variables
    with pytest.raises(UsageError, match="a layer sows 'loss', which the objective has a metric of"):
        loss(decoder(scan=False, feed_forward=Sowing("loss")), apart, batch)


def test_sums_are_scalars():
    class Wrong(nn.Module):
        @nn.compact
        def __call__(self, x):
            sow_loss(self, "wide", x)
            return x

    with pytest.raises(UsageError, match=r"the sown 'wide' has shape \(3,\); expected a scalar sum"):
        Wrong().apply({}, jnp.ones(3), mutable=["losses"])
