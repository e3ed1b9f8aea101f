"""Checkpoints on disk: what is written is read back, and every kind of damage has its sentence."""

import functools
import json
import os
import struct

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import arch_jax
from arch_jax.errors import RunError, UsageError
from arch_jax.interop.safetensors import INDEX, SINGLE, open_checkpoint, read_header, write_tensors


def file_of(header, numbers=b"", length=None):
    """The bytes of a file with the given header (as an object or as bytes)."""
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(content) if length is None else length) + content + numbers


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **changes):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)} | changes


def refusal(path, content):
    (path / SINGLE).write_bytes(content)
    with pytest.raises(RunError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert len(message) < 600
    assert "\n" not in message
    return message


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5), (7,), (0, 4), (2, 3, 4)])
def test_written_and_read(dtype, shape, tmp_path):
    array = np.random.default_rng(0).normal(size=shape).astype(dtype)
    other = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_tensors(tmp_path / SINGLE, {"a": array, "b": other.T})
    tensors = open_checkpoint(tmp_path)
    assert tensors.keys() == {"a", "b"}
    assert tensors["a"].shape == shape
    read = np.asarray(tensors["a"])
    assert read.dtype == dtype
    assert read.tobytes() == array.tobytes()
    np.testing.assert_array_equal(np.asarray(tensors["b"]), other.T)
    assert np.asarray(tensors["b"], np.float64).dtype == np.float64


def test_an_aligned_header_and_zero_sized_tensors(tmp_path):
    header = json.dumps({"a": entry(), "b": entry(shape=(0,), offsets=(8, 8)), "__metadata__": {"format": "pt"}})
    (tmp_path / SINGLE).write_bytes(file_of(header.encode() + b"   ", struct.pack("<2f", 1, 2)))
    np.testing.assert_array_equal(np.asarray(open_checkpoint(tmp_path)["a"]), [1, 2])


