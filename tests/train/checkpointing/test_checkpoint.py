"""Checkpoints give back the bits that were saved, or name the one that can't and go back one: never wrong bits."""

import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.struct
import grain
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from arch_jax.errors import RunError, UsageError
from arch_jax.train.checkpointing import checksums as recording
from arch_jax.train.checkpointing.checkpoint import Checkpoints
from arch_jax.train.checkpointing.checksums import checksums, seal, unseal

ROOT = Path(__file__).parents[3]


@flax.struct.dataclass
class State:
    step: Any
    parameters: Any
    optimizer: Any
    key: Any
    extra: Any


@functools.cache
def make_state(step: int = 0) -> State:
    """A state whose every bit follows from the step, with every kind of leaf that training meets."""
    draw = np.random.default_rng(step)
    parameters = {
        "dense": {"kernel": jnp.asarray(draw.normal(size=(4, 6)), jnp.float32), "bias": jnp.full((6,), 0.5 + step)},
        "embedding": jnp.asarray(draw.normal(size=(5, 3)), jnp.bfloat16),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)).init(parameters)
    extra = {
        "mask": jnp.asarray(draw.random(7) < 0.5),
        "bytes": jnp.asarray(draw.integers(-128, 128, 9), jnp.int8),
        "words": jnp.asarray(draw.integers(0, 2**32, (2, 3), dtype=np.uint32)),
        "empty": jnp.zeros((0, 3)),
        "waves": jnp.asarray(draw.normal(size=3) + 1j * draw.normal(size=3), jnp.complex64),
        "odd": jnp.asarray([np.nan, -0.0, np.inf, 1e-45], jnp.float32),
        "half": jnp.asarray(draw.normal(size=3), jnp.float16),
        "eight": jnp.asarray(draw.normal(size=3), jnp.float8_e4m3fn),
        "scalar": jnp.float32(draw.normal()),
        "weak": jax.jit(lambda x: x)(1.5),
        "keys": jax.random.split(jax.random.key(step, impl="rbg"), 2),
        "none": None,
    }
    return State(jnp.asarray(step, jnp.int32), parameters, optimizer, jax.random.key(step), extra)


def bits(leaf: Any) -> tuple[Any, ...]:
    """Everything about a leaf that must come back."""
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return (str(leaf.dtype), leaf.shape, np.asarray(jax.random.key_data(leaf)).tobytes())
    weak = leaf.weak_type if isinstance(leaf, jax.Array) else type(leaf).__name__
    array = np.asarray(leaf)
    return (array.dtype.name, array.shape, array.tobytes(), weak)


def same(left: Any, right: Any) -> bool:
    """Structure, dtypes, weak types and bits."""
    return jax.tree.structure(left) == jax.tree.structure(right) and all(
        bits(a) == bits(b) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    )


class Counter:
    """An iterator with plain JSON, or text, as its state."""

    def __init__(self, place: Any = 0, *, kind: type = dict):
        self.place, self.kind = place, kind

    def get_state(self) -> Any:
        return {"place": self.place} if self.kind is dict else json.dumps({"place": self.place}).encode()

    def set_state(self, state: Any) -> None:
        assert isinstance(state, self.kind)
        self.place = (state if self.kind is dict else json.loads(state))["place"]


@functools.cache
def abstract() -> Any:
    state = make_state(1)
    return jax.eval_shape(lambda: state)


def restored(directory: Path, iterator: Any = None, **arguments: Any) -> tuple[Any, list[str]]:
    said: list[str] = []
    with Checkpoints(directory, log=said.append) as checkpoints:
        return checkpoints.restore(abstract(), iterator, **arguments), said


# -- whole ------------------------------------------------------------------------------------------------------------


def test_state_and_iterator_come_back_bit_for_bit(tmp_path: Path) -> None:
    state = make_state(3)
    with Checkpoints(tmp_path / "a" / "b") as checkpoints:
        assert checkpoints.restore(abstract()) is None
        assert checkpoints.steps() == []
        assert checkpoints.best_step() is None
        checkpoints.save(3, state, Counter(17), {"loss": 1.5, "accuracy": np.float32(0.5)})
        checkpoints.wait()
        assert checkpoints.steps() == [3]
    iterator = Counter()
    (step, again), said = restored(tmp_path / "a" / "b", iterator)
    assert (step, iterator.place, said) == (3, 17, [])
    assert same(state, again)
    assert same(state, restored(tmp_path / "a" / "b")[0][1])  # the iterator may be left aside
    assert not again.parameters["dense"]["kernel"].committed
    record = json.loads((tmp_path / "a" / "b" / "3" / "record" / "record.json").read_text())
    assert record["metrics"] == {"loss": 1.5, "accuracy": 0.5}
    assert record["leaves"]["parameters/dense/kernel"]["shape"] == [4, 6]


