"""Damaged checkpoints: whatever happens to their bytes, loading ends in success or in a sentence of ours."""

import contextlib
import importlib.util
import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.errors import ArchJaxError
from arch_jax.interop.configurations import module_of
from arch_jax.interop.safetensors import INDEX, SINGLE
from arch_jax.interop.transformers.text.gpt2 import GPT2_FIELDS
from arch_jax.interop.transformers.text.llama import LLAMA_FIELDS

spec = importlib.util.spec_from_file_location("mutations", Path(__file__).parent / "mutations.py")
mutations = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mutations)

GPT2 = {"model_type": "gpt2", "vocab_size": 5, "n_positions": 4, "n_embd": 4, "n_layer": 2, "n_head": 2}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 5,
    "hidden_size": 4,
    "intermediate_size": 3,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0},
}
#: How much memory loads may take, in MiB. The checkpoints are below 0.01; the rest is JAX's, as it traces shapes.
MOST_MEMORY = 200
#: Seconds that one load may take, on a machine shared with others.
MOST_SECONDS = 20
thorough = pytest.mark.thorough
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")

#: Values that fields go wrong with, however well-formed the JSON around them is.
VALUES = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**400, -(10**400)),
    *(0.0, -0.0, 0.5, 1.0, 2.0, 1e-300, 1e300, 1e308, float("inf"), float("nan"), "", "0", "gelu", "F16", "x" * 10_000),
    *("\ud800", "\0", "../x", "model.safetensors", [], [0], [1, 2], [[]], [2**63, 0], [2**62] * 30, {}, {"a": {}}),
    *({"rope_type": "llama3", "factor": 1e308}, {"type": "default"}, {"rope_type": []}, [None] * 100, [10**400]),
]


def memory(kind):
    """What the process holds (VmRSS), or the most that it held (VmHWM), in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(kind)).split()[1]) / 1024


class Loads:
    """Loads a damaged checkpoint many times and counts how that ends."""

    def __init__(self):
        self.outcomes = {"loaded": 0, "RunError": 0, "UsageError": 0}

    def __enter__(self):
        with contextlib.suppress(OSError):  # a sandbox may forbid it; the peak then counts from the process's start
            Path("/proc/self/clear_refs").write_text("5")
        self.before = memory("VmHWM")
        return self

    def __exit__(self, *_):
        assert memory("VmHWM") - self.before < MOST_MEMORY

    def load(self, path, content, what):
        """Loads the checkpoint that `path` belongs to, with `content` in its place."""
        original = path.read_bytes()
        path.write_bytes(content)
        start = time.perf_counter()
        try:
            arch_jax.load_pretrained(path.parent)
            self.outcomes["loaded"] += 1
        except ArchJaxError as error:
            message = str(error)
            assert "\n" not in message, f"{what}: {message}"
            assert 10 < len(message) < 1_000, f"{what}: {message}"
            self.outcomes[type(error).__name__] += 1
        finally:
            path.write_bytes(original)
        assert time.perf_counter() - start < MOST_SECONDS, what


@pytest.fixture(scope="module", params=[GPT2, LLAMA], ids=["gpt2", "llama"])
def checkpoints(request, tmp_path_factory):
    """A checkpoint in one file, and the same one in shards."""
    _, module = module_of(request.param)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 3), jnp.int32))
    folders = {}
    for name, most in (("single", 10**9), ("sharded", 300)):
        folders[name] = tmp_path_factory.mktemp(name)
        arch_jax.save_pretrained(module, variables, folders[name], shard_bytes=most)
    shards = sorted(folders["sharded"].glob("*.safetensors"))
    return {
        "config.json": (folders["single"] / "config.json",),
        SINGLE: (folders["single"] / SINGLE,),
        INDEX: (folders["sharded"] / INDEX,),
        "shards": shards,
    }


@pytest.mark.parametrize(
    ("kind", "count", "seed"),
    [("config.json", 25, 5), (SINGLE, 12, 6), (INDEX, 12, 7), ("shards", 12, 8)]
    + [
        pytest.param(*case, marks=thorough)
        for case in (("config.json", 250, 0), (SINGLE, 120, 1), (INDEX, 80, 2), ("shards", 50, 3))
    ],
)
def test_damaged(kind, count, seed, checkpoints):
    """A handful; and 250 times config.json and 250 times the weights, for both model types: 1,000 in all."""
    random = np.random.default_rng(seed)
    with Loads() as loads:
        for i in range(count):
            path = checkpoints[kind][i % len(checkpoints[kind])]
            loads.load(path, mutations.mutate(path.read_bytes(), random), f"mutation {i}")
    assert loads.outcomes["RunError"] > count / 10, loads.outcomes
    assert sum(loads.outcomes.values()) == count


def leaves(data, path=()):
    """The paths of all values in a JSON object."""
    for name, value in data.items():
        yield (*path, name)
        if isinstance(value, dict):
            yield from leaves(value, (*path, name))


def damaged(data, random):
    """The object with one or two values replaced by others of any type, or one name by another."""
    data = json.loads(json.dumps(data))
    for _ in range(random.integers(1, 3)):
        paths = list(leaves(data))
        *parents, name = paths[random.integers(len(paths))]
        owner = data
        for parent in parents:
            owner = owner[parent]
        if random.random() < 0.1:
            owner[name[:-1] + "0"] = owner.pop(name)
        else:
            owner[name] = VALUES[random.integers(len(VALUES))]
    return data


@pytest.mark.parametrize("count", [15, pytest.param(150, marks=thorough)])
@pytest.mark.parametrize("kind", ["config.json", SINGLE, INDEX])
def test_well_formed_nonsense(kind, count, checkpoints):
    """Values of any type and size in any place: what a parser lets pass, the checks behind it have to see."""
    random = np.random.default_rng(4)
    path = checkpoints[kind][0]
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    data = json.loads(content[8 : 8 + length] if kind == SINGLE else content)
    if kind == "config.json":  # with every field that is read
        names = GPT2_FIELDS if data["model_type"] == "gpt2" else LLAMA_FIELDS
        refused = {name: supported[0] for name, supported in names.refuses.items()}
        data = {name: field.default for name, field in names.reads.items()} | refused | data
        data |= {"rope_theta": 100.0} if data["model_type"] == "llama" else {}
    with Loads() as loads:
        for i in range(count):
            text = json.dumps(damaged(data, random)).encode()
            header = len(text).to_bytes(8, "little") if kind == SINGLE else b""
            loads.load(path, header + text + (content[8 + length :] if kind == SINGLE else b""), f"nonsense {i}")
    assert loads.outcomes["RunError"] + loads.outcomes["UsageError"] > 0.4 * count, loads.outcomes


def test_the_checkpoints_are_valid(checkpoints):
    """What is mutated loads when it is not: otherwise everything would be refused for another reason."""
    for paths in checkpoints.values():
        module, variables = arch_jax.load_pretrained(paths[0].parent)
        assert json.loads((paths[0].parent / "config.json").read_text())["vocab_size"] == module.vocabulary
        assert np.isfinite(np.asarray(variables["params"]["embedding"]["embedding"])).all()
