"""One device, a mesh of eight, copies on eight, two processes: the same losses; and what happens when one is gone."""

import functools
import importlib.util
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from arch_jax.cli import main
from arch_jax.cli.devices import CACHE_BYTES, bound
from arch_jax.errors import UsageError
from arch_jax.experiment import Mesh, load
from arch_jax.layers.transformer.decoder import SHARDINGS
from arch_jax.train.mesh import Placement
from arch_jax.train.restore import open_run
from arch_jax.train.sharding import partition
from arch_jax.train.workdir import read_metrics

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("devices.py")
#: What is compared with one device. Not pmap, where something is drawn at random or there is one batch; not tensor,
#: where nobody laid anything down.
QUICK = ("toy:both", "toy:pmap", "toy-one-batch:both")
THOROUGH = (
    *("gpt:data", "gpt:fsdp", "gpt:both", "gpt:tensor", "gpt:pmap", "gpt-dropout:both"),
    *("lenet5-bn:fsdp", "lenet5-bn:both", "lenet5-bn:pmap", "gan:both", "gcn:both"),
)
#: What two processes are compared in: with each experiment, a layout.
PAIRS = ("gpt:both", "lenet5-bn:fsdp", "gan:data", "gcn:both")
thorough = pytest.mark.thorough

#: Many programs are compiled and run for a moment: compiled without optimisation, all take half the time.
HASTY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def environment(devices: int) -> dict[str, str]:
    """For a process that sees so many CPU devices; with the flags of these tests, which compile in half the time."""
    flags = os.environ.get("XLA_FLAGS", "")
    return os.environ | {
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices} {HASTY}".strip(),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }


def start(command: list[Any], devices: int, **variables: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=environment(devices) | variables,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen, timeout: float = 300) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        pytest.fail(f"still running after {timeout} s: {err}")
    return process.returncode, out, err


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def result(process: subprocess.Popen) -> Any:
    code, out, err = finish(process)
    assert code == 0, err
    return json.loads(out.split("RESULT")[1])


@functools.cache
def told(what: str, words: tuple[str, ...]) -> Any:
    """What one process with eight devices tells, or why it ended: asked for once, whoever looks at it."""
    ones = dict.fromkeys(word.split(":")[0] + ":one" for word in words)
    process = start([SCRIPT, what, *ones, *words], 8)
    try:
        return result(process)
    except (AssertionError, pytest.fail.Exception) as problem:
        return problem


def layouts(what: str = "quick") -> dict[str, Any]:
    """The first losses of experiments in layouts, each with those of one device; "quick" or "layouts"."""
    found = told(what, QUICK if what == "quick" else THOROUGH)
    if isinstance(found, BaseException):
        raise found
    return found


def assert_same_losses(metrics: dict[str, list], expected: dict[str, list], what: str) -> None:
    assert metrics.keys() == expected.keys()
    # Not the norms of the GAN's gradients: from its seed, one of its units stands so near a kink that a change of 1e-7
    # in the parameters changes them by 1e-3 within 3 steps, on one device too.
    kinds = "loss" if what.startswith("gan") else ("loss", "gradient_norm")
    for name in [name for name in metrics if name.endswith(kinds)]:
        assert [x is None for x in metrics[name]] == [x is None for x in expected[name]]  # a player that was idle
        assert len(metrics[name]) == 20
        pairs = [(a, b) for a, b in zip(metrics[name], expected[name]) if b is not None]
        np.testing.assert_allclose(*zip(*pairs), rtol=1e-4, err_msg=f"{what} {name}")


# -- layouts -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("word", [*QUICK, *(pytest.param(word, marks=thorough) for word in THOROUGH)])
def test_every_layout_gives_the_losses_of_one_device(word):
    name, layout = word.split(":")
    found = layouts("quick" if word in QUICK else "layouts")[name]
    one = found["one"]["metrics"]
    losses = next(values for metric, values in one.items() if metric.endswith("loss"))
    assert len(set(losses)) > 15  # it trains
    assert_same_losses(found[layout]["metrics"], one, f"{name} {layout}")


SHARDED = {
    "data": ([2, 32, 32], [256, 32], [32]),
    "fsdp": ([2, 4, 32], [256, 4], [4]),
    "both": ([2, 8, 32], [256, 8], [8]),
    "tensor": ([2, 16, 16], [128, 16], [16]),
}


