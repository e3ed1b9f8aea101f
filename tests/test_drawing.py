"""Drawings of architectures: what they say of a model, and that they can be read."""

import dataclasses
import functools
import itertools
import re
import stat
import xml.etree.ElementTree as ElementTree

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import arch_jax
from arch_jax import drawing, registry
from arch_jax.cli import main
from arch_jax.drawing.build import diagram
from arch_jax.drawing.diagram import Node
from arch_jax.drawing.portraits import magnitude, words
from arch_jax.drawing.svg import page
from arch_jax.drawing.text import text_width
from arch_jax.errors import UsageError

SPACE = "{http://www.w3.org/2000/svg}"
#: One name of each architecture.
ARCHITECTURES = list({entry.architecture: name for name, entry in reversed(registry.models().items())}.values())
QUICK = ("gpt", "bert-base", "transformer-base", "resnet-cifar-20", "bahdanau")


def small(name: str, **changes) -> nn.Module:
    """The tiny form of a model with fields changed, whole parts included."""
    kept = {field: value for field, value in registry.entry(name).shrink.items() if field.split(".")[0] not in changes}
    return arch_jax.create(name, **kept, **changes)


def tiny(name: str, **changes) -> drawing.Drawing:
    module = small(name, **changes)
    entry = registry.entry(name)
    return drawing.of_entry(dataclasses.replace(entry, inputs=entry.inputs.resized(module)), module)


@functools.cache
def nodes(name: str, **changes) -> list[Node]:
    """The content of the drawing of a tiny model."""
    entry = registry.entry(name)
    module = small(name, **changes)
    entry = dataclasses.replace(entry, inputs=entry.inputs.resized(module))
    batch = jax.eval_shape(lambda: entry.inputs.batch(module, 1, jax.random.key(0)))
    variables = entry.abstract_variables(module)
    counts = drawing.parameter_counts(variables)
    return diagram(module, variables, entry.arguments(batch), entry.inputs.names, counts)


def every(things: list[Node]) -> list[Node]:
    """All nodes, those inside frames included."""
    return [inner for node in things for inner in (node, *every(node.nodes))]


def named(things: list[Node], title: str) -> Node:
    (found,) = [node for node in every(things) if node.title == title]
    return found


def pluses(things: list[Node]) -> list[Node]:
    return [node for node in every(things) if node.kind == "symbol" and node.title == "+"]


def read(frame: Node, source: Node) -> list[str]:
    """Titles of the parts of a frame that read what `source` outside of it gives."""
    (port,) = [port for port, outer in zip(frame.ports, frame.inputs, strict=True) if outer is source]
    return [part.title for part in frame.parts if port in part.inputs]


# -- what is drawn -----------------------------------------------------------------------------------------------------


def test_equal_blocks_are_one_frame():
    (stack,) = [node for node in nodes("gpt2", depth=12) if node.kind == "frame"]
    assert (stack.title, stack.repeat) == ("stack", 12)
    assert [node.repeat for node in nodes("gpt2", depth=1) if node.kind == "frame"] == [1]
    # Scanned or not, it is the same architecture.
    assert [node.repeat for node in nodes("gpt2", depth=5, scan=False) if node.kind == "frame"] == [5]


def test_a_repeating_pattern_is_one_group():
    pair = (arch_jax.Attention(heads=2), arch_jax.LSTM())
    for depth, scan in ((8, False), (8, True)):
        (stack,) = [node for node in nodes("gpt", mixer=pair, depth=depth, scan=scan) if node.kind == "frame"]
        group = stack if stack.repeat > 1 else next(part for part in stack.parts if part.kind == "frame")
        assert group.repeat == 4
        names = [part.title for part in group.parts if part.kind == "frame"]
        assert names == (["block 0", "block 1"] if scan else ["layer 0, 2 … 6", "layer 1, 3 … 7"])


def test_changes_keep_the_inputs_that_fit():
    assert ">256 × 192<" in arch_jax.draw("gpt", depth=1).svg.replace("49.2\u00a0k · ", "")
    assert ">14 × 14 × 1<" in arch_jax.draw("vae", resolution=14).svg


def test_different_blocks_are_not_folded():
    drawn = nodes("resnet-cifar-20", blocks=(2, 2, 2))
    assert [node.repeat for node in drawn if node.kind == "frame"] == [2, 1, 1, 1, 1]


