"""Models scaled to a budget: counts met, shapes kept, and what can't be met refused with the nearest count."""

import dataclasses
import math

import flax.linen as nn
import jax
import pytest

from arch_jax import create, fields, objective, registry
from arch_jax.errors import UsageError
from arch_jax.experiment import Experiment
from arch_jax.flops import count_flops
from arch_jax.layers.mixers.attention import Attention
from arch_jax.layers.mixers.rnn.lstm import LSTM
from arch_jax.layers.norms import LayerNorm
from arch_jax.layers.transformer.feed_forward import SwiGLU
from arch_jax.layers.transformer.positions import RoPE
from arch_jax.study.sizing import parameters, scaled, step_flops
from arch_jax.train.state import initial_state
from arch_jax.train.step import make_step

BATCH = {
    name: jax.ShapeDtypeStruct((2, 32), dtype)
    for name, dtype in {"tokens": "int32", "targets": "int32", "weights": "float32"}.items()
}


def counts(module, count=parameters):
    """How models like this one are counted for a batch of two rows."""
    experiment = Experiment(module, objective("next_token"), data=None)
    return lambda module: count(dataclasses.replace(experiment, model=module), BATCH)


def formula(module):
    """The parameters of a decoder: tables, and for each layer its mixer, feed-forward and norms."""
    width = module.width
    norm = width * (2 if isinstance(module.norm, LayerNorm) else 1)
    total = module.vocabulary * width + norm + (0 if module.position is None else module.position.length * width)
    for i in range(module.depth):
        mixer, feed_forward = module.mixers[i % len(module.mixers)], module.feed_forward
        if isinstance(mixer, LSTM):
            hidden = mixer.hidden or width
            total += 4 * hidden * (width + hidden + 1) + (hidden * width if hidden != width else 0)
        else:
            heads, kv_heads, head_size = mixer.sizes(width)
            total += 2 * width * head_size * (heads + kv_heads)
            total += (head_size * (heads + 2 * kv_heads) + width) * mixer.bias
        total += norm
        if feed_forward is not None:
            gated = isinstance(feed_forward, SwiGLU)
            hidden = feed_forward.hidden or (-(-(8 * width // 3) // 32) * 32 if gated else 4 * width)
            total += (3 if gated else 2) * width * hidden + norm + (hidden + width if not gated else 0)
    return total


def language_model(name):
    """A registered model over bytes, as it would be fitted to a text."""
    module = create(name, vocabulary=256)
    return module if module.position is None else fields.override(module, {"position.length": 64})


@pytest.mark.parametrize("target", [1e5, 1e8, *(pytest.param(x, marks=pytest.mark.thorough) for x in (1e6, 1e10))])
@pytest.mark.parametrize("name", ["gpt", "gpt2", "lstm"])
def test_budgets_of_parameters_are_met(name, target):
    module, calls = language_model(name), []
    found = scaled(module, target, lambda module: calls.append(module) or formula(module))
    assert len(calls) < 40
    assert abs(found.value / target - 1) <= 0.02
    assert fields.override(module, found.changes) == found.module
    # The model can be built, and the registry counts the same.
    folded = found.module.clone(scan=True)
    assert registry.count(registry.entry(name).abstract_variables(folded)["params"]) == found.value
    shape = found.module.width / found.module.depth / (module.width / module.depth)
    assert 1 / 2 <= shape <= 2
    if target >= 1e8:
        assert abs(math.log2(shape)) < 0.15
    if name == "lstm":
        assert set(found.changes) == {"depth", "width"}
        return
    heads, kv_heads, head_size = found.module.mixer.sizes(found.module.width)
    assert heads * head_size == found.module.width
    own_heads, own_kv_heads, own_size = module.mixer.sizes(module.width)
    assert heads / kv_heads == own_heads / own_kv_heads
    assert head_size % 2 == 0 or module.mixer.rope is None
    fewest = heads == own_heads // own_kv_heads
    assert abs(math.log2(head_size / own_size)) <= 0.5 or (fewest and head_size < own_size)


@pytest.mark.thorough
def test_a_budget_of_flops_is_met():
    module = create("lstm", vocabulary=64)
    measure = counts(module, step_flops)
    found = scaled(module, 3e8, measure, unit="FLOPs a step", tolerance=0.05)
    assert abs(found.value / 3e8 - 1) <= 0.05
    # A training step takes six operations for each weight and token; biases and norms, which take none, are few.
    assert found.value / (6 * 2 * 32 * formula(found.module)) == pytest.approx(1, abs=0.01)


def test_equal_layers_are_counted_as_if_they_were_apart():
    module = fields.override(registry.entry("gpt").tiny(), {"depth": 3})
    experiment = Experiment(module, objective("next_token"), data=None)
    state = jax.eval_shape(lambda b: initial_state(experiment, b), BATCH)
    assert count_flops(make_step(experiment), state, BATCH).products == step_flops(experiment, BATCH)
    assert registry.count(state.parameters) == parameters(experiment, BATCH)


def test_a_model_that_meets_the_budget_stays_as_it_is():
    module, calls = create("gpt"), []
    found = scaled(module, 1.01 * formula(module), lambda module: calls.append(module) or formula(module))
    assert (found.changes, found.module, len(calls)) == ({}, module, 1)


def test_a_tighter_tolerance():
    found = scaled(create("gpt"), 1.23e6, formula, tolerance=0.003)
    assert abs(found.value / 1.23e6 - 1) <= 0.003
    assert "feed_forward.hidden" in found.changes


MIXTURES = {
    "multi-query": {"mixer.kv_heads": 1},
    "heads of a fixed size": {"mixer.head_size": 16},
    "hidden layers of a fixed width": {"feed_forward.hidden": 500},
    "a hybrid": {"depth": 6, "mixer": (Attention(heads=6, rope=RoPE()), LSTM(hidden=96), LSTM())},
    "no feed-forward": {"feed_forward": None},
}


@pytest.mark.parametrize("changes", MIXTURES.values(), ids=MIXTURES)
def test_parts_keep_their_shape(changes):
    module = create("gpt", **changes)
    found = scaled(module, 2e7, formula)
    wider = found.module.width / module.width
    assert abs(found.value / 2e7 - 1) <= 0.02
    assert counts(module)(found.module) == found.value
    assert wider > 1.5
    if "mixer.kv_heads" in changes:
        assert (found.module.mixer.kv_heads, found.module.mixer.heads > 6) == (1, True)
    if "mixer.head_size" in changes:
        assert found.module.mixer.head_size == 16
        assert found.module.mixer.heads == pytest.approx(found.module.width / 16, abs=3)
    if "feed_forward.hidden" in changes:
        assert found.module.feed_forward.hidden / 500 == pytest.approx(wider, rel=0.3)
    if "depth" in changes:
        assert found.module.depth % 3 == 0
        assert found.module.mixer[1].hidden / 96 == pytest.approx(wider, rel=0.02)
        assert found.module.mixer[2].hidden is None
        assert found.module.mixer[0].heads > 6


class Rungs(nn.Module):
    """A class that says by itself how it grows."""

    features: int = 4

    def sizes(self):
        for features in (4, 8, 16, 32):
            yield {"features": features}


class Wide(nn.Module):
    """A model with a width alone."""

    width: int = 4


@pytest.mark.parametrize(
    "mixer",
    [
        "retention",
        pytest.param("mlstm", marks=pytest.mark.thorough),
        pytest.param({"module": "mamba2", "head_size": 16}, marks=pytest.mark.thorough),
        pytest.param({"module": "rwkv7", "head_size": 16}, marks=pytest.mark.thorough),
    ],
    ids=str,
)
def test_a_width_that_a_part_refuses_is_not_taken(mixer):
    """Pairs that are rotated, channels that are rounded up, heads of a given size: the mixer itself is asked."""
    module = fields.override(create("gpt", vocabulary=65, depth=2, width=96), {"mixer": mixer})
    sized = scaled(module, 3e5, counts(module))
    assert sized.value == pytest.approx(3e5, rel=0.02)


def test_a_class_may_say_how_it_grows():
    found = scaled(Rungs(), 17, lambda module: module.features + 1, name="rungs")
    assert found.module == Rungs(16)
    with pytest.raises(UsageError, match="'rungs' can't be scaled to 50 parameters within 2%; the nearest is 33"):
        scaled(Rungs(), 50, lambda module: module.features + 1, name="rungs")


def test_a_width_alone_is_enough():
    found = scaled(Wide(), 1e6, lambda module: module.width**2, name="wide")
    assert found.module.width == pytest.approx(1000, rel=0.01)


@pytest.mark.parametrize(
    ("name", "target", "sentence"),
    [
        ("gpt", 1000, "the model 'gpt' can't be scaled to 1000 parameters within 2%; the nearest is 12,360"),
        ("lstm", 1e14, r"can't be scaled to 1e\+14 parameters within 2%; the nearest is 1.257e\+12"),
        ("gpt2", 1e6, r"can't be scaled to 1e\+06 parameters within 2%; the nearest is 1,653,760"),
        ("gpt", -3, "the budget of parameters is -3; expected a number above 0"),
        ("gpt", math.nan, "the budget of parameters is nan; expected a number above 0"),
    ],
)
def test_budgets_that_no_scaling_meets(name, target, sentence):
    module = create(name)
    with pytest.raises(UsageError, match=sentence):
        scaled(module, target, formula, name=name)


def test_a_model_without_a_size():
    sentence = "the model 'lenet5' can't be scaled: it has no field depth or width, and its class no method"
    with pytest.raises(UsageError, match=sentence):
        scaled(create("lenet5"), 1e5, lambda module: 60_000.0)


def test_counting_takes_every_player():
    """Generator and discriminator count together."""
    entry = registry.entry("gan")
    module = entry.tiny()
    batch = jax.eval_shape(lambda: entry.inputs.batch(module, 4, jax.random.key(0)))
    experiment = Experiment(module, objective("adversarial"), data=None)
    assert parameters(experiment, batch) == registry.count(entry.abstract_variables(module)["params"])