def test_the_callers_buffers_are_free_when_save_returns(tmp_path: Path) -> None:
    """Donating the state and writing into host arrays right after saving does not change what is saved."""
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = {f"w{i}": jnp.arange(100_000, dtype=jnp.float32) + i for i in range(8)}
    host = np.arange(1000.0)
    iterator = Counter(0)
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for number in range(3):
            host[:] = number
            iterator.place = number
            checkpoints.save(number, {"device": state, "host": host}, iterator)
            state = step(state)
            state = step(state)
            host[:] = -1
            iterator.place = -1
        asked = {"device": jax.eval_shape(lambda: state), "host": host}
        for number in range(3):
            found, again = checkpoints.restore(asked, iterator, step=number)
            assert (found, iterator.place) == (number, number)
            assert np.all(again["host"] == number)
            assert isinstance(again["host"], np.ndarray)
            for i in range(8):
                expected = np.arange(100_000, dtype=np.float32) + i + 2 * number
                assert np.array_equal(again["device"][f"w{i}"], expected)


def test_a_restored_state_can_be_donated(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jnp.arange(64.0)})
        _, state = checkpoints.restore({"w": jax.ShapeDtypeStruct((64,), jnp.float32)})
    before = state["w"]
    after = jax.jit(lambda x: x + 1, donate_argnums=0)(before)
    assert before.is_deleted()
    assert np.array_equal(after, np.arange(64.0) + 1)


@pytest.mark.parametrize("kind", [dict, bytes])
def test_iterators_with_json_or_text(tmp_path: Path, kind: type) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(), Counter(5, kind=kind))
    iterator = Counter(kind=kind)
    restored(tmp_path, iterator)
    assert iterator.place == 5


def test_grain_iterator_goes_on_with_the_next_batch(tmp_path: Path) -> None:
    def batches() -> Any:
        return iter(grain.MapDataset.range(100).shuffle(seed=1).to_iter_dataset().batch(4))

    iterator = batches()
    for _ in range(3):
        next(iterator)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, make_state(), iterator)
        following = [next(iterator).tolist() for _ in range(2)]  # while it is being written
    again = batches()
    restored(tmp_path, again)
    assert [next(again).tolist() for _ in range(2)] == following
    # Grain's own handler reads the file, without this module.
    other = batches()
    from etils import epath

    path = epath.Path(tmp_path / "3" / "iterator")
    grain.checkpoint.CheckpointHandler().restore(path, args=grain.checkpoint.CheckpointRestore(other))
    assert next(other).tolist() == following[0]


