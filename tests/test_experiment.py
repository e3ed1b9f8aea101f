"""Experiments: plain fields that go to JSON and back, are changed by name, and are loaded from files."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import arch_jax
from arch_jax import experiment as experiments
from arch_jax import fields
from arch_jax.errors import UsageError
from arch_jax.layers.mixers.attention import Attention
from arch_jax.optimizer import Optimizer

ROOT = Path(__file__).parents[1]
NAMES = sorted(experiments.experiments())


def plain(**settings) -> arch_jax.Experiment:
    return arch_jax.Experiment(
        model=arch_jax.create("gpt", depth=1),
        objective=arch_jax.objective("next_token"),
        data=arch_jax.Text(batch=8),
        **settings,
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer": (Optimizer("lion", clip=None), Optimizer(horizon=3))},
        {"ema": 0.5, "parallel": "pmap", "tensorboard": True, "name": "a b", "seed": 2**32 - 1},
    ],
    ids=["plain", "two optimizers", "others"],
)
def test_json_and_back(settings):
    one = plain(**settings)
    back = arch_jax.Experiment.from_json(json.loads(json.dumps(one.to_json())))
    assert back == one
    assert hash(back) == hash(one)
    assert back.to_json() == one.to_json()


@pytest.mark.parametrize("name", NAMES)
def test_those_that_come_with_the_project(name):
    one, module = experiments.load(name)
    assert one.name == name
    assert arch_jax.Experiment.from_json(json.loads(json.dumps(one.to_json()))) == one
    assert experiments.experiments()[name] == module.__doc__.strip().splitlines()[0] != ""
    assert one.settled().settled() == one.settled()
    generators = {key: make for key, make in vars(module).items() if key.startswith("ablate_")}
    for key, make in generators.items():
        changes = list(make())
        different = {one.overridden(change) for change in changes}
        assert len(different) == len(changes), key
        assert different - {one}, key  # beside the baseline, which is compared with them


def costs(model) -> tuple[int, int, int]:
    """Parameters, and on one picture of 30 x 30 the products of a training step and of a forward pass."""
    x = jax.ShapeDtypeStruct((1, 30, 30, 1), jnp.float32)
    rest = jax.eval_shape(model.init, jax.random.key(0), x)
    parameters = rest.pop("params")
    total = lambda p, rest, x: model.apply({"params": p, **rest}, x, train=True, mutable=[*rest])[0].sum()
    step, forward = (arch_jax.count_flops(f, parameters, rest, x).products for f in (jax.grad(total), total))
    return sum(leaf.size for leaf in jax.tree.leaves(parameters)), step, forward


def test_the_convolutional_network_and_the_transformer_of_cnn_vs_vit_cost_the_same():
    one, module = experiments.load("cnn_vs_vit")
    vit, resnet = costs(one.model), costs(one.overridden(module.RESNET).model)
    assert (vit[0], resnet[0]) == (42_090, 43_490)
    for here, there, tolerance in zip(vit, resnet, (0.04, 0.01, 0.06)):
        assert here == pytest.approx(there, rel=tolerance)


def test_names_are_found_without_running_a_file(monkeypatch, tmp_path):
    (tmp_path / "good.py").write_text('"""First line.\n\nMore."""\nraise SystemExit\n')
    (tmp_path / "_hidden.py").write_text("")
    (tmp_path / "._bare.py").write_bytes(b"\0\5\x16\7\0Mac OS X")
    (tmp_path / "bare.py").write_text("")
    monkeypatch.setattr(experiments, "directories", lambda: [tmp_path])
    assert experiments.experiments() == {"bare": "", "good": "First line."}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"steps": 0}, "steps is 0; expected at least 1"),
        ({"evaluate_every": 0}, "evaluate_every is 0; expected at least 1"),
        ({"keep": 0}, "keep is 0; expected at least 1"),
        ({"seed": -1}, "seed is -1; expected 0 to 4294967295"),
        ({"seed": 2**32}, "seed is 4294967296; expected 0 to 4294967295"),
        ({"ema": 1.0}, "ema is 1.0; expected more than 0 and less than 1, or none"),
        ({"accumulate": 3}, "data.batch 8 can't be cut into accumulate=3; the nearest is 2"),
    ],
    ids=str,
)
def test_settings_out_of_range(settings, says):
    with pytest.raises(UsageError) as caught:
        plain(**settings)
    assert str(caught.value) == says


@pytest.mark.parametrize(
    ("changes", "path", "expected"),
    [
        ({"steps": "1e2"}, "steps", 100),
        ({"model.mixer.heads": "4"}, "model.mixer.heads", 4),
        ({"model.mixer.rope": "none"}, "model.mixer.rope", None),
        ({"optimizer.clip": "none"}, "optimizer.clip", None),
        ({"optimizer": {"name": "lion"}}, "optimizer.name", "lion"),
        ({"data.length": 7}, "data.length", 7),
        ({"objective.z_loss": "0.1"}, "objective.z_loss", 0.1),
        ({"parallel": "pmap"}, "parallel", "pmap"),
        ({"model": "gpt2"}, "model.position.length", 1024),
        ({"model": "gpt2", "model.position.length": 16}, "model.position.length", 16),
        ({"model.position.length": 16, "model": "gpt2"}, "model.position.length", 16),
        ({"accumulate": 3, "data.batch": 6}, "accumulate", 3),
    ],
    ids=str,
)
def test_overridden(changes, path, expected):
    assert dict(fields.walk(plain().overridden(changes)))[path] == expected


def test_overridden_in_an_entry_of_a_tuple():
    two = plain(optimizer=(Optimizer(), Optimizer()))
    assert two.overridden({"optimizer.1.b1": "0.5"}).optimizer == (Optimizer(), Optimizer(b1=0.5))
    hybrid = plain().overridden({"model.mixer": '["attention", {"module": "attention", "window": 4}]'})
    assert hybrid.overridden({"model.mixer.1.heads": 2}).model.mixer == (Attention(), Attention(heads=2, window=4))


def test_overridden_by_names():
    it = plain()
    assert it.overridden({"model": "gpt2"}).model == arch_jax.create("gpt2")
    assert it.overridden({"objective": "next_token"}) == it
    with pytest.raises(UsageError, match="unknown objective 'next_tokn'; the nearest are 'next_token'"):
        it.overridden({"objective": "next_tokn"})
    with pytest.raises(UsageError, match="unknown field 'stps'; the nearest is 'steps'"):
        it.overridden({"stps": 1})
    assert it.overridden({}) is it


def test_the_horizon_is_settled_once():
    it = plain(steps=30)
    assert it.optimizer.horizon is None
    assert it.settled().optimizer.horizon == 30
    assert dataclasses.replace(it.settled(), steps=60).settled().optimizer.horizon == 30
    two = plain(steps=30, optimizer=(Optimizer(horizon=5), Optimizer())).settled()
    assert [one.horizon for one in two.optimizer] == [5, 30]


def test_the_task_is_the_objective_of_the_model():
    it = plain()
    assert it.objective.model is None
    assert it.task == dataclasses.replace(it.objective, model=it.model)
    assert list(it.optimizers) == ["model"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "mine.py has no config(); expected a function that returns an Experiment"),
        ("config = 3", "mine.py has no config(); expected a function that returns an Experiment"),
        ("def config():\n    return 3", "config() of mine.py returned int; expected an Experiment"),
        ("x = 1\ndef config(:\n", "{} is not Python: invalid syntax in line 2"),
        (
            "x = 1\n\nimport nothing_of_this_name",
            "{} fails with ModuleNotFoundError in line 3: No module named 'nothing_",
        ),
        ("def config():\n    return {}['key']", "{} fails with KeyError in line 2: 'key'"),
        (
            "import arch_jax\n\n\ndef config():\n    return arch_jax.create('gtp')",
            "unknown model 'gtp'; the nearest are",
        ),
    ],
    ids=["empty", "no function", "no experiment", "syntax", "import", "fails", "own sentence"],
)
def test_bad_files(tmp_path, content, says):
    file = tmp_path / "mine.py"
    file.write_text(content)
    with pytest.raises(UsageError) as caught:
        experiments.load(str(file))
    assert str(caught.value).startswith(says.format(file))


def test_names_that_do_not_exist(tmp_path):
    with pytest.raises(UsageError, match="unknown experiment 'gtp'; the nearest is 'gpt'"):
        experiments.load("gtp")
    for name in ("./gpt", "none.py", str(tmp_path)):
        with pytest.raises(UsageError, match=f"the experiment file '{name}' does not exist; expected a Python file"):
            experiments.load(name)


def test_a_file_is_known_by_its_name_unless_it_has_one(tmp_path):
    file = tmp_path / "mine.py"
    text = "import arch_jax\nfrom arch_jax.experiment import load\n\ndef config():\n    return {}\n"
    file.write_text(text.format("load('gpt')[0]"))
    assert experiments.load(str(file))[0].name == "gpt"
    file.write_text(text.format("__import__('dataclasses').replace(load('gpt')[0], name='')"))
    assert experiments.load(str(file))[0].name == "mine"
