"""Settings of modules and dataclasses: to JSON and back, changed by dotted names, and refused with a sentence."""

import dataclasses
import json
import math
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import arch_jax
from arch_jax import fields
from arch_jax.errors import UsageError
from arch_jax.experiment import import_components
from arch_jax.fields import DType, Kind
from arch_jax.layers.mixers.attention import Attention
from arch_jax.layers.norms import LayerNorm, RMSNorm
from arch_jax.layers.transformer.decoder import Decoder
from arch_jax.layers.transformer.feed_forward import MLP, SwiGLU
from arch_jax.layers.transformer.positions import LearnedPosition, RoPE
from arch_jax.ops.attention.rope_scaling import Llama3Scaling
from arch_jax.ranges import Unlimited

import_components()


@fields.component("test_part", kind="test_part")
@dataclasses.dataclass(frozen=True)
class Part:
    """A part.

    Attributes:
      size: how large it is,
        on two lines.
      kinds: two of them.
    """

    size: int = 1
    kinds: tuple[int, float] = (1, 0.5)


@fields.component("test_other_part", kind="test_part")
@dataclasses.dataclass(frozen=True)
class OtherPart:
    weight: float
    inner: Annotated[Any, Kind("test_part")] | None = None


@fields.component("test_whole", kind="test_whole")
@dataclasses.dataclass(frozen=True)
class Whole:
    """A field of every kind."""

    count: int = 1
    rate: Unlimited = 0.5
    flag: bool = False
    text: str = "a"
    maybe: int | None = None
    ratio: float | None = 0.1
    choice: Literal["one", "two", 3] = "one"
    numbers: tuple[int, ...] = (1, 2)
    pair: tuple[int, str] = (1, "x")
    dtype: DType = jnp.float32
    part: Annotated[Any, Kind("test_part")] = Part()
    parts: tuple[Annotated[Any, Kind("test_part")], ...] = (Part(), OtherPart(2.0))
    either: Part | tuple[Part, ...] = Part()
    free: Any = None

    def __post_init__(self):
        if self.count > 10 * self.rate * 10:
            raise UsageError("count is too large for rate")


# -- to JSON and back --------------------------------------------------------------------------------------------------

HYBRID = Decoder(
    vocabulary=11,
    depth=4,
    width=8,
    mixer=(
        Attention(heads=2, rope=RoPE(theta=100.0, scaling=Llama3Scaling()), softcap=3.0),
        Attention(heads=1, window=4),
    ),
    feed_forward=None,
    norm=LayerNorm(epsilon=1e-3),
    position=LearnedPosition(length=16),
    dtype=jnp.bfloat16,
)


