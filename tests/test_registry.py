"""The registry: names, overrides and their errors; counting."""

import jax
import pytest

import arch_jax
from arch_jax import registry
from arch_jax.errors import UsageError


def test_models_is_the_mapping():
    """The package and the mapping share a name: `arch_jax.models()`, also after the package was imported."""
    import arch_jax.models

    assert arch_jax.models()["gpt2"].parameters == 124_439_808
    with pytest.raises(TypeError):
        arch_jax.models()["new"] = None


def test_create_overrides_fields():
    module = arch_jax.create("gpt2", depth=2, **{"mixer.heads": 6})
    assert (module.depth, module.mixer.heads, module.width) == (2, 6, 768)
    assert arch_jax.create("gpt2").depth == 12


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("gtp2", {}, ["gtp2", "gpt2"]),
        ("gpt2", {"dept": 2}, ["dept", "depth"]),
        ("gpt2", {"heads": 2}, ["heads", "mixer.heads"]),
        ("gpt2", {"depth": "two"}, ["depth", "two", "integer"]),
        ("gpt2", {"depth": 0}, ["depth", "0", "at least 1"]),
        ("gpt2", {"mixer": "atention"}, ["atention", "attention"]),
        ("gpt2", {"mixer": "rms_norm"}, ["rms_norm", "mixer"]),
        ("gpt2", {"dtype": "float31"}, ["float31", "float32"]),
    ],
)
def test_bad_input_is_named(name, changes, words):
    with pytest.raises(UsageError) as caught:
        arch_jax.create(name, **changes)
    for word in words:
        assert word in str(caught.value)


def test_heads_that_do_not_divide():
    module = arch_jax.create("gpt2", width=100, depth=1)
    with pytest.raises(UsageError, match=r"width 100 is not divisible by heads 12; the nearest .* heads=10"):
        jax.eval_shape(module.init, jax.random.key(0), jax.numpy.zeros((1, 4), "int32"))


def test_names_are_taken_once():
    paper = arch_jax.Paper("A title", "Somebody", 2000, "0000.00000")
    facts = {"family": "transformer", "objective": "next_token", "paper": paper, "inputs": arch_jax.tokens(4)}
    with pytest.raises(UsageError, match="already registered"):
        arch_jax.register("gpt2", **facts)(lambda: None)
    with pytest.raises(UsageError, match=r"'transfomer'.*'transformer'"):
        arch_jax.register("new", **{**facts, "family": "transfomer"})


def test_count():
    tree = {"a": jax.ShapeDtypeStruct((3, 4), "float32"), "b": [jax.ShapeDtypeStruct((), "float32")]}
    assert registry.count(tree) == 13


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gcn", 1433 * 16 + 16 * 7),  # equation 9 on Cora
        # 2-400-400-400-400-2 with batch norm, against three maxout layers of 200 units with 5 pieces.
        ("gan", 2 * 400 + 3 * 400**2 + 8 * 400 + 802 + 3 * 1000 + 2 * 201 * 1000 + 201),
        ("lenet5-bn", 25 * 6 + 25 * 6 * 16 + 25 * 16 * 120 + 2 * (6 + 16 + 120) + 121 * 84 + 85 * 10),
    ],
)
def test_counts_that_were_not_published_follow_from_the_layers(name, count):
    assert registry.entry(name).count() == count