def test_numbers_of_python_and_numpy(tmp_path: Path) -> None:
    state = {"count": 7, "rate": 0.1, "flag": True, "wide": np.float64(0.1), "table": np.arange(3, dtype=np.int64)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        _, again = checkpoints.restore(state)
        assert same(state, again)
        assert {name: type(leaf) for name, leaf in again.items()} == {name: type(leaf) for name, leaf in state.items()}
        # As a jitted step sees them: 32 bits.
        _, device = checkpoints.restore(jax.eval_shape(lambda: state))
        assert same(device, jax.jit(lambda state: state)(state))
        with pytest.raises(UsageError, match=r"name can't be saved in a checkpoint: it is a str"):
            checkpoints.save(2, {"name": "gpt"})
        with pytest.raises(UsageError, match="a metric of step 2 is not a number"):
            checkpoints.save(2, state, metrics={"loss": "low"})
        with pytest.raises(UsageError, match="iterator's state is neither text nor JSON"):
            checkpoints.save(2, state, Counter({1, 2}))
        assert checkpoints.steps() == [1]


def test_a_state_without_arrays_and_paths_that_look_alike(tmp_path: Path) -> None:
    for number, state in enumerate(
        [
            {"nothing": None, "empty": jnp.zeros((0,))},
            {"a/b": jnp.ones(2), "a": {"b": jnp.zeros(2)}, "": 3.0},
            jnp.ones(3),
        ]
    ):
        with Checkpoints(tmp_path / str(number)) as checkpoints:
            checkpoints.save(0, state)
            assert same(state, checkpoints.restore(state)[1])


@pytest.mark.thorough
def test_sharded_over_devices_and_back_on_other_shardings(tmp_path: Path) -> None:
    run_python(
        """
        import os
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
        import sys, contextlib, jax, jax.numpy as jnp, numpy as np
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        from arch_jax.train.checkpointing.checkpoint import Checkpoints
        from arch_jax.train.checkpointing.checksums import checksums

        for number, kind in enumerate((AxisType.Auto, AxisType.Explicit)):
            mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(kind, kind))
            on = lambda *axes: NamedSharding(mesh, P(*axes))
            w = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
            state = {
                "w": jax.device_put(w, on("data", "tensor")),
                "replicated": jax.device_put(np.arange(5), on()),
                "step": jax.jit(lambda: 1 + 0, out_shardings=on())(),
                "weak": jax.device_put(jnp.broadcast_to(jnp.asarray(2.5), (8,)), on("data")),
                "keys": jax.device_put(jax.random.split(jax.random.key(0), 8), on("data")),
                "key": jax.device_put(jax.random.key(1), on()),
                "other": jax.device_put(np.ones(3, np.float32), jax.devices()[3]),
            }
            def data(x):
                return np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
            assert checksums({"w": state["w"]}) == checksums({"w": w}) == checksums({"w": jnp.asarray(w)})
            for ambient in (False, True):
                with jax.set_mesh(mesh) if ambient else contextlib.nullcontext():
                    with Checkpoints(f"{sys.argv[1]}/{number}{ambient}") as checkpoints:
                        checkpoints.save(1, state)
                        abstract = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
                        asked = jax.tree.map(abstract, state)
                        for template in (state, asked):
                            _, again = checkpoints.restore(template)
                            for name, leaf in again.items():
                                assert leaf.sharding == state[name].sharding, (name, leaf.sharding)
                                if template is state and "key" not in name:
                                    assert leaf.weak_type == state[name].weak_type
                                assert leaf.dtype == state[name].dtype and np.array_equal(data(leaf), data(state[name]))
                        asked["w"] = jax.ShapeDtypeStruct((8, 6), jnp.float32, sharding=on(None, "tensor"))
                        _, again = checkpoints.restore(asked)
                        assert again["w"].sharding == on(None, "tensor") and np.array_equal(again["w"], w)
                        bare = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
                        _, again = checkpoints.restore(bare)
                        assert not again["w"].committed and np.array_equal(again["w"], w)
        """,
        tmp_path,
    )


@pytest.mark.thorough
def test_two_processes_agree(tmp_path: Path) -> None:
    """Each saves its shards and its own data iterator; where one can't read a checkpoint, both go back."""
    import socket

    code = """
        import os, sys
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
        import jax, numpy as np
        from jax.experimental import multihost_utils
        from jax.sharding import NamedSharding, PartitionSpec as P
        from arch_jax.train.checkpointing.checkpoint import Checkpoints

        directory, port, process = sys.argv[1], sys.argv[2], int(sys.argv[3])
        jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
        mesh = jax.make_mesh((4,), ("data",))
        w = np.arange(64, dtype=np.float32).reshape(8, 8)

        def make(step):
            def put(array, *axes):
                return jax.make_array_from_callback(array.shape, NamedSharding(mesh, P(*axes)), lambda i: array[i])
            return {"w": put(w * step, "data"), "replicated": put(w + step), "step": put(np.int32(step))}

        class Place:
            def __init__(self, place): self.place = place
            def get_state(self): return {"place": self.place}
            def set_state(self, state): self.place = state["place"]

        said = []
        with Checkpoints(directory, log=said.append) as checkpoints:
            for step in (1, 2, 3):
                checkpoints.save(step, make(step), Place(100 * process + step), {"loss": step})
            checkpoints.wait()
            asked = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), make(0))
            for expected in (3, 2):
                place = Place(None)
                step, state = checkpoints.restore(asked, place)
                assert (step, place.place) == (expected, 100 * process + expected)
                for name, leaf in make(step).items():
                    assert state[name].sharding == leaf.sharding
                    for a, b in zip(state[name].addressable_shards, leaf.addressable_shards):
                        assert np.array_equal(a.data, b.data)
                multihost_utils.sync_global_devices("read")
                if process == 1 and expected == 3:
                    with open(f"{directory}/3/iterator/process_1-of-2.json", "w") as file:
                        file.write('{"place": 5}')
                multihost_utils.sync_global_devices("damaged")
            assert len(said) == 1 and checkpoints.steps() == [1, 2], (said, checkpoints.steps())
            checkpoints.save(3, make(3), Place(100 * process + 3))
            checkpoints.wait()
            assert checkpoints.restore(asked, place)[0] == 3 and place.place == 100 * process + 3
        """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [python_process(code, tmp_path, port, process) for process in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors


@pytest.mark.filterwarnings("ignore:Sharding info")
def test_orbax_reads_the_state_without_this_module(tmp_path: Path) -> None:
    import orbax.checkpoint

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"dense": {"kernel": jnp.arange(6.0).reshape(2, 3)}})
    tree = orbax.checkpoint.PyTreeCheckpointer().restore(tmp_path / "1" / "state")
    assert np.array_equal(tree["dense/kernel"], np.arange(6.0).reshape(2, 3))


# -- which are kept ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [False, True])
def test_newest_and_best_are_kept(tmp_path: Path, restart: bool) -> None:
    losses = [5.0, 2.0, float("nan"), 3.0, None, float("-inf"), 4.0]
    expected = [[0], [0, 1], [1, 2], [1, 2, 3], [1, 3, 4], [1, 4, 5], [1, 5, 6]]
    state = {"w": jnp.ones(2)}
    checkpoints = Checkpoints(tmp_path)
    for step, (loss, kept) in enumerate(zip(losses, expected, strict=True)):
        checkpoints.save(step, state, metrics=None if loss is None else {"loss": loss, "other": 1})
        checkpoints.wait()
        assert checkpoints.steps() == kept
        assert checkpoints.best_step() == (0 if step == 0 else 1)
        if restart:
            checkpoints.close()
            checkpoints = Checkpoints(tmp_path)
    checkpoints.close()