@thorough
@pytest.mark.slow
@pytest.mark.parametrize("layout", SHARDED)
def test_a_sharded_state_is_in_pieces(layout):
    """Parameters and what mirrors them are cut as the family lays down, and each device holds its part only."""
    found = layouts("layouts")["gpt"]
    paths = "stack/layers/block_0/mixer/query/kernel", "embedding/embedding", "final_norm/scale"
    pieces = found[layout]["pieces"]
    for path, shape in zip(paths, SHARDED[layout]):
        for of in ("parameters/model/", "optimizer/model/1/0/mu/", "optimizer/model/1/0/nu/"):
            assert pieces[of + path][1] == shape, of + path
    assert pieces["step"] == [[], []]
    (total,) = found["one"]["bytes"]
    assert max(found[layout]["bytes"]) < total / {"data": 0.9, "fsdp": 7.9, "both": 3.9, "tensor": 3}[layout]


ROWS_OVER_DEVICES = """
import numpy as np
from arch_jax.experiment import load
from arch_jax.train.mesh import Placement

experiment = load("gan_ring")[0]
place = Placement(experiment)
for rows in (8, 6, 1):
    spread = place.spread({"x": np.arange(2.0 * rows).reshape(rows, 2), "std": np.float32(0.5)})
    pieces = [tuple(shard.data.shape) for shard in spread["x"].addressable_shards]
    assert np.array_equal(spread["x"], np.arange(2.0 * rows).reshape(rows, 2))
    print(rows, *pieces, spread["std"].sharding.is_fully_replicated)
"""


def test_rows_of_validation_are_cut_where_the_devices_divide_them():
    code, out, err = finish(start(["-c", ROWS_OVER_DEVICES], 4))
    assert code == 0, err
    assert out.splitlines() == [
        "8 (2, 2) (2, 2) (2, 2) (2, 2) True",
        "6 (6, 2) (6, 2) (6, 2) (6, 2) True",
        "1 (1, 2) (1, 2) (1, 2) (1, 2) True",
    ]


@pytest.mark.slow
def test_a_run_goes_on_in_another_layout():
    found = layouts()["another layout"]
    assert [line["step"] for line in found["moves"]] == [line["step"] for line in found["stays"]]
    for line, other in zip(found["moves"], found["stays"]):
        assert line == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("stack/layer_0/mixer/query/kernel", (8, 16), ("fsdp", "tensor")),
        ("stack/layers/block_0/mixer/query/kernel", (4, 8, 16), (None, "fsdp", "tensor")),  # scanned
        ("stack/layers/block_0/mixer/query/bias", (4, 16), (None, "tensor")),
        ("stack/layer_0/mixer/output/kernel", (16, 8), ("tensor", "fsdp")),
        ("stack/layer_0/feed_forward/down/kernel", (15, 8), (None, "fsdp")),  # 2 does not divide 15
        ("embedding/embedding", (256, 6), ("tensor", None)),  # 4 does not divide 6
        ("final_norm/scale", (8,), ("fsdp",)),  # no pattern: the largest dimension that fsdp divides
        ("other/kernel", (3, 8, 12, 8), (None, None, "fsdp", None)),
        ("other/kernel", (8, 8), (None, "fsdp")),
        ("other/kernel", (3, 5), (None, None)),
        ("other/scale", (), ()),
    ],
)
def test_partition(path, shape, spec):
    sizes = {"data": 1, "fsdp": 4, "tensor": 2, "expert": 1, "sequence": 1}
    assert partition(path, shape, SHARDINGS, sizes) == PartitionSpec(*spec)
    ones = dict.fromkeys(sizes, 1)
    assert partition(path, shape, SHARDINGS, ones) == PartitionSpec(*(None,) * len(shape))


# -- what can't be laid out --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mesh", "sentence"),
    [
        ({"fsdp": 16}, "mesh.fsdp=16 makes 16 devices, which are more than the 8 that are here; the nearest is "
                       "mesh.fsdp=8"),
        ({"fsdp": 3}, "mesh.fsdp=3 makes 3 devices, which don't divide the 8 that are here; the nearest is "
                      "mesh.fsdp=2"),
        ({"data": 4, "tensor": 4}, "mesh.data=4 x mesh.tensor=4 makes 16 devices, which are more than the 8 that are "
                                   "here; the nearest is mesh.data=2"),
    ],
)  # fmt: skip
def test_a_mesh_that_does_not_fit(mesh, sentence):
    with pytest.raises(UsageError, match=f"^{re.escape(sentence)}$"):
        Mesh(**mesh).sizes(8)


class Checked(Placement):
    """What is refused, without programs."""

    def _make(self, experiment, sizes):
        self.fits = True