def test_residuals_are_read_from_the_sums():
    """A plain network of the same blocks has none, by its program and not by its name."""
    assert len(pluses(nodes("resnet-cifar-20"))) == 3
    assert pluses(nodes("resnet-cifar-20", shortcut="none")) == []


def test_placement_of_the_norm():
    pre, post = (named(nodes("gpt", placement=placement, depth=1), "stack") for placement in ("pre", "post"))
    plus = lambda stack: [part for part in stack.parts if part.title == "+"]
    norm = lambda stack: next(part for part in stack.parts if part.title == "mixer norm")
    assert norm(pre).inputs == pre.ports
    assert plus(pre)[0].inputs == [pre.ports[0], next(part for part in pre.parts if part.title == "mixer")]
    assert norm(post).inputs == plus(post)[:1]
    assert plus(post)[0].inputs[0] is post.ports[0]


def test_a_gate_is_a_product_of_gate_and_value():
    gated = named(nodes("gpt", depth=1), "feed forward")
    (product,) = [part for part in gated.parts if part.kind == "symbol"]
    function, up = product.inputs
    assert (product.title, function.title, up.title) == ("×", "SiLU", "up")
    assert [source.title for source in function.inputs] == ["gate"]
    plain = named(nodes("gpt", depth=1, feed_forward=arch_jax.MLP()), "feed forward")
    assert [part.title for part in plain.parts] == ["up", "GELU", "down"]


def test_attention_has_its_heads_and_its_mask():
    mixer = arch_jax.Attention(heads=4, kv_heads=2, window=5)
    parts = {part.title: part for part in named(nodes("gpt", depth=1, mixer=mixer), "mixer").parts}
    assert parts["query"].lines[0] == "4 heads × 4"
    assert parts["key"].lines[0] == parts["value"].lines[0] == "2 heads × 4"
    softmax = parts["softmax(Q Kᵀ / √4)"]
    assert softmax.inputs == [parts["query"], parts["key"]]
    assert parts["·"].inputs == [softmax, parts["value"]]
    assert parts["output"].inputs == [parts["·"]]
    assert {"causal", "window of 5"} <= set(re.split(", ", ", ".join(softmax.lines)))


def test_who_sees_whom():
    assert ">causal" in tiny("gpt").svg
    assert "causal" not in tiny("bert-base").svg


def test_cross_attention_reads_the_encoder():
    drawn = nodes("transformer-base")
    encoder, decoder = named(drawn, "encoder"), named(drawn, "decoder")
    assert encoder in decoder.inputs
    assert read(decoder, encoder) == ["cross"]
    cross = next(part for part in decoder.parts if part.title == "cross")
    (memory,) = [source for source in cross.inputs if source in decoder.ports]
    assert read(cross, memory) == ["key", "value"]
    (target,) = [source for source in cross.inputs if source is not memory]
    assert read(cross, target) == ["query"]
    assert 'data-from="encoder" data-to="decoder"' in tiny("transformer-base").svg


def test_a_bias_of_the_scores_comes_in():
    """T5's relative positions: one table for all layers of a stack."""
    encoder = named(drawn := nodes("t5-small"), "encoder")
    assert read(encoder, named(drawn, "encoder relative")) == ["mixer"]
    mixer = next(part for part in encoder.parts if part.title == "mixer")
    (bias,) = [port for port, source in zip(mixer.ports, mixer.inputs, strict=True) if source is encoder.ports[1]]
    assert [part.title for part in mixer.parts if bias in part.inputs] == ["softmax(Q Kᵀ)"]


def test_nothing_stands_without_effect():
    for name in (*QUICK, "t5-small", "lstm"):
        drawn = nodes(name)
        for things in (drawn, *(node.nodes for node in every(drawn) if node.kind == "frame")):
            used = {source for node in things for source in node.inputs}
            last = [node for node in things if node not in used]
            assert all(node.kind == "end" or node.title == "out" for node in last), (name, last)


def test_recurrences_go_round():
    lstm = named(nodes("lstm", depth=1), "mixer")
    assert lstm.loop == "h: 16"
    assert [part.loop for part in lstm.parts if part.title == "cell c"] == ["16"]
    (products,) = [[p for p in lstm.parts if p.title == "×"]]
    assert len(products) == 3
    decoder = next(node for node in nodes("bahdanau") if node.title.startswith("at each of"))
    assert decoder.loop == "16"
    assert {"look", "decoder recurrent", "decoder context"} <= {part.title for part in decoder.parts}