def test_without_best_only_the_newest_are_kept(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=1, keep_best=False) as checkpoints:
        for step, loss in enumerate([1.0, 2.0, 3.0]):
            checkpoints.save(step, {"w": jnp.ones(2)}, metrics={"loss": loss})
    assert Checkpoints(tmp_path).steps() == [2]
    with pytest.raises(UsageError, match="keep=0"):
        Checkpoints(tmp_path, keep=0)


def test_a_step_is_saved_once_and_later_ones_are_not_overwritten(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, {"w": jnp.ones(2)})
        checkpoints.save(5, {"w": jnp.zeros(2)})
    with Checkpoints(tmp_path) as checkpoints:
        for step in (4, 5):
            with pytest.raises(
                RunError, match=f"checkpoint {step} can't be saved in {tmp_path}: checkpoint 5 is there"
            ):
                checkpoints.save(step, {"w": jnp.zeros(2)})
        assert checkpoints.restore({"w": jnp.ones(2)})[1]["w"].tolist() == [1, 1]
        checkpoints.save(5, {"w": jnp.zeros(2)})  # restored here: the same step of the same run
        assert checkpoints.restore({"w": jnp.ones(2)})[1]["w"].tolist() == [1, 1]


@pytest.mark.thorough
def test_sums_on_several_devices_of_a_cpu_are_waited_for_one_by_one():
    """Programs that wait for all devices share the CPU's threads: the next must not begin before the last has ended."""
    code = """
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import Mesh, NamedSharding, PartitionSpec
        from arch_jax.train.checkpointing import checksums as recording
        parts = NamedSharding(Mesh(np.array(jax.devices()), ("fsdp",)), PartitionSpec("fsdp"))
        arrays = {name: jax.device_put(jnp.arange(8.0) + i, parts) for i, name in enumerate("abc")}
        begun, wait, make = [], jax.block_until_ready, recording._device_sums
        recording._device_sums = lambda array: begun.append("begun") or make(array)
        jax.block_until_ready = lambda x: begun.append("ended") or wait(x)
        found = recording.checksums(arrays)
        assert begun == ["begun", "ended"] * 3, begun
        assert found == recording.checksums({name: np.asarray(array) for name, array in arrays.items()})
    """
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=os.environ | flags, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# -- earlier versions -------------------------------------------------------------------------------------------------


def test_moments_and_averages_of_fewer_bits_are_widened(tmp_path):
    """They followed the parameters' dtype once; the numbers are the same. Parameters themselves are as they were."""
    narrow = {"optimizer": {"mu": jnp.full(3, 0.1, jnp.bfloat16)}, "average": {"w": jnp.full(2, 0.3, jnp.float16)}}
    parameters = {"parameters": {"w": jnp.ones(2, jnp.bfloat16)}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, narrow | parameters)
        asked = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), narrow)
        _, found = checkpoints.restore(asked | parameters)
        for kind, name in (("optimizer", "mu"), ("average", "w")):
            np.testing.assert_array_equal(found[kind][name], narrow[kind][name].astype(jnp.float32), strict=True)
        assert found["parameters"]["w"].dtype == jnp.bfloat16
        with pytest.raises(RunError, match="parameters/w is of bfloat16 there and float32 here"):
            checkpoints.restore(asked | {"parameters": {"w": jnp.ones(2)}})


def test_statistics_that_were_not_averaged_are_those_of_the_run(tmp_path):
    state = {"others": {"batch_stats": {"mean": jnp.arange(3.0)}}, "average": {"model": {"w": jnp.ones(2)}}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        asked = state | {"average": state["average"] | {"batch_stats": {"mean": jnp.zeros(3)}}}
        _, found = checkpoints.restore(asked)
        np.testing.assert_array_equal(found["average"]["batch_stats"]["mean"], np.arange(3))
        with pytest.raises(RunError, match="average/batch_stats/variance is here and not there"):
            checkpoints.restore(state | {"average": {"batch_stats": {"variance": jnp.zeros(3)}}})


# -- another model ----------------------------------------------------------------------------------------------------


def test_another_model_is_not_called_corrupt(tmp_path: Path) -> None:
    saved = {"dense": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}, "key": jax.random.key(0)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, saved, Counter(1))
        checkpoints.save(2, saved)
        for change, words in [
            (
                {"dense": {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(4)}},
                r"dense/kernel has shape \(4, 4\) there and",
            ),
            ({"dense": {"kernel": jnp.ones((4, 4))}}, "dense/bias is there and not here"),
            ({"dense": saved["dense"] | {"scale": jnp.ones(4)}}, "dense/scale is here and not there"),
            ({"dense": saved["dense"] | {"bias": jnp.ones(4, jnp.int32)}}, "dense/bias is of float32 there and int32"),
            ({"key": jax.random.key(0, impl="rbg")}, r"key has shape \(2,\) there"),
            ({"key": jax.random.key_data(jax.random.key(0))}, "key is of key<fry> there and uint32 here"),
        ]:
            with pytest.raises(RunError, match=f"checkpoint 2 in {tmp_path} belongs to another model: {words}"):
                checkpoints.restore(saved | change)
        with pytest.raises(RunError, match=r"checkpoint 2 in .* was saved without a data iterator"):
            checkpoints.restore(saved, Counter())
        with pytest.raises(RunError, match=r"checkpoint 1 in .* belongs to another data pipeline"):
            checkpoints.restore(saved, Counter(kind=bytes), step=1)
        with pytest.raises(RunError, match=r"checkpoint 7 is not in .*; there: 1, 2"):
            checkpoints.restore(saved, step=7)
        assert checkpoints.steps() == [1, 2]