@pytest.mark.parametrize(
    "value",
    [
        Whole(),
        Whole(maybe=3, ratio=None, choice=3, numbers=(), dtype=jnp.bfloat16, part=OtherPart(1.0, Part(7))),
        Whole(rate=math.inf, either=(Part(1), Part(2))),
        HYBRID,
        arch_jax.Optimizer("lion", clip=None, horizon=7),
        arch_jax.Text(length=3),
        *(entry.build() for entry in arch_jax.models().values()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_json_and_back(value):
    """Through text, so that nothing but JSON's own kinds can be in it; equal, hashable, and the same JSON again."""
    data = fields.to_json(value)
    back = fields.from_json(json.loads(json.dumps(data, allow_nan=False)))
    assert type(back) is type(value)
    assert back == value
    assert hash(back) == hash(value)
    assert fields.to_json(back) == data


def test_what_json_holds():
    assert fields.to_json(Whole(part=OtherPart(2.5, Part(4, (3, 1.5))), dtype=jnp.bfloat16, rate=math.inf)) == {
        "module": "test_whole",
        "count": 1,
        "rate": "inf",
        "flag": False,
        "text": "a",
        "maybe": None,
        "ratio": 0.1,
        "choice": "one",
        "numbers": [1, 2],
        "pair": [1, "x"],
        "dtype": "bfloat16",
        "part": {
            "module": "test_other_part",
            "weight": 2.5,
            "inner": {"module": "test_part", "size": 4, "kinds": [3, 1.5]},
        },
        "parts": [
            {"module": "test_part", "size": 1, "kinds": [1, 0.5]},
            {"module": "test_other_part", "weight": 2.0, "inner": None},
        ],
        "either": {"module": "test_part", "size": 1, "kinds": [1, 0.5]},
        "free": None,
    }
    assert "parent" not in fields.to_json(HYBRID)
    assert "name" not in fields.to_json(HYBRID)


class Unnamed(nn.Module):
    size: int = 1


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (Unnamed(), r"Unnamed has no name in JSON; decorate it with @component\(name, kind\)"),
        (Whole(free=len), "can't be written as JSON; expected a number, text, tuple, dtype or named component"),
        (Whole(free=jnp.ones(2)), "can't be written as JSON"),
        (Whole(free=jnp.int32), "can't be written as JSON"),
    ],
)
def test_what_has_no_json(value, says):
    with pytest.raises(UsageError, match=says):
        fields.to_json(value)


def test_meanings():
    assert fields.meanings(Part) == {"size": "how large it is, on two lines.", "kinds": "two of them."}


def test_a_name_is_taken_once():
    with pytest.raises(UsageError, match="the component name 'test_part' is already taken by Part"):

        @fields.component("test_part", kind="test_part")
        class Impostor:
            pass

    assert fields.components("test_part") == {"test_part": Part, "test_other_part": OtherPart}


# -- changes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"count": "7"}, {"count": 7}),
        ({"count": "2e1"}, {"count": 20}),
        ({"count": "1_0"}, {"count": 10}),
        ({"count": 7.0}, {"count": 7}),
        ({"rate": "1e-1"}, {"rate": 0.1}),
        ({"rate": 2}, {"rate": 2.0}),
        ({"flag": "yes"}, {"flag": True}),
        ({"flag": "False"}, {"flag": False}),
        ({"text": "none"}, {"text": "none"}),
        ({"maybe": "3"}, {"maybe": 3}),
        ({"maybe": "none"}, {"maybe": None}),
        ({"maybe": None}, {"maybe": None}),
        ({"ratio": "null"}, {"ratio": None}),
        ({"ratio": "3"}, {"ratio": 3.0}),
        ({"choice": "two"}, {"choice": "two"}),
        ({"choice": "3"}, {"choice": 3}),
        ({"numbers": "[4, 5, 6]"}, {"numbers": (4, 5, 6)}),
        ({"numbers": "4,5"}, {"numbers": (4, 5)}),
        ({"numbers": []}, {"numbers": ()}),
        ({"pair": [2, "y"]}, {"pair": (2, "y")}),
        ({"dtype": "bfloat16"}, {"dtype": jnp.bfloat16}),
        ({"dtype": jnp.float16}, {"dtype": jnp.float16}),
        ({"part": "test_part"}, {"part": Part()}),
        ({"part": '{"module": "test_other_part", "weight": 3}'}, {"part": OtherPart(3.0)}),
        ({"part": {"module": "test_part", "size": "2"}}, {"part": Part(2)}),
        ({"part": OtherPart(1.0)}, {"part": OtherPart(1.0)}),
        ({"part.size": "5"}, {"part": Part(5)}),
        ({"part.kinds": "[2, 2]"}, {"part": Part(1, (2, 2.0))}),
        ({"parts.1.weight": "9"}, {"parts": (Part(), OtherPart(9.0))}),
        ({"parts.1.inner": "test_part"}, {"parts": (Part(), OtherPart(2.0, Part()))}),
        ({"parts": '["test_part", {"module": "test_part", "size": 2}]'}, {"parts": (Part(), Part(2))}),
        ({"either": {"size": 4}}, {"either": Part(4)}),
        ({"either": [{"size": 4}, {}]}, {"either": (Part(4), Part())}),
        ({"free": "as it is"}, {"free": "as it is"}),
        # A field as a whole and in part: whatever the order, the whole first.
        ({"part.weight": 3, "part": {"module": "test_other_part", "weight": 1}}, {"part": OtherPart(3.0)}),
        ({"parts.0.size": 8, "parts": ["test_part"]}, {"parts": (Part(8),)}),
        # Only together are these valid, whichever stands first.
        ({"count": 500, "rate": 5.0}, {"count": 500, "rate": 5.0}),
        ({"rate": 5.0, "count": 500}, {"count": 500, "rate": 5.0}),
        ({}, {}),
    ],
    ids=str,
)
def test_override(change, expected):
    changed = fields.override(Whole(), change)
    assert changed == dataclasses.replace(Whole(), **expected)
    for name in expected:
        assert type(getattr(changed, name)) is type(expected[name])


