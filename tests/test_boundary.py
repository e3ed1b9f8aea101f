"""Every field of every component takes what its annotation says, and refuses anything else with one sentence."""

import dataclasses
import enum
import types
import typing
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import arch_jax
from arch_jax import fields
from arch_jax.boundary import held
from arch_jax.errors import UsageError
from arch_jax.fields import DType, Kind
from arch_jax.layers.mixers.attention import Attention
from arch_jax.layers.norms import LayerNorm
from arch_jax.layers.transformer.positions import ALiBi, RoPE
from arch_jax.ranges import Count, Share
from tests.test_ranges import EXAMPLES, NAMES


@pytest.fixture(autouse=True)
def as_a_person_has_it():
    """Without the tests' own checks of types, which would come first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


FIELDS = [(name, field) for name, cls in NAMES.items() for field in fields.settings(cls)]


def parts(annotation: Any) -> list[Any]:
    """A union's options, or the annotation alone; without what is only a mark, but for a component's."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return [part for argument in arguments for part in parts(argument)]
    if origin is Annotated and not any(isinstance(mark, Kind) for mark in annotation.__metadata__):
        return parts(arguments[0])
    return [annotation]


def wrong_values(annotation: Any) -> list[Any]:
    """Values that none of the annotation's parts takes; none of an annotation that isn't held to anything."""
    found = parts(annotation)
    origins = [typing.get_origin(part) for part in found]
    marks = [mark.name for part in found for mark in getattr(part, "__metadata__", ()) if isinstance(mark, Kind)]
    if "dtype" in marks:
        return ["float31", 3, [jnp.float32], {"dtype": "float32"}]
    takes = {kind for kind in (bool, int, float, str, tuple) if kind in found or kind in origins}
    takes |= {int} if float in takes else set()
    choices = [choice for part in found if typing.get_origin(part) is Literal for choice in typing.get_args(part)]
    values = ["wrong", 2.5, 3, True, b"wrong", {"module": "wrong"}, object(), Attention, LayerNorm(parent=None)]
    values += ["rope", "gru", {"module": "gru"}, 1j] * bool(marks)
    values += [None] * (types.NoneType not in found)
    if marks or any(dataclasses.is_dataclass(part) for part in found):
        values = [value for value in values if type(value) is not object]  # one of one's own
        values = values if "norm" not in marks else [value for value in values if not isinstance(value, LayerNorm)]
    if tuple in takes:
        values += [("wrong", {}, 3.5, None) * 3]
    return [value for value in values if type(value) not in takes - {tuple} and value not in choices]


def made(example: Any, field: str, value: Any) -> None:
    values = vars(example)  # not by attribute: Linen would bind the parts
    given = {one.name: values[one.name] for one in fields.settings(example)} | {field: value}
    type(example)(**given, **({"parent": None} if isinstance(example, nn.Module) else {}))


def changed(example: Any, field: str, value: Any) -> None:
    example.clone(**{field: value}) if isinstance(example, nn.Module) else dataclasses.replace(
        example, **{field: value}
    )


def refusal(way: Any, example: Any, field: str, value: Any) -> str | None:
    """What is wrong with how a wrong value is met; None if it is refused with one sentence that names the field."""
    try:
        way(example, field, value)
    except UsageError as problem:
        said = str(problem)
        return None if field in said and "\n" not in said and len(said) < 300 else said
    except Exception as problem:
        return f"{type(problem).__name__}: {problem}".partition("\n")[0]
    return "taken"


def test_every_field_is_held_to_its_type():
    """By the constructor and by a changed copy; one sentence, whatever the class's own check makes of the value."""
    wrong, tried = [], 0
    for name, field in FIELDS:
        example = EXAMPLES[NAMES[name]]
        for value in wrong_values(field.type):
            for way in (made, changed):
                tried += 1
                said = refusal(way, example, field.name, value)
                if said is not None:
                    wrong.append(f"{name}.{field.name} = {value!r} ({way.__name__}): {said}")
    assert not wrong, f"{len(wrong)} of {tried}:\n" + "\n".join(wrong)
    assert tried > 10_000


def test_every_example_is_what_its_fields_take():
    """A value as it is stays as it is: equal, of its type, and the same object."""
    for name, cls in NAMES.items():
        example = EXAMPLES[cls]
        again = example.clone() if isinstance(example, nn.Module) else dataclasses.replace(example)
        assert again == example, name
        for field in fields.settings(example):
            assert type(vars(again)[field.name]) is type(vars(example)[field.name]), (name, field.name)