# -- damage -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pristine")
    with Checkpoints(directory) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make_state(step), Counter(10 * step), {"loss": 1.0 / step})
    return directory


def check_damaged(directory: Path, what: str) -> int:
    """Restores from a folder whose checkpoint 2 was damaged: the right bits of 2, or those of 1 and a sentence."""
    iterator = Counter()
    found, said = restored(directory, iterator)
    assert found is not None, what
    step, state = found
    assert same(state, make_state(step)), what
    assert iterator.place == 10 * step, what
    if step == 2:
        assert said == [], what
    else:
        assert step == 1, what
        assert len(said) == 1, (what, said)
        assert said[0].startswith(f"checkpoint 2 in {directory} is corrupt: "), what
        assert said[0].endswith("; going back to checkpoint 1"), what
        assert "\n" not in said[0]
        assert sorted(path.name for path in directory.iterdir()) == ["1", "damaged-2"], what
    return step


def damage_each(pristine: Path, tmp_path: Path, damages: Callable[[bytes], list[tuple[str, bytes | None]]]) -> int:
    """Applies each damage to each file of checkpoint 2 in turn; how many made it go back to checkpoint 1."""
    back = 0
    directory = tmp_path / "run"
    shutil.copytree(pristine, directory)
    for source in sorted(path for path in (pristine / "2").rglob("*") if path.is_file()):
        content, target = source.read_bytes(), directory / source.relative_to(pristine)
        for name, damaged in damages(content):
            target.unlink() if damaged is None else target.write_bytes(damaged)
            back += check_damaged(directory, f"{name} of {source.relative_to(pristine)}") == 1
            if (directory / "damaged-2").exists():
                (directory / "damaged-2").rename(directory / "2")
            target.write_bytes(content)
    return back