def test_override_of_modules():
    module = fields.override(
        HYBRID,
        {
            "mixer.1.heads": "4",
            "mixer.0.rope.scaling": "none",
            "mixer.0.rope.theta": "50",
            "feed_forward": "swiglu",
            "norm": "rms_norm",
            "dtype": "float32",
        },
    )
    first, second = HYBRID.mixer
    assert module == HYBRID.clone(
        mixer=(first.clone(rope=RoPE(theta=50.0)), second.clone(heads=4)),
        feed_forward=SwiGLU(),
        norm=RMSNorm(),
        dtype=jnp.float32,
    )
    assert module.mixer[1].parent is HYBRID.mixer[1].parent
    assert HYBRID.mixer[1].heads == 1  # a copy: the original is as it was
    logits, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), jnp.zeros((1, 6), jnp.int32))
    assert logits.dtype == jnp.float32
    single = fields.override(HYBRID, {"mixer": '{"module": "attention", "heads": 2}', "feed_forward": MLP()})
    assert single.mixer == Attention(heads=2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"coun": 1}, "unknown field 'coun'; the nearest is 'count'"),
        ({"size": 1}, "unknown field 'size'; the nearest are 'part.size', 'parts.0.size'"),
        ({"part.siz": 1}, "unknown field 'part.siz'; the nearest are 'part.size'"),
        ({"": 1}, "unknown field ''"),
        ({"part.": 1}, "unknown field 'part.'"),
        ({"count": "x"}, "count is 'x'; expected an integer"),
        ({"count": "1.5"}, "count is '1.5'; expected an integer"),
        ({"count": 1.5}, "count is 1.5; expected an integer"),
        ({"count": True}, "count is True; expected an integer"),
        ({"count": None}, "count is None; expected an integer"),
        ({"count": "1e999"}, "count is '1e999'; expected an integer"),
        ({"rate": "x"}, "rate is 'x'; expected a number"),
        ({"rate": "nan"}, "rate is 'nan'; expected a number"),
        ({"rate": True}, "rate is True; expected a number"),
        ({"flag": "2"}, "flag is '2'; expected true or false"),
        ({"flag": 1}, "flag is 1; expected true or false"),
        ({"text": 3}, "text is 3; expected text"),
        ({"maybe": "x"}, "maybe is 'x'; expected an integer or none"),
        ({"ratio": "x"}, "ratio is 'x'; expected a number or none"),
        ({"choice": "four"}, "choice is 'four'; expected one of 'one', 'two', 3"),
        ({"numbers": "x"}, "numbers is 'x'; expected a list such as [1, 2]"),
        ({"numbers": "1,x"}, "numbers.1 is 'x'; expected an integer"),
        ({"pair": [1]}, "pair has 1 entries; expected 2"),
        ({"dtype": "int8"}, "dtype is 'int8'; expected one of 'float32', 'bfloat16', 'float16', 'float64'"),
        ({"part": "test_prt"}, "unknown test_part 'test_prt'; the nearest are 'test_part'"),
        (
            {"part": "rms_norm"},
            "part is the norm 'rms_norm'; expected a test_part; valid are 'test_other_part', 'test_part'",
        ),
        ({"part": RMSNorm()}, "part is the norm 'rms_norm'; expected a test_part"),
        ({"part": 3}, 'part is 3; expected a name or {"module": name, field: value ...}'),
        ({"part": {"size": 3}}, "unknown test_part 'None'"),
        (
            {"part": {"module": "test_part", "siz": 3}},
            "unknown field of test_part 'part.siz'; the nearest are 'part.size'",
        ),
        ({"part": "test_other_part"}, "part.weight is missing; test_other_part needs it"),
        ({"part": {"module": "test_part", "size": "x"}}, "part.size is 'x'; expected an integer"),
        ({"parts": '["test_prt"]'}, "unknown test_part 'test_prt'"),
        ({"parts.2.size": 1}, "parts.2 does not exist; expected an index from 0 to 1"),
        ({"parts.x.size": 1}, "parts.x does not exist; expected an index from 0 to 1"),
        ({"parts.-1.size": 1}, "parts.-1 does not exist; expected an index from 0 to 1"),
        ({"parts.0": "test_part"}, "parts.0 can't be replaced alone; set parts as a whole"),
        ({"either": "rms_norm"}, "either is 'rms_norm'; expected 'test_part'"),
        ({"either": "nothing"}, "unknown test_part 'nothing'; valid are 'test_part'"),
        ({"either": [{"siz": 1}]}, "unknown field of test_part 'either.0.siz'; the nearest are 'either.0.size'"),
        ({"count.more": 1}, "count is 1, which has no field 'more'"),
        ({"maybe.more.yet": 1}, "maybe is None, which has no field 'more'"),
        ({"count": 500}, "count is too large for rate"),
    ],
    ids=str,
)
def test_override_refuses(change, says):
    with pytest.raises(UsageError) as caught:
        fields.override(Whole(), change)
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"module": "test_prt"}, "unknown component 'test_prt'; the nearest are "),
        ({}, "unknown component 'None'"),
        ([1], 'the configuration is [1]; expected a name or {"module": name'),
        ({"module": ["test_part"]}, "unknown component"),
        ({"module": "test_other_part"}, "weight is missing; test_other_part needs it"),
        ({"module": "test_part", "size": None}, "size is None; expected an integer"),
    ],
    ids=str,
)
def test_from_json_refuses(data, says):
    with pytest.raises(UsageError) as caught:
        fields.from_json(data)
    assert str(caught.value).startswith(says)