DAMAGED = {
    "empty": (b"", "is cut off or no safetensors file: it has 0 bytes"),
    "cut within the length": (b"\x08\0\0", "it has 3 bytes, and a header takes at least 8"),
    "cut within the header": (file_of({"a": entry()}, length=10_000), "its header claims 10,000 bytes"),
    "a length of 2^64 - 1": (file_of({}, length=2**64 - 1), "its header claims 18,446,744,073,709,551,615 bytes"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer, not the weights"),
    "not JSON": (file_of(b"{'a': 1}"), "the header of 'model.safetensors' is not valid JSON"),
    "not UTF-8": (file_of(b'{"\xff": 1}'), "is not UTF-8 text at byte 2"),
    "not an object": (file_of(b"[1, 2]"), "holds [1, 2]; expected a JSON object"),
    "NaN": (file_of(b'{"a": NaN}'), "holds NaN, which is not JSON"),
    "twice": (file_of(b'{"a": {}, "a": {}}'), "names 'a' twice"),
    "deep": (file_of(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "is nested too deeply"),
    "long number": (file_of(b'{"a": ' + b"9" * 5000 + b"}"), "is not valid JSON"),
    "no entry": (file_of({"a": 3}), "the tensor 'a' in 'model.safetensors' is described by 3; expected its dtype"),
    "lacks a field": (file_of({"a": {"dtype": "F32", "shape": []}}), "expected its dtype, shape and data_offsets"),
    "spare field": (file_of({"a": entry(pickle="x")}, bytes(8)), "expected its dtype, shape and data_offsets"),
    "dtype": (file_of({"a": entry("F33")}, bytes(8)), "has dtype 'F33'; the nearest"),
    "dtype a list": (file_of({"a": entry([])}, bytes(8)), "has dtype []"),
    "negative shape": (file_of({"a": entry(shape=(-2,))}, bytes(8)), "has shape [-2]; expected"),
    "float shape": (file_of({"a": entry(shape=(2.0,))}, bytes(8)), "has shape [2.0]; expected"),
    "boolean shape": (file_of({"a": entry(shape=(True, 2))}, bytes(8)), "has shape [True, 2]; expected"),
    "too many dimensions": (file_of({"a": entry(shape=(1,) * 33)}, bytes(8)), "expected at most 32 whole numbers"),
    "shape beyond 2^63": (file_of({"a": entry(shape=(2**63, 0))}, bytes(8)), "expected at most 32 whole numbers"),
    "overflow to the right size": (
        file_of({"a": entry(shape=(2**32, 2**32, 2), offsets=(0, 0))}),
        "needs 147573952589676412928 bytes, but its data_offsets leave 0",
    ),
    "offsets in the wrong order": (
        file_of({"a": entry(offsets=(8, 0))}, bytes(8)),
        "has data_offsets [8, 0]; expected",
    ),
    "offsets outside": (file_of({"a": entry(offsets=(8, 16))}, bytes(8)), "two numbers in order, at most 8"),
    "three offsets": (file_of({"a": entry(offsets=(0, 4, 8))}, bytes(8)), "has data_offsets [0, 4, 8]"),
    "wrong size": (file_of({"a": entry(shape=(3,))}, bytes(8)), "needs 12 bytes, but its data_offsets leave 8"),
    "overlap": (file_of({"a": entry(), "b": entry()}, bytes(8)), "'b' in 'model.safetensors' overlaps"),
    "hole": (file_of({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)), "leaves 4 bytes before it"),
    "spare bytes": (file_of({"a": entry()}, bytes(9)), "holds 9 bytes of numbers, but its tensors end at 8"),
    "metadata": (file_of({"__metadata__": {"format": 3}}), "expected texts by name"),
    "metadata a list": (file_of({"__metadata__": []}), "expected texts by name"),
    "another framework": (file_of({"__metadata__": {"format": "tf"}}), "is of format 'tf'; expected 'pt'"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files(name, tmp_path):
    content, expected = DAMAGED[name]
    assert expected in refusal(tmp_path, content)


def test_a_large_header_is_refused_before_it_is_read(tmp_path):
    with open(tmp_path / SINGLE, "wb") as file:
        file.write(struct.pack("<Q", 200_000_000))
        file.truncate(300_000_000)  # sparse: no disk is taken
    with pytest.raises(RunError, match="claims 200,000,000 bytes; expected at most 100,000,000"):
        open_checkpoint(tmp_path)


def test_numbers_that_are_no_weights(tmp_path):
    (tmp_path / SINGLE).write_bytes(file_of({"a": entry("I8", (8,))}, bytes(8)))
    with pytest.raises(UsageError, match=r"'a' in 'model.safetensors' holds I8 numbers; expected one of F16, BF16"):
        np.asarray(open_checkpoint(tmp_path)["a"])


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    (tmp_path / SINGLE).write_bytes(file_of({"a": entry()}, bytes(8)))
    tensors = open_checkpoint(tmp_path)
    os.truncate(tmp_path / SINGLE, (tmp_path / SINGLE).stat().st_size - 4)
    with pytest.raises(RunError, match="ends within the tensor 'a'"):
        np.asarray(tensors["a"])


@functools.partial(jax.jit, static_argnums=0)
def initial(module):
    return module.init(jax.random.key(0), jnp.zeros((1, 3), jnp.int32))


def tiny(**changes):
    module = arch_jax.create(
        "gpt", vocabulary=11, depth=2, width=8, **{"mixer.heads": 2, "mixer.kv_heads": 1}, **changes
    )
    return module, initial(module)


@pytest.fixture
def sharded(tmp_path):
    module, variables = tiny(scan=True)
    arch_jax.save_pretrained(module, variables, tmp_path, shard_bytes=1_000)
    index = json.loads((tmp_path / INDEX).read_text())
    assert len(set(index["weight_map"].values())) > 2
    return tmp_path, index


def test_shards(sharded):
    folder, index = sharded
    tensors = open_checkpoint(folder)
    assert tensors.keys() == index["weight_map"].keys()
    assert sum(np.asarray(tensor).nbytes for tensor in tensors.values()) == index["metadata"]["total_size"]
    names = sorted(path.name for path in folder.iterdir())
    count = len(names) - 2
    shards = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    assert names == sorted(["config.json", INDEX, *shards])


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("../model.safetensors", "'../model.safetensors' is not the plain name of a file"),
        ("/etc/passwd", "'/etc/passwd' is not the plain name of a file"),
        ("sub/model.safetensors", "is not the plain name of a file"),
        ("..", "'..' is not the plain name of a file"),
        ("", "'' is not the plain name of a file"),
        ("a\0b", "is not the plain name of a file"),
        ("\ud800", "is not the plain name of a file"),
        ("x" * 10_000, "is not the plain name of a file"),
        ("absent.safetensors", "the file 'absent.safetensors' is missing"),
        (3, "expected the name of a file for each tensor"),
        (None, "expected the name of a file for each tensor"),
    ],
)
def test_places_in_an_index(place, expected, sharded):
    folder, index = sharded
    index["weight_map"]["model.norm.weight"] = place
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(RunError) as caught:
        arch_jax.load_pretrained(folder)
    assert expected in str(caught.value)
    assert len(str(caught.value)) < 600


def test_an_index_that_does_not_fit_its_shards(sharded):
    folder, index = sharded
    places = index["weight_map"]
    first, last = min(places.values()), max(places.values())

    def problem(changed):
        (folder / INDEX).write_text(json.dumps({"weight_map": changed}))
        with pytest.raises(RunError) as caught:
            arch_jax.load_pretrained(folder)
        return str(caught.value)

    assert "is missing in" in problem(places | {"ghost": first})
    assert "does not name it" in problem({n: p for n, p in places.items() if n != "model.norm.weight"})
    elsewhere = {n: (first if p == last else p) for n, p in places.items()}
    elsewhere |= {"ghost": last}
    assert "says that it lies in" in problem(elsewhere)
    assert "the weight_map of model.safetensors.index.json is {}" in problem({})
    assert "the weight_map of model.safetensors.index.json is []" in problem([])
    os.unlink(folder / first)
    assert f"the file {first!r} is missing" in problem(places)


def test_a_tensor_in_two_shards(sharded):
    folder, index = sharded
    shards = sorted(set(index["weight_map"].values()))
    doubled = {name: np.asarray(tensor) for name, tensor in read_header(folder / shards[0]).items()}
    doubled |= {name: np.asarray(tensor) for name, tensor in read_header(folder / shards[1]).items()}
    write_tensors(folder / shards[1], doubled)
    with pytest.raises(RunError, match=r"lies in 'model-00002.*says that it lies in 'model-00001"):
        arch_jax.load_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", SINGLE])
def test_links_that_lead_out_of_the_folder(name, tmp_path):
    arch_jax.save_pretrained(*tiny(), tmp_path / "model")
    outside = tmp_path / "outside"
    (tmp_path / "model" / name).rename(outside)
    (tmp_path / "model" / name).symlink_to(outside)
    with pytest.raises(RunError, match="is a link that leads out of its folder"):
        arch_jax.load_pretrained(tmp_path / "model")
    (tmp_path / "model" / name).unlink()
    (tmp_path / "model" / name).symlink_to(name)
    with pytest.raises((RunError, UsageError), match=r"cannot read|has no config.json"):
        arch_jax.load_pretrained(tmp_path / "model")


def test_links_of_the_hugging_face_cache(tmp_path):
    """snapshots/REVISION/model.safetensors -> ../../blobs/HASH is how downloaded models lie on disk."""
    module, variables = tiny()
    snapshot = tmp_path / "models--tiny" / "snapshots" / "0123"
    blobs = tmp_path / "models--tiny" / "blobs"
    blobs.mkdir(parents=True)
    arch_jax.save_pretrained(module, variables, snapshot)
    for i, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(blobs / str(i))
        path.symlink_to(os.path.join("..", "..", "blobs", str(i)))
    jax.tree.map(np.testing.assert_array_equal, arch_jax.load_pretrained(snapshot, scan=False)[1], variables)


def test_folders_without_weights(tmp_path):
    arch_jax.save_pretrained(*tiny(), tmp_path)
    (tmp_path / SINGLE).unlink()
    with pytest.raises(UsageError, match=r"holds neither 'model.safetensors' nor 'model.safetensors.index.json'"):
        arch_jax.load_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02cos\nsystem\n")
    with pytest.raises(UsageError, match=r"'pytorch_model.bin', which is not read.*load them in transformers"):
        arch_jax.load_pretrained(tmp_path)
    (tmp_path / SINGLE).mkdir()
    with pytest.raises(RunError, match="is not a file"):
        arch_jax.load_pretrained(tmp_path)