GPT = arch_jax.models()["gpt2"].tiny()
RESNET = next(entry.tiny() for name, entry in arch_jax.models().items() if name.startswith("resnet"))
OBJECTIVE = arch_jax.objective("next_token")
NAMED = ": names stand for instances only in JSON and on the command line"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: RESNET.clone(shortcut="projektion"),
            "shortcut is 'projektion'; expected one of 'projection', 'padding', 'none'; the nearest is 'projection'",
        ),
        (
            lambda: Attention(pattern="strided"),
            f"pattern is 'strided'; expected an instance of kind 'pattern' or none, such as Strided(){NAMED}",
        ),
        (
            lambda: Attention(rope="rope"),
            f"rope is 'rope'; expected an instance of RoPE or none, such as RoPE(){NAMED}",
        ),
        (lambda: Attention(rope=RoPE), "rope is the class RoPE; expected an instance of RoPE or none, such as RoPE()"),
        (
            lambda: Attention(rope=ALiBi()),
            "rope is the relative 'alibi'; expected an instance of RoPE or none, such as RoPE()",
        ),
        (
            lambda: GPT.clone(mixer="gruu"),
            f"mixer is 'gruu'; expected an instance of kind 'mixer' or a tuple, such as GRU(){NAMED}",
        ),
        (
            lambda: GPT.clone(mixer={"module": "gru", "reverse": True}),
            "mixer is {'module': 'gru', 'reverse': True}; expected an instance of kind 'mixer' or a tuple, "
            f"such as GRU(){NAMED}",
        ),
        (
            lambda: GPT.clone(mixer=(Attention(), 3)),
            "mixer.1 is 3; expected an instance of kind 'mixer', such as Attention()",
        ),
        (
            lambda: arch_jax.SequenceReader(outputs=2, depth=1, width=4, mixer="gru"),
            f"mixer is 'gru'; expected an instance of kind 'mixer' or a tuple, such as GRU(){NAMED}",
        ),
        (
            lambda: arch_jax.Experiment("gpt2", OBJECTIVE, None),
            f"model is 'gpt2'; expected an instance of kind 'model', such as arch_jax.create('gpt2'){NAMED}",
        ),
        (
            lambda: arch_jax.Experiment(GPT, OBJECTIVE, data={"module": "text", "length": 3}),
            "data is {'module': 'text', 'length': 3}; expected an instance of kind 'data' or none, such as "
            f"Text(){NAMED}",
        ),
        (lambda: Attention(window=2.5), "window is 2.5; expected an integer or none"),
        (lambda: Attention(heads="4"), "heads is '4'; expected an integer"),
        (lambda: Attention(heads=True), "heads is True; expected an integer"),
        (lambda: Attention(heads=None), "heads is None; expected an integer"),
        (lambda: Attention(implementation=3), "implementation is 3; expected text"),
        (lambda: Attention(kv_heads=5), "kv_heads 5 does not divide heads 8; the nearest that does is 4"),
        (lambda: arch_jax.Linformer(kv_heads=3), "kv_heads 3 does not divide heads 8; the nearest that does is 2"),
        (
            lambda: arch_jax.GatedDeltaNet(negative_eigenvalues="yes"),
            "negative_eigenvalues is 'yes'; expected true or false",
        ),
        (lambda: GPT.clone(norm=None), "norm is None; expected an instance of kind 'norm', such as LayerNorm()"),
        (
            lambda: Attention(dtype="bfloat61"),
            "dtype is 'bfloat61'; expected one of 'float32', 'bfloat16', 'float16', 'float64'; the nearest is "
            "'bfloat16'",
        ),
        (lambda: RESNET.clone(widths=(4, "x")), "widths.1 is 'x'; expected an integer"),
        (lambda: GPT.clone(width=list(range(90))), f"width is {str(list(range(90)))[:57]}...; expected an integer"),
    ],
    ids=lambda value: value.partition(";")[0] if isinstance(value, str) else "",
)
def test_sentences(make, sentence):
    with pytest.raises(UsageError) as caught:
        make()
    assert str(caught.value) == sentence


def test_what_is_taken_as_what_it_stands_for():
    """As from JSON: a whole number with a point, numpy's scalars, a list, a dtype's name."""
    layer = Attention(heads=4.0, window=np.int64(3), softcap=np.float32(0.5), bias=np.bool_(True), dtype="bfloat16")
    assert (layer.heads, layer.window, layer.softcap, layer.bias) == (4, 3, 0.5, True)
    assert [type(one) for one in (layer.heads, layer.window, layer.softcap, layer.bias)] == [int, int, float, bool]
    assert layer.dtype is jnp.bfloat16
    assert fields.from_json(fields.to_json(layer)) == layer
    assert RESNET.clone(widths=[4, 8]).widths == (4, 8)
    assert Attention(softcap=2).softcap == 2
    assert Attention(dtype=np.dtype("float32")).dtype == jnp.float32


class Norm(nn.Module):
    scale: float = 1.0

    @nn.compact
    def __call__(self, x):
        return x * self.scale


class Rotation:
    def __call__(self, x, positions):
        return x


def test_parts_of_one_s_own():
    """Modules and objects without a name in JSON, and classes that are derived from the package's."""
    module = GPT.clone(norm=Norm())
    jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    assert isinstance(Attention(rope=Rotation()).rope, Rotation)

    class Wider(Attention):
        bias: str | bool = "some"
        kv_heads: float | None = None

    assert Wider().bias == "some"
    assert type(Wider(kv_heads=4.0).kv_heads) is float
    with pytest.raises(UsageError, match="heads is 'x'; expected an integer"):
        Wider(heads="x")


