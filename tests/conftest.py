"""Every test runs with shapes and types checked: jaxtyping's import hook, with beartype, over the whole package."""

import gc
import os
import re
import resource
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

install_import_hook("arch_jax", "beartype.beartype")

# Compiled programs are kept between runs and shared by the workers: most of a test's time is compilation.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".cache" / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The older of two ways to compile loops for a CPU takes half of the time; and a program in one part instead of 32, of
# which both workers' cores would have to be shared, 0.85. A version without the flags would not start.
if version("jaxlib") == "0.10.2" and "fusion_emitters" not in os.environ.get("XLA_FLAGS", ""):
    fast = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {fast}".strip()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

TESTS = Path(__file__).parent
#: Mappings of memory at which a process forgets what it has compiled. Beyond 65,530 the next program crashes it.
MAPPINGS = 30_000
#: Programs between two looks at the mappings: a look takes milliseconds, and there are thousands of tests.
BETWEEN_LOOKS = 50
#: Programs after which a process forgets them where tests of something else begin: gigabytes, if they all stayed.
PROGRAMS = 300
#: Files of which each parameter is something of its own, such as an architecture, at which each function looks.
CONTRACTS = ("tests/contract/test_models.py", "tests/contract/test_mixers.py")
#: Where programs are tiny and run a few times, so that nearly all of the time is the compiler's.
TINY = {"contract", "data", "fuzz", "interop", "layers", "models", "objectives", "ops", "parity", "plan", "sampling"}
TINY |= {"study", "test_cli.py", "test_discovery.py", "test_examples.py", "test_readme.py", "train"}
#: Of them, those whose processes are compiled so, too.
PROCESSES_TRAIN = {"study", "test_cli.py", "test_discovery.py", "test_examples.py", "test_readme.py", "train"}


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly(request):
    """Tiny programs without LLVM's optimizations, in 0.6 of the time.

    For a whole file at once, and for the processes that its tests start, where those train: a run that goes on must be
    compiled as it was when it began. (Not for others': some compile for a TPU.)
    """
    part = request.path.relative_to(TESTS).parts[0]
    if part not in TINY:
        yield
        return
    import jax  # here: what is set above must be there first

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patched:
        if part in PROCESSES_TRAIN:
            patched.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
        yield
    jax.config.update("jax_disable_most_optimizations", before)


def group(nodeid: str) -> str:
    """What shares compiled programs with others: the tests of one architecture or mixer, elsewhere those of a file."""
    file, _, test = nodeid.partition("::")
    bracket = re.search(r"\[(.+)\]$", test)
    return f"{file}[{bracket[1]}]" if bracket and file in CONTRACTS else file


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """Lets compiled programs go where few will be missed; and anywhere, before there are too many of them.

    Each is some mappings of memory, and 65,530 are allowed.
    """
    programs = COSTS.compiled - COSTS.forgotten
    among_others = nextitem is not None and group(nextitem.nodeid) == group(item.nodeid)
    if (among_others or programs < PROGRAMS) and not COSTS.mappings_run_out():
        return
    import jax

    COSTS.forgotten = COSTS.compiled
    jax.clear_caches()
    gc.collect()