def test_convolutions_say_kernel_stride_and_channels():
    assert "3 × 3, 4 → 8, stride 2" in tiny("resnet-cifar-20").svg


def test_ends_have_names_and_shapes():
    ends = {node.title: node.lines for node in nodes("bert-base") if node.kind == "end"}
    assert ends.keys() == {"tokens", "types", "hidden", "pooled", "logits", "next"}
    assert ends["next"] == ("2",)


def test_learned_tables_and_tied_ones():
    titles = [node.title for node in nodes("vit-tiny-16")]
    assert {"class token", "position embedding"} <= set(titles)
    assert "x Eᵀ, tied" in tiny("gpt").svg


def test_counts_are_those_of_one_block():
    stack = named(nodes("gpt2", depth=3), "stack")
    count = registry.count(registry.entry("gpt2").abstract_variables(small("gpt2", depth=3))["params"]["stack"])
    assert stack.lines == (f"block · {count / 3000:.2f}\u00a0k",)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("feed_forward", "feed forward"), ("ConvolutionNorm", "convolution norm"), ("RMSNorm", "RMS norm"),
        ("SwiGLU", "SwiGLU"), ("ConvNeXtBlock", "ConvNeXt block"), ("SelectiveSSM", "selective SSM"), ("B", "B"),
        ("layer_0", "layer 0"), ("LSTM", "LSTM"),
    ],
)  # fmt: skip
def test_names_as_words(name, said):
    assert words(name) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0"), (999, "999"), (1000, "1.00 k"), (12_345, "12.3 k"), (999_949, "1.00 M"), (405_853_388_800, "406 B")],
)
def test_numbers_of_parameters(count, said):
    assert magnitude(count) == said.replace(" ", "\u00a0")


class Sideways(nn.Module):
    """A layer that no portrait knows, between two that are known."""

    @nn.compact
    def __call__(self, x):
        y = nn.Dense(6)(x)
        return nn.Dense(3)(jnp.tanh(y) * x)


def test_a_module_of_ones_own():
    svg = arch_jax.draw(Sideways(), jnp.zeros((2, 6))).svg
    assert "Sideways" in svg
    assert ">×<" in svg
    assert ">tanh<" in svg
    with pytest.raises(UsageError, match="Sideways was given without inputs; expected the arrays that it is called"):
        arch_jax.draw(Sideways())
    with pytest.raises(UsageError, match="Sideways was given width to change; expected the module as it is drawn"):
        arch_jax.draw(Sideways(), jnp.zeros((2, 6)), width=3)
    with pytest.raises(UsageError, match="expected none, as a name has its own inputs"):
        arch_jax.draw("gpt", jnp.zeros(2))


# -- legibility --------------------------------------------------------------------------------------------------------


def box_of(group) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of a drawn node."""
    for shape in group:
        if shape.tag == f"{SPACE}circle":
            x, y, r = (float(shape.get(key)) for key in ("cx", "cy", "r"))
            return x - r, y - r, x + r, y + r
        if shape.get("class") == "outline":
            x, y, w, h = (float(shape.get(key)) for key in ("x", "y", "width", "height"))
            return x, y, x + w, y + h
    raise AssertionError(ElementTree.tostring(group))


def span(text) -> tuple[float, float]:
    """(left, right) of a text."""
    wide = text_width(text.text, float(text.get("font-size")), text.get("font-weight") is not None)
    left = float(text.get("x")) - {"start": 0.0, "middle": 0.5, "end": 1.0}[text.get("text-anchor")] * wide
    return left, left + wide


def corners(line) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", line.get("d"))]


def check_legible(svg: str) -> int:
    """Boxes apart from each other and inside their frames, texts inside their boxes, lines around boxes; how many."""
    root = ElementTree.fromstring(svg)
    width, height = (float(one) for one in root.get("viewBox").split()[2:])
    assert float(root.get("width")) <= 760
    assert root.find(f"{SPACE}title").text

    def check(parent, around) -> int:
        groups = [one for one in parent if one.tag == f"{SPACE}g"]
        boxes = [box_of(one) for one in groups]
        for i, (left, top, right, bottom) in enumerate(boxes):
            assert around[0] <= left, (left, around)
            assert around[1] <= top
            assert right <= around[2]
            assert bottom <= around[3]
            for other in boxes[:i]:
                assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
        for text in parent.findall(f"{SPACE}text"):
            left, right = span(text)
            if text.text not in "+×−·" or len(text.text) > 1:
                assert around[0] <= left, text.text
                assert right <= around[2], text.text
        for line in [one for one in parent if one.get("class") == "line"]:
            points = corners(line)
            for (ax, ay), (bx, by) in itertools.pairwise(points):
                for left, top, right, bottom in boxes:
                    beside = max(ax, bx) <= left + 1.5 or min(ax, bx) >= right - 1.5
                    above = max(ay, by) <= top + 1.5 or min(ay, by) >= bottom - 1.5
                    assert beside or above, (line.attrib, (left, top, right, bottom))
        return len(groups) + sum(check(one, box) for one, box in zip(groups, boxes))

    return check(root, (0.0, 0.0, width, height))


def headings_are_free(svg: str) -> None:
    """No line of a frame runs through the frame's heading."""
    for group in ElementTree.fromstring(svg).iter(f"{SPACE}g"):
        texts = [(span(text), float(text.get("y"))) for text in group.findall(f"{SPACE}text")]
        if group.get("class") != "frame":
            continue
        for line in [one for one in group if one.get("class") == "line"]:
            for (ax, ay), (bx, by) in itertools.pairwise(corners(line)):
                for (left, right), y in texts:
                    assert max(ax, bx) < left or right < min(ax, bx) or max(ay, by) < y - 8 or y + 2 < min(ay, by)