def test_traced_values_pass():
    """A number may be an argument of a compiled program, and what is made inside of one is made again and again."""

    @held
    @dataclasses.dataclass(frozen=True)
    class Settings:
        gain: float | None = None
        count: int = 1
        flag: bool = False

    @jax.jit
    def scaled(x, gain, count, flag):
        settings = Settings(gain, count, flag=flag)
        return jnp.where(settings.flag, settings.gain * x * settings.count, 0)

    assert scaled(2.0, 3.0, 2, True) == 12
    assert Settings(gain=np.ones(2)).gain.shape == (2,)


class Colour(enum.StrEnum):
    RED = "red"


@fields.component("test_boundary_own", kind="data")
@dataclasses.dataclass(frozen=True)
class Own:
    count: int = None
    text: str = 3
    choice: Literal["red", "blue", 3] = "red"
    loose: Literal["red"] | list = "red"
    norm: Annotated[Any, Kind("norm")] = None
    norms: tuple[Annotated[Any, Kind("norm")], ...] = ()
    share: Share = 0.5
    counts: tuple[Count, ...] = (1, 2)
    dtype: DType = None
    quoted: "int" = "x"
    free: Any = None


def test_a_person_s_own_component_is_held_to_what_it_declares():
    """Choices, components and ranges; its other annotations are its own affair."""
    assert Own(count="x", text=None, norm=Norm(), norms=[LayerNorm()], loose=[1], counts=[3], free={}).counts == (3,)
    assert Own(choice=Colour.RED).choice == "red"
    assert Own(choice=3).choice == 3
    for change, sentence in [
        ({"choice": "blau"}, "choice is 'blau'; expected one of 'red', 'blue', 3; the nearest is 'blue'"),
        ({"choice": True}, "choice is True; expected one of 'red', 'blue', 3"),
        ({"norm": 3}, "norm is 3; expected an instance of kind 'norm', such as LayerNorm()"),
        (
            {"norms": (Norm(), "rms_norm")},
            f"norms.1 is 'rms_norm'; expected an instance of kind 'norm', such as RMSNorm(){NAMED}",
        ),
        ({"share": "x"}, "share is 'x'; expected a number"),
        ({"counts": (1, "x")}, "counts.1 is 'x'; expected an integer"),
        ({"counts": 4}, "counts is 4; expected a tuple of numbers, such as (4,)"),
        ({"dtype": "int9"}, "dtype is 'int9'; expected one of 'float32', 'bfloat16', 'float16', 'float64'"),
    ]:
        with pytest.raises(UsageError) as caught:
            Own(**change)
        assert str(caught.value) == sentence


def test_a_class_s_own_check_is_heard_where_it_names_the_field():
    @fields.component("test_boundary_checked", kind="data")
    @dataclasses.dataclass(frozen=True)
    class Checked:
        choice: Literal["red", "blue"] = "red"
        share: Share = 0.5
        made: tuple[Share, ...] = ()

        def __post_init__(self) -> None:
            if self.choice == "green":
                raise UsageError("choice is green, which is out of fashion")
            if self.choice not in ("red", "blue"):
                raise UsageError("something is not as it should be")
            if isinstance(self.made, str):
                object.__setattr__(self, "made", tuple(map(float, self.made.split())))
            self.share.as_integer_ratio()

    for change, sentence in [
        ({"choice": "green"}, "choice is green, which is out of fashion"),
        ({"choice": "pink"}, "choice is 'pink'; expected one of 'red', 'blue'"),
        ({"share": "half"}, "share is 'half'; expected a number"),  # its own check stumbles over it
        ({"made": 3}, "made is 3; expected a tuple of numbers, such as (3,)"),
    ]:
        with pytest.raises(UsageError) as caught:
            Checked(**change)
        assert str(caught.value) == sentence
    assert Checked(made="0.5 1").made == (0.5, 1.0)  # its own check makes something of it
    with pytest.raises(UsageError, match=r"made is .*, with 2\.0 in it; expected at least 0 and at most 1"):
        Checked(made="2")


@fields.component("test_boundary_slots", kind="data")
@dataclasses.dataclass(frozen=True, slots=True)
class Slots:
    choice: Literal["red", "blue"] = "red"
    share: Share = 0.5


def test_a_class_with_slots():
    assert Slots(share=1).share == 1
    with pytest.raises(UsageError, match="choice is 'x'"):
        Slots(choice="x")
    with pytest.raises(UsageError, match=r"share is 1\.5"):
        Slots(share=1.5)


def test_no_data_is_met_where_it_is_needed(tmp_path):
    experiment = arch_jax.Experiment(GPT, OBJECTIVE, None, steps=1)
    with pytest.raises(UsageError, match="data is None; expected where batches come from, such as data=text"):
        arch_jax.train(experiment, tmp_path / "run")