@pytest.mark.parametrize("devices", [2, 3, 6, 8])
def test_what_is_said_of_a_batch_is_accepted(devices):
    """A run that goes on keeps its batch, and can be given another mesh; a new one may have no more rows than these."""
    whole, told = load(str(SCRIPT))[0], 0
    for batch, accumulate, fsdp in itertools.product(range(1, 10), (1, 2, 3), (1, 2)):
        if batch % accumulate or devices % fsdp:
            continue
        it = whole.overridden({"data.batch": batch, "accumulate": accumulate, "mesh.fsdp": fsdp})
        problem = None
        try:
            Checked(it, [None] * devices)
        except UsageError as refused:
            problem = str(refused)
        if problem is None:
            continue
        said = re.findall(r"(data\.batch|mesh\.data)=(\d+)", problem)
        assert said[0][0] == "data.batch"
        for name, value in said:
            assert Checked(it.overridden({name: int(value)}), [None] * devices).fits
        assert int(said[0][1]) <= max(batch, devices * accumulate)
        assert len(said) == 2 or (batch // accumulate) % fsdp
        told += 1
    assert told > 5


def test_meshes_that_fit():
    assert Mesh().sizes(8) == {"data": 8, "fsdp": 1, "tensor": 1, "expert": 1, "sequence": 1}
    assert Mesh(fsdp=4).sizes(8)["data"] == 2
    assert Mesh(data=1).sizes(8)["data"] == 1  # one device of several
    with pytest.raises(UsageError, match=r"^mesh.fsdp is 0; expected at least 1$"):
        Mesh(fsdp=0)


def test_pmap_has_one_axis():
    with pytest.raises(
        UsageError, match=r"^parallel=pmap has a copy of the parameters on every device, and mesh.fsdp "
    ):
        load(str(SCRIPT))[0].overridden({"parallel": "pmap", "mesh.fsdp": 2})


def command(*arguments: Any, devices: int = 1, **variables: str) -> tuple[int, str, str]:
    return finish(start(["-m", "arch_jax", *arguments], devices, **variables), 120)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["data.batch=12"], "data.batch 12 can't be divided among 8 devices; expected data.batch=8, or "
                            "mesh.data=4"),
        (["mesh.fsdp=3"], "mesh.fsdp=3 makes 3 devices, which don't divide the 8 that are here; the nearest is "
                          "mesh.fsdp=2"),
        (["mesh.tensor=2"], "mesh.tensor is 2, and nothing of the model Net is cut over 'tensor'; expected "
                            "mesh.tensor=1"),
        (["data=devices_one_batch", "parallel=pmap"], "parallel=pmap cuts batches, and the data OneBatch has only one; "
                                                      "expected parallel=jit"),
    ],
)  # fmt: skip
def test_bad_settings_are_one_sentence(changes, sentence):
    answer = layouts()["refused"][" ".join(changes)]
    assert answer == [2, "", f"arch-jax: {sentence}\n", False]


def ours(err: str) -> list[str]:
    """The lines of stderr, but those that libtpu writes by itself where it is installed and there is no TPU."""
    lines = err.splitlines()
    if importlib.util.find_spec("libtpu") is None:
        return lines
    return [line for line in lines if line.startswith("arch-jax: ")]


@thorough
@pytest.mark.slow
def test_no_platform_stands_in_for_another(tmp_path):
    for asked, variables in ((["--platform", "tpu"], {}), ([], {"JAX_PLATFORMS": "tpu"}), (["--platform", "gpu"], {})):
        code, out, err = command("train", SCRIPT, "--workdir", tmp_path / "run", *asked, **variables)
        if code == 0:
            pytest.skip(f"there is {asked or variables} here")
        assert (code, out, len(ours(err))) == (1, "", 1), err
        name = "gpu" if "gpu" in asked else "tpu"
        assert ours(err)[0].startswith(f"arch-jax: the platform asked for ({name}) is not there: "), err
        assert "Traceback" not in err


def test_an_unknown_platform(capsys):
    assert main(["train", str(SCRIPT), "--platform", "tpuu"]) == 2
    assert capsys.readouterr().err == "arch-jax: unknown platform 'tpuu'; the nearest are 'tpu', 'gpu', 'cpu'\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--process", "1"], "--coordinator is missing beside --process; expected --coordinator HOST:PORT, --processes "
                             "N and --process I"),
        (["--coordinator", "here", "--processes", "2", "--process", "1"],
         "--coordinator is 'here'; expected HOST:PORT, such as 10.0.0.1:1234"),
        (["--coordinator", "a:1", "--processes", "2", "--process", "2"],
         "--process is 2; expected 0 to 1, as there are 2"),
    ],
)  # fmt: skip
def test_bad_processes_are_one_sentence(arguments, sentence, capsys):
    assert main(["train", str(SCRIPT), *arguments]) == 2
    assert capsys.readouterr().err == f"arch-jax: {sentence}\n"