def test_from_json_of_a_kind():
    assert fields.from_json({"module": "test_part"}, kind="test_part") == Part()
    with pytest.raises(UsageError, match="the configuration is the norm 'rms_norm'; expected a test_part"):
        fields.from_json({"module": "rms_norm"}, kind="test_part")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a.b=1", ("a.b", "1")), (" a = b=c ", ("a", "b=c")), ("a=", ("a", ""))],
)
def test_assignment(text, expected):
    assert fields.assignment(text) == expected


@pytest.mark.parametrize("text", ["a", "", "=1", " =1"])
def test_assignment_refuses(text):
    with pytest.raises(UsageError, match="has no value; expected field=value"):
        fields.assignment(text)


def test_walk_names_every_setting():
    paths = dict(fields.walk(HYBRID))
    assert paths["mixer.0.rope.scaling.factor"] == Llama3Scaling().factor
    assert paths["mixer.1.window"] == 4
    assert paths["position.length"] == 16
    assert not [path for path in paths if path.split(".")[-1] in ("parent", "name")]
    for path, value in paths.items():  # each can be set to what it is
        if not path.endswith((".0", ".1")):
            assert fields.override(HYBRID, {path: value}) == HYBRID


def test_difference():
    one = fields.to_json(HYBRID)
    other = fields.to_json(fields.override(HYBRID, {"mixer.1.heads": 4, "depth": 8, "norm": "rms_norm"}))
    assert list(fields.difference(one, one)) == []
    found = {path: (was, now) for path, was, now in fields.difference(one, other)}
    assert found["depth"] == (4, 8)
    assert found["mixer.1.heads"] == (1, 4)
    assert found["norm.module"] == ("layer_norm", "rms_norm")
    assert not [path for path in found if path.startswith(("mixer.0", "position"))]
    assert list(fields.difference({"a": [1]}, {"a": [1, 2]})) == [("a", [1], [1, 2])]