@pytest.mark.parametrize("name", QUICK)
def test_it_can_be_read(name):
    drawn = tiny(name)
    assert check_legible(drawn.svg) > 8
    headings_are_free(drawn.svg)


def test_it_is_the_same_when_drawn_again():
    assert tiny("bahdanau") == tiny("bahdanau")


@pytest.mark.thorough
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_can_be_read(name):
    svg = tiny(name).svg
    check_legible(svg)
    headings_are_free(svg)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["gpt2", "resnet-50", "luong", "xlstm-7-1-125m", "autoencoder-kl", "transformer-big"])
def test_full_sizes_can_be_read(name):
    check_legible(arch_jax.draw(name).svg)


def test_texts_are_escaped_and_cut():
    hostile = '</text><script>alert("1")</script>&\x00 ' + "wide" * 200
    box = Node("box", hostile, (hostile,))
    frame = Node("frame", hostile, (hostile,), [box], [Node("port"), Node("port", "out")])
    svg = page([box, frame], hostile, [hostile])
    assert "<script" not in svg
    assert check_legible(svg) == 2


def test_a_registered_name_is_escaped():
    entry = dataclasses.replace(registry.entry("perceptron"), name='<b a="1">&')
    entry = dataclasses.replace(entry, inputs=entry.inputs.resized(entry.tiny()))
    root = ElementTree.fromstring(drawing.of_entry(entry, entry.tiny()).svg)
    assert root.find(f"{SPACE}title").text.startswith('<b a="1">&, ')


# -- files -------------------------------------------------------------------------------------------------------------


def test_the_command_writes_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["describe", "lenet5", "--svg", "--set", "classes=3"]) == 0
    assert capsys.readouterr().out == "wrote lenet5.svg\n"
    written = (tmp_path / "lenet5.svg").read_text(encoding="utf-8")
    drawn = arch_jax.draw("lenet5", classes=3)
    assert written == drawn.svg == drawn._repr_svg_()
    assert [path.name for path in tmp_path.iterdir()] == ["lenet5.svg"]
    assert stat.S_IMODE((tmp_path / "lenet5.svg").stat().st_mode) & 0o400
    assert main(["describe", "lenet5", "--svg", "other.svg", "--set", "classes=3"]) == 0
    assert (tmp_path / "other.svg").read_text(encoding="utf-8") == written


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["perceptron", "--svg", "missing/x.svg"], "the folder 'missing' does not exist; expected one that does"),
        (["perceptron", "--svg", "."], "'.' is a folder; expected a file such as 'model.svg'"),
        (["perceptron", "--svg", "x.png"], "'x.png' is no name of an SVG; expected one such as 'x.svg'"),
        (["perceptron", "--svg", "x.svg", "--json"], "--json and --svg are two forms of one description"),
        (["perceptorn", "--svg"], "unknown model 'perceptorn'; the nearest are 'perceptron'"),
    ],
)
def test_the_command_says_what_is_wrong(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["describe", *arguments]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