# -- several processes -------------------------------------------------------------------------------------------------


def pair(path: Path, *arguments: Any, **variables: str) -> list[subprocess.Popen]:
    """Both processes of a run, of two devices each."""
    arguments = ("--coordinator", f"127.0.0.1:{free_port()}", "--processes", 2, "--heartbeat", 5, *arguments)
    alone = ["-m", "arch_jax", "train", SCRIPT, "--workdir", path, *arguments]
    return [start([*alone, "--process", i], 2, **variables) for i in range(2)]


def wait_for_step(path: Path, step: int, processes: list[subprocess.Popen]) -> None:
    """Returns when a run has taken a step."""
    for _ in range(3000):
        if any(line["step"] >= step for line in read_metrics(path)):
            return
        for one in processes:
            if one.poll() is not None:
                pytest.fail(f"ended early: {finish(one)}")
        time.sleep(0.02)
    pytest.fail(f"step {step} was not reached in a minute")


def saved(path: Path) -> dict[str, Any]:
    """The checksum of each leaf of the newest checkpoint, and the metrics."""
    step = max(int(p.name) for p in (path / "checkpoints").iterdir() if p.name.isdecimal())
    record = json.loads((path / "checkpoints" / str(step) / "record" / "record.json").read_text())
    assert len(record["iterator"]["hashes"]) == 2
    return {"step": step, "leaves": record["leaves"], "lines": read_metrics(path)}


@thorough
@pytest.mark.slow
def test_two_processes_give_the_losses_of_one():
    port = free_port()
    both = [start([SCRIPT, "pair", port, i, *PAIRS], 4) for i in range(2)]
    first, second = map(result, both)
    assert first == second
    for name, found in first.items():
        for layout, several in found.items():
            assert_same_losses(several["metrics"], layouts("layouts")[name]["one"]["metrics"], f"{name} {layout}")


LOST = (
    "arch-jax: process {} of 2 has lost contact with another one, which was killed or can't be reached; start all of "
    "them again to resume from the last checkpoint\n"
)


@thorough
@pytest.mark.slow
def test_processes_that_are_stopped_and_killed_go_on_bit_for_bit(tmp_path):
    """Asked to stop, killed, killed again: each time the other ends too, and in the end nothing shows of it."""
    undisturbed = [finish(one) for one in pair(tmp_path / "whole")]
    assert [code for code, _, _ in undisturbed] == [0, 0], undisturbed
    assert "validation loss" in undisturbed[0][1]
    assert undisturbed[1][1:] == ("", "")  # the second writes nothing and says nothing

    run, slow = tmp_path / "run", {"SECONDS_PER_STEP": "0.05"}
    processes = pair(run, **slow)
    wait_for_step(run, 4, processes)
    processes[1].send_signal(signal.SIGTERM)
    ended = [finish(one) for one in processes]
    assert [code for code, _, _ in ended] == [0, 0], ended
    step = saved(run)["step"]
    assert ended[0][1].startswith(f"stopped after step {step} of 60; resume with: arch-jax train --workdir {run}")
    assert 4 <= step < 20

    for killed in (1, 0):
        processes = pair(run, **slow)
        wait_for_step(run, step + 8, processes)
        processes[killed].kill()
        begun = time.monotonic()
        code, _, err = finish(processes[1 - killed], 60)
        assert time.monotonic() - begun < 30
        said = [line for line in err.splitlines(keepends=True) if not line.startswith(("step ", "going on from "))]
        # The other one may have been killed while both were writing a checkpoint: then that is said first.
        unwritten = r"checkpoint [0-9]+ could not be written .*; checkpoint [0-9]+ before it is intact\n"
        said = said[1:] if re.fullmatch(unwritten, said[0]) else said
        assert (code, said) == (1, [LOST.format(1 - killed)])
        assert finish(processes[killed])[0] == -signal.SIGKILL
        step = saved(run)["step"]

    assert [finish(one)[0] for one in pair(run)] == [0, 0]
    assert saved(run) == saved(tmp_path / "whole")
    assert sorted(p.name for p in run.iterdir()) == sorted(p.name for p in (tmp_path / "whole").iterdir())

    # One process reads what two have written; but where the data went on, only as many can say.
    validation = open_run(run, [str(SCRIPT)]).evaluate()
    assert validation["loss"] == pytest.approx(read_metrics(run)[-1]["validation/loss"], rel=1e-5)
    code, _, err = command("train", SCRIPT, "--workdir", run, "--set", "steps=70", devices=4)
    assert (code, err) == (
        1,
        f"arch-jax: checkpoint 60 in {run / 'checkpoints'} holds the data iterators of 2 processes, and this run has "
        "1; expected as many, since each process resumes its own rows\n",
    )