class Costs:
    """Processor time and programs compiled, by test; the most expensive files and architectures are printed at the end.

    An architecture may cost the quick suite 6 s and both tiers together 20 s: this is where it is seen.
    """

    def __init__(self) -> None:
        self.compiled = 0
        self.forgotten = 0  # of them, how many were let go
        self.looked = 0  # how many there were when mappings were last counted
        self.listening = False
        self.by_file: dict[str, list[float]] = {}
        self.by_name: dict[str, float] = {}
        self.peaks: dict[str, float] = {}

    def now(self) -> tuple[float, int]:
        """Seconds of processor time of this process and its finished children, and programs compiled so far."""
        if not self.listening and "jax" in sys.modules:
            sys.modules["jax"].monitoring.register_event_duration_secs_listener(self._heard)
            self.listening = True
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system, self.compiled

    def mappings_run_out(self) -> bool:
        """Whether this process has more than `MAPPINGS` mappings of memory; False while there is little new."""
        if self.compiled - self.looked < BETWEEN_LOOKS:
            return False
        self.looked = self.compiled
        maps = Path("/proc/self/maps")
        return maps.exists() and maps.read_bytes().count(b"\n") >= MAPPINGS

    def _heard(self, event: str, duration: float, **_) -> None:
        self.compiled += event.endswith("backend_compile_duration")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        item.stash[BEGUN] = self.now()
        return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, item, call):
        if call.when == "teardown":
            seconds, programs = (now - begun for now, begun in zip(self.now(), item.stash[BEGUN]))
            item.user_properties.append(("cost", (round(seconds, 3), programs)))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # of KiB, in GiB
            item.user_properties.append(("peak", (os.environ.get("PYTEST_XDIST_WORKER", "alone"), peak)))

    def pytest_runtest_logreport(self, report):
        if report.when != "teardown":
            return
        seconds, programs = dict(report.user_properties).get("cost", (0, 0))
        worker, peak = dict(report.user_properties).get("peak", ("alone", 0))
        self.peaks[worker] = max(peak, self.peaks.get(worker, 0))
        file = report.nodeid.split("::")[0]
        row = self.by_file.setdefault(file, [0, 0, 0])
        for i, value in enumerate((1, seconds, programs)):
            row[i] += value
        if file == "tests/contract/test_models.py" and "[" in report.nodeid:
            name = report.nodeid.split("[")[1].rstrip("]")
            self.by_name[name] = self.by_name.get(name, 0) + seconds

    def pytest_terminal_summary(self, terminalreporter):
        write = terminalreporter.write_line
        total = [sum(column) for column in zip(*self.by_file.values())] or [0, 0, 0]
        rows = sorted(self.by_file.items(), key=lambda row: -row[1][1])
        shown = rows if os.environ.get("ARCH_JAX_COSTS") else rows[:12]
        write(
            f"processor time {total[1]:.0f} s, {total[2]:.0f} programs compiled, {total[0]:.0f} tests; the costliest:"
        )
        for file, (tests, seconds, programs) in shown:
            write(f"  {seconds:7.1f} s {programs:6.0f} programs {tests:5.0f} tests  {file}")
        write("most memory held: " + ", ".join(f"{name} {size:.1f} GiB" for name, size in sorted(self.peaks.items())))
        names = sorted(self.by_name.items(), key=lambda row: -row[1])[:8]
        if names:
            write("contract by architecture: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in names))


BEGUN = pytest.StashKey[tuple[float, int]]()
COSTS = Costs()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish():
    """What is there now stays until the process ends: pytest's last collections would take seconds to look at it."""
    gc.freeze()


def pytest_configure(config):
    config.pluginmanager.register(COSTS, "costs")
    # Tracing makes millions of objects, few of them garbage: looked at every 700, they took a twelfth of the time.
    gc.set_threshold(50_000, 20, 50)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish():
    """Modules and tests stay until the end: no collection need look at them."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items):
    """The slow ones first: begun last, one of them would keep a single worker busy while the others are done.

    Last come the contracts, that of the mixers after that of the models: parts of a second each, so that workers end
    together. All tests of one architecture stand next to each other.
    """
    first = {}
    for i, item in enumerate(items):
        first.setdefault(group(item.nodeid), i)

    def place(item) -> tuple[int, bool, int]:
        file = item.nodeid.split("::")[0]
        contract = CONTRACTS.index(file) + 1 if file in CONTRACTS else 0
        return contract, item.get_closest_marker("slow") is None, first[group(item.nodeid)] if contract else 0

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Deals out groups, not tests: a worker that takes one test of an architecture compiles it all.

    Where there are only a few, as with a single file, tests go to whoever is idle.
    """
    if config.getoption("dist") != "worksteal":  # a person has asked for something else
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def schedule(self) -> None:
            groups = {group(nodeid) for nodeid in next(iter(self.registered_collections.values()))}
            self.few = len(groups) < 4 * self.numnodes
            super().schedule()

        def _split_scope(self, nodeid: str) -> str:
            return nodeid if self.few else group(nodeid)

    config.option.loadscopereorder = False  # the order is that of pytest_collection_modifyitems
    return Groups(config, log)