def test_deleted_and_truncated_files(pristine: Path, tmp_path: Path) -> None:
    def damages(content: bytes) -> list[tuple[str, bytes | None]]:
        return [("deletion", None), ("emptying", b""), ("half", content[: len(content) // 2]), ("tail", content[:-1])]

    assert damage_each(pristine, tmp_path, damages) > 12


def test_flipped_bits(pristine: Path, tmp_path: Path) -> None:
    """A sample; all 16,747 bytes, a random bit of each, were tried once: never wrong bits, never an exception."""
    draw = random.Random(0)

    def damages(content: bytes) -> list[tuple[str, bytes | None]]:
        flipped = []
        for place in [0, len(content) - 1, *(draw.randrange(len(content)) for _ in range(4 + len(content) // 700))]:
            bit = draw.randrange(8)
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            flipped.append((f"bit {bit} of byte {place}", bytes(changed)))
        return flipped

    assert damage_each(pristine, tmp_path, damages) > 12


def test_deleted_folders(pristine: Path, tmp_path: Path) -> None:
    for number, source in enumerate(path for path in [pristine / "2", *(pristine / "2").rglob("*")] if path.is_dir()):
        directory = tmp_path / str(number)
        shutil.copytree(pristine, directory)
        shutil.rmtree(directory / source.relative_to(pristine))
        if source.name == "2":
            assert restored(directory)[0][0] == 1
            (directory / "2").mkdir()
        check_damaged(directory, str(source.relative_to(pristine)))


def test_every_flipped_byte_of_an_array_names_the_leaf(tmp_path: Path) -> None:
    """Orbax restores these silently wrong: only the checksum notices."""
    kernel = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    with Checkpoints(tmp_path / "whole") as checkpoints:
        checkpoints.save(1, {"dense": {"kernel": jnp.asarray(kernel)}})
    files = [path for path in (tmp_path / "whole" / "1").rglob("*") if path.is_file()]
    file = next(path for path in files if kernel.tobytes() in path.read_bytes())
    content = file.read_bytes()
    for place in range(0, kernel.nbytes, 397):
        changed = bytearray(content)
        changed[content.index(kernel.tobytes()) + place] ^= 1 << place % 8
        file.write_bytes(changed)
        with pytest.raises(RunError, match=r"checkpoint 1 \(dense/kernel does not match its checksum\)"):
            Checkpoints(tmp_path / "whole").restore({"dense": {"kernel": jnp.asarray(kernel)}})
    file.write_bytes(content)
    assert np.array_equal(
        Checkpoints(tmp_path / "whole").restore({"dense": {"kernel": kernel + 0}})[1]["dense"]["kernel"], kernel
    )


def test_a_damaged_step_is_kept_aside_and_saved_again(pristine: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    for round_number in range(2):
        shutil.copytree(pristine, directory, dirs_exist_ok=True)
        shutil.rmtree(directory / "2" / "state")
        said: list[str] = []
        with Checkpoints(directory, log=said.append) as checkpoints:
            step, _ = checkpoints.restore(abstract())
            assert (step, len(said)) == (1, 1)
            assert checkpoints.steps() == [1]
            checkpoints.save(2, make_state(2), Counter(20))
        (step, state), said = restored(directory)
        assert (step, said) == (2, [])
        assert same(state, make_state(2))
        aside = sorted(path.name for path in directory.iterdir() if path.name.startswith("damaged"))
        assert aside == ["damaged-2", "damaged-2-1"][: round_number + 1]
    assert Checkpoints(directory).best_step() == 1  # 2 was saved without metrics


@pytest.mark.parametrize("damage", ["deleted", "emptied", "halved", "garbage", "digits"])
def test_a_damaged_older_checkpoint_does_not_stop_saving(pristine: Path, tmp_path: Path, damage: str) -> None:
    """Orbax's manager reads what is there when it is made: nothing it finds may stop the run."""
    directory = tmp_path / "run"
    shutil.copytree(pristine, directory)
    for path in [path for path in (directory / "1").rglob("*") if path.is_file()]:
        content = path.read_bytes()
        if damage == "deleted":
            path.unlink()
        elif damage == "digits":
            path.write_bytes(content.translate(bytes.maketrans(b"0123456789", b"9" * 10)))
        else:
            path.write_bytes(
                {"emptied": b"", "halved": content[: len(content) // 2], "garbage": os.urandom(64)}[damage]
            )
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.restore(abstract())[0] == 2
        assert checkpoints.best_step() == 2
        for step in (3, 4):
            checkpoints.save(step, make_state(step), metrics={"loss": 3.0})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 3, 4]


def test_damage_to_what_this_object_saved(tmp_path: Path) -> None:
    said: list[str] = []
    with Checkpoints(tmp_path, log=said.append) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make_state(step), metrics={"loss": 1.0 / step})
        checkpoints.wait()
        (tmp_path / "2" / "record" / "record.json").unlink()
        assert checkpoints.restore(abstract())[0] == 1
        assert said == [f"checkpoint 2 in {tmp_path} is corrupt: its record is damaged; going back to checkpoint 1"]
        checkpoints.save(2, make_state(2))
        checkpoints.save(3, make_state(3), metrics={"loss": 2.0})
        checkpoints.save(4, make_state(4))
        checkpoints.wait()
        assert checkpoints.steps() == [1, 3, 4]  # 1 is the best: 2 was saved again without metrics


def test_none_whole_names_them_all_and_changes_nothing(pristine: Path, tmp_path: Path) -> None:
    shutil.copytree(pristine, tmp_path / "run")
    (tmp_path / "run" / "1" / "record" / "record.json").write_text("{}")
    shutil.rmtree(tmp_path / "run" / "2" / "state")
    with pytest.raises(
        RunError, match=r"no checkpoint in .* is whole: checkpoint 2 \(.*\), checkpoint 1 \(its record is"
    ):
        restored(tmp_path / "run")
    with pytest.raises(RunError, match=r"checkpoint 1 in .* is corrupt: its record is damaged"):
        restored(tmp_path / "run", step=1)
    assert Checkpoints(tmp_path / "run").steps() == [1, 2]
    with pytest.raises(RunError, match=r"no checkpoint in .* is whole"):  # and so it stays: no silent fresh start
        restored(tmp_path / "run")


def test_a_shape_flipped_into_the_absurd_is_not_allocated(tmp_path: Path) -> None:
    """The stored shape becomes 10^15 values: it is compared with the record before anything is read."""
    import tensorstore

    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"w": jnp.ones((3, 4))})
    store = {"driver": "ocdbt", "base": f"file://{tmp_path}/2/state/"}
    values = tensorstore.KvStore.open(store).result()
    for key, old, new in [("shape", [3, 4], [10**15, 4]), ("chunks", [3, 4], [10**15, 4])]:
        written = json.loads(values["w/.zarray"])
        assert written[key] == old
        values["w/.zarray"] = json.dumps(written | {key: new}).encode()
        for asked in (jnp.ones((3, 4)), jax.device_put(jnp.ones((3, 4)), jax.devices()[0])):
            with pytest.raises(RunError, match=r"checkpoint 2 in .* is corrupt: w is stored as float32"):
                Checkpoints(tmp_path).restore({"w": asked}, step=2)
        values["w/.zarray"] = json.dumps(written).encode()
    assert Checkpoints(tmp_path).restore({"w": jnp.ones((3, 4))})[0] == 2


def test_trouble_of_this_machine_is_not_called_corrupt(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(pristine, tmp_path / "run")
    for error in (PermissionError(13, "Permission denied"), MemoryError("no memory")):

        def refuse(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(Checkpoints, "_read_arrays", refuse)
        with pytest.raises(RunError, match=r"checkpoint 2 in .* can't be read: (permission is denied|no memory)"):
            restored(tmp_path / "run")
    assert Checkpoints(tmp_path / "run").steps() == [1, 2]


# -- checksums --------------------------------------------------------------------------------------------------------


INTEGERS = ["bool", "int4", "uint4", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
FLOATS = ["float8_e5m2", "bfloat16", "float16", "float32", "float64", "complex64", "complex128"]


@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
def test_each_flipped_bit_changes_the_checksum(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a device finds the sums that numpy does, of its own arrays and of a device's."""
    kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    draw = np.random.default_rng(0)
    size = 4 if dtype.endswith("int4") else 1 if dtype == "bool" else 8 * kind.itemsize
    with jax.enable_x64(True):
        for shape in [(), (1,), (3, 5)]:
            count = int(np.prod(shape, dtype=int))
            raw = draw.integers(0, 2 if dtype == "bool" else 256, count * kind.itemsize, dtype=np.uint8)
            if size == 4:
                raw = draw.integers(0, 16, count, dtype=np.uint8)
            array = raw.view(kind).reshape(shape)
            device = jnp.asarray(array)
            assert device.dtype == kind
            whole = checksums({"small": device, "host": array})
            with monkeypatch.context() as patched:
                patched.setattr(recording, "_SMALL", 0)  # arrays of any size are summed on their device
                whole |= checksums({"device": device})
            assert whole["device"] == whole["small"] == whole["host"]
            seen = {whole["host"]}
            flips = [(place, bit) for place in range(count) for bit in range(size)]
            for place, bit in draw.permutation(flips)[:40]:
                changed = raw.copy()
                changed[place * kind.itemsize + bit // 8] ^= 1 << (bit % 8)
                seen.add(checksums({"host": changed.view(kind).reshape(shape)})["host"])
            assert len(seen) == 1 + min(40, len(flips))


def test_checksums_see_order_and_not_sharding() -> None:
    draw = np.random.default_rng(0)
    array = draw.normal(size=(7, 11)).astype(np.float32)
    other = array.copy()
    other[0, 0], other[3, 4] = array[3, 4], array[0, 0]
    sums = checksums({"a": array, "b": other, "c": array.T.copy(), "zero": np.zeros(3), "zeros": np.zeros(4)})
    assert len(set(sums.values())) == 5
    assert checksums({"empty": np.zeros((0, 3)), "none": jnp.zeros((0,))}) == dict.fromkeys(["empty", "none"], "0" * 16)


def test_a_sealed_record_notices_every_flipped_bit() -> None:
    record = {"step": 3, "metrics": {"loss": 0.1, "worst": "nan"}, "leaves": {"a/b": {"shape": [1, 2]}}}
    text = json.dumps(seal(record)).encode()
    assert unseal(text.decode()) == record
    for place in range(len(text)):
        for bit in range(8):
            changed = bytearray(text)
            changed[place] ^= 1 << bit
            with pytest.raises(ValueError):
                unseal(changed.decode())


# -- interruptions ----------------------------------------------------------------------------------------------------


def python_process(code: str, *arguments: Any, **options: Any) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def run_python(code: str, *arguments: Any) -> tuple[str, str]:
    process = python_process(code, *arguments)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return out, errors


@pytest.mark.thorough
def test_killed_while_saving(tmp_path: Path) -> None:
    """kill -9 at random moments of a loop that saves without pause: the newest finished one restores bit for bit."""
    code = """
        import sys, numpy as np, jax.numpy as jnp
        from arch_jax.train.checkpointing.checkpoint import Checkpoints

        class Place:
            def __init__(self): self.place = 0
            def get_state(self): return {"place": self.place}
            def set_state(self, state): self.place = state["place"]

        def make(step):
            draw = np.random.default_rng(step)
            return {str(i): jnp.asarray(draw.normal(size=200_000), jnp.float32) for i in range(4)}

        place = Place()
        said = []
        checkpoints = Checkpoints(sys.argv[1], log=said.append)
        found = checkpoints.restore({str(i): jnp.zeros(200_000) for i in range(4)}, place)
        start = 0
        if found is not None:
            start, state = found
            assert all(np.array_equal(state[i], leaf) for i, leaf in make(start).items()), "wrong bits"
        assert place.place == start and not said, said
        step = start
        while True:
            step += 1
            place.place = step
            checkpoints.save(step, make(step), place, {"loss": 1 / step})
            print(start, flush=True)
        """
    starts, draw = [], random.Random(0)
    for _ in range(3):
        process = python_process(code, tmp_path)
        line = process.stdout.readline()  # the first save is under way
        if line:
            time.sleep(draw.uniform(0.0, 0.6))
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert line, errors
        assert "Error" not in errors, errors
        starts.append(int(line))
    assert starts == sorted(starts)
    assert starts[-1] > 0
    left = {path.name for path in tmp_path.iterdir() if not path.name.isdecimal()}
    with Checkpoints(tmp_path) as checkpoints:
        last = checkpoints.steps()[-1]
        checkpoints.save(last + 1, {"w": jnp.ones(1)}, metrics={"loss": 0.0})
        checkpoints.wait()
        assert checkpoints.steps() == [last, last + 1], left
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([str(last), str(last + 1)])


def test_disk_full(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: the save fails in one sentence, the one before restores.

    And nothing is printed; and Orbax is imported when there is something to save.
    """
    out, errors = run_python(
        """
        import os, resource, sys, numpy as np, jax.numpy as jnp
        from arch_jax.errors import RunError
        from arch_jax.train.checkpointing.checkpoint import Checkpoints

        def make(step):
            return {"w": jnp.asarray(np.random.default_rng(step).normal(size=300_000), jnp.float32)}

        directory = sys.argv[1]
        with Checkpoints(directory + "/other") as checkpoints:
            assert checkpoints.restore({"w": jnp.ones(3)}) is None
            assert "orbax" not in sys.modules and "grain" not in sys.modules
            checkpoints.save(1, {"w": jnp.ones(3)}, metrics={"loss": float("nan")})
            checkpoints.restore({"w": jnp.ones(3)})
            checkpoints.save(2, {"w": jnp.ones(3)})
        directory += "/run"
        checkpoints = Checkpoints(directory, keep=1)
        checkpoints.save(1, make(1), metrics={"loss": 1.0})
        checkpoints.wait()
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        for limit in (0, 100, 5_000, 300_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            for step in (2, 3):
                try:
                    checkpoints.save(step, make(step), metrics={"loss": 0.5})
                    checkpoints.wait()
                except RunError as error:
                    sentence = str(error)
                    assert sentence.startswith(f"checkpoint {step} could not be written to {directory}: "), sentence
                    assert sentence.endswith("; checkpoint 1 before it is intact"), sentence
                    assert "a file grew beyond the size allowed here" in sentence, sentence
                else:
                    raise AssertionError("no error")
                assert checkpoints.steps() == [1] and checkpoints.best_step() == 1
                assert os.listdir(directory) == ["1"], (limit, os.listdir(directory))
            step, state = checkpoints.restore(make(0))
            assert step == 1 and np.array_equal(state["w"], make(1)["w"])
        try:
            with checkpoints:
                checkpoints.save(2, make(2))
        except RunError:
            pass
        else:
            raise AssertionError("no error at close")
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        checkpoints.save(4, make(4), metrics={"loss": 2.0})  # there is room again
        checkpoints.close()
        assert checkpoints.steps() == [1, 4]
        step, state = Checkpoints(directory).restore(make(0))
        assert step == 4 and np.array_equal(state["w"], make(4)["w"])
        """,
        tmp_path,
    )
    assert (out, errors) == ("", "")


def test_the_folder_disappears_or_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        with pytest.raises(RunError, match=f"the checkpoint folder {path} can't be written"):
            Checkpoints(path)
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(1, {"w": jnp.ones(2)})
    checkpoints.wait()
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(RunError, match=r"the checkpoint folder .*run can't be read"):
        checkpoints.save(2, {"w": jnp.ones(2)})
    (tmp_path / "run").write_text("")
    with pytest.raises(RunError, match=r"the checkpoint folder .*run can't be read"):
        checkpoints.save(2, {"w": jnp.ones(2)})


def test_close_does_not_hide_the_error_on_its_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def fail() -> None:
        raise OSError(28, "No space left on device")

    def run() -> None:
        with Checkpoints(tmp_path, log=said.append) as checkpoints:
            checkpoints.save(1, {"w": jnp.ones(2)})
            monkeypatch.setattr(checkpoints._manager, "wait_until_finished", fail)
            raise KeyError("first")

    with pytest.raises(KeyError, match="first"):
        run()
    assert said == [f"checkpoint 1 could not be written to {tmp_path}: the disk is full; there is none before it"]


def test_reading_alone_makes_nothing(tmp_path: Path) -> None:
    """A run may lie where nothing can be written, such as an input folder on Kaggle."""
    with Checkpoints(tmp_path / "missing", reading=True) as checkpoints:
        assert checkpoints.steps() == []
    assert list(tmp_path.iterdir()) == []