@thorough
@pytest.mark.slow
def test_parameters_in_parts_are_saved_after_a_resume(tmp_path):
    """Saves of such runs were seen to wait for ever, if not always; checkpointing/test_checkpoint.py holds what for."""
    small = {"model.depth": 1, "model.width": 16, "model.mixer.heads": 2, "model.mixer.kv_heads": 1, "data.length": 8}
    small |= {"data.source": "pydocs", "steps": 4, "optimizer.warmup": 1, "figures": "[]", "mesh.fsdp": 2}
    settings = [word for name, value in small.items() for word in ("--set", f"{name}={value}")]
    code, _, err = command("train", "gpt", *settings, "--workdir", tmp_path / "run", "--stop-after", 2, devices=2)
    assert code == 0, err
    code, out, err = command("train", "--workdir", tmp_path / "run", devices=2)
    assert code == 0, err
    assert "validation loss" in out


@thorough
@pytest.mark.slow
def test_what_is_wrong_for_one_process_ends_both(tmp_path):
    with filelock.FileLock(tmp_path / ".lock"):
        ended = [finish(one, 60) for one in pair(tmp_path)]
    sentence = f"another run has the work directory {tmp_path} open; wait for it, or choose another"
    assert ended == [(2, "", f"arch-jax: {sentence}\n"), (2, "", f"arch-jax: process 0 failed: {sentence}\n")]


def test_on_one_process_a_signal_is_enough():
    import threading

    from arch_jax.train.distributed import Votes, agreed

    stop = threading.Event()
    votes = Votes(stop)
    assert not votes.stopping
    stop.set()
    assert votes.stopping
    assert agreed("anything", "mine") == "mine"
    assert jax.process_count() == 1


@pytest.fixture
def cache_limit():
    """A configuration of JAX's compilation cache that the test may change."""
    before = jax.config.jax_compilation_cache_max_size
    yield lambda: jax.config.jax_compilation_cache_max_size
    jax.config.update("jax_compilation_cache_max_size", before)


def test_the_compilation_cache_is_bounded(tmp_path, cache_limit, monkeypatch):
    """Also with entries from before it was; JAX would write none beside one that has no time of use."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_MAX_SIZE", raising=False)
    (tmp_path / "old-cache").write_bytes(b"program")
    (tmp_path / "used-cache").write_bytes(b"program")
    (tmp_path / "used-atime").write_bytes(b"12345678")
    bound(tmp_path)
    assert cache_limit() == CACHE_BYTES
    assert (tmp_path / "used-atime").read_bytes() == b"12345678"
    modified = (tmp_path / "old-cache").stat().st_mtime_ns
    assert int.from_bytes((tmp_path / "old-atime").read_bytes(), "little") == modified


def test_a_cache_that_cannot_be_locked_has_no_limit(tmp_path, cache_limit, monkeypatch):
    before = cache_limit()
    (tmp_path / "file").touch()
    bound(tmp_path / "file")
    assert cache_limit() == before
    monkeypatch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", "1000")
    bound(tmp_path)
    assert cache_limit() == before


@thorough
def test_old_programs_leave_the_cache(tmp_path):
    code = """
        import pathlib, sys, warnings
        warnings.simplefilter("error")
        from arch_jax.cli import devices
        devices.CACHE_BYTES = 60_000
        devices.prepare()
        import jax
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        folder, seen = pathlib.Path(jax.config.jax_compilation_cache_dir), set()
        for i in range(2, 22):
            jax.jit(lambda x: x @ x.T + i)(jax.numpy.ones((i, 2)))
            entries = {one.name: one.stat().st_size for one in folder.glob("*-cache")}
            seen |= set(entries)
            assert sum(entries.values()) <= 60_000, entries
        print(len(seen) > len(entries) > 1)
    """
    folder = tmp_path / "cache" / "arch_jax" / "compiled"
    folder.mkdir(parents=True)
    (folder / "old-cache").write_bytes(bytes(50_000))
    own = {name: value for name, value in environment(1).items() if "JAX_COMPILATION_CACHE" not in name}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        env=own | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr
    assert not (folder / "old-cache").exists()
