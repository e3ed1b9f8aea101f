"""Certification of samplers and schedules: run on laws whose answer is known, and judged by it.

A network's error and a sampler's look alike in samples. Here the network has none: it is the exact denoiser of a
mixture of Gaussians, so that what is wrong is the sampler's.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from arch_jax import fields
from arch_jax.errors import ArchJaxError, UsageError
from arch_jax.models.diffusion.exact import ExactDenoiser
from arch_jax.objectives.diffusion.diffusion import Diffusion
from arch_jax.ops.diffusion.laws import Mixture
from arch_jax.ops.diffusion.solve import solve_reference
from arch_jax.study.certify.cases import LAWS, PREDICTIONS, PROCESSES, RING, Answer, Guided, answer

#: Samples of a case, and steps of those that are judged by their moments.
SAMPLES, STEPS = 4000, 100
#: Of the largest deviation: what 100 steps may err by, beside five standard errors of the samples.
ALLOWED = 0.05
#: Sliced Wasserstein distance at most, in units of that between two sets of true samples.
DISTANCE = 4.0
#: Calls of the network at most, in steps; in Langevin steps, of a sampler with `correctors` of them at each step.
CALLS = 3


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
      sampler: its name.
      subject: "moments", "calls", "rows", "effect", "order" or "schedule".
      law, process, prediction, spacing: names; "" where it is no matter of them.
      guidance: scale.
      steps: of the sampler; 0 of a schedule.
      mean, std: of the samples, or of those of one class.
      expected_mean, expected_std: the answer.
      distance: sliced Wasserstein distance from the law, in units of that between two sets of true samples.
      order: of convergence, seen.
      calls: of the network.
      fault: one sentence; "" if there is none.
    """

    sampler: str
    subject: str
    law: str = ""
    process: str = ""
    prediction: str = ""
    spacing: str = ""
    guidance: float = 1.0
    steps: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    expected_mean: tuple[float, ...] = ()
    expected_std: tuple[float, ...] = ()
    distance: float | None = None
    order: float | None = None
    calls: int | None = None
    fault: str = ""


class _Calls:
    """The times that a denoiser was told, call by call."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, time: Any, rows: Any) -> None:
        self.times.append(float(time))


class _Observed(ExactDenoiser):
    """The same denoiser, which tells an observer of every call.

    Attributes:
      observer: called with the time and the number of rows, on the host.
    """

    observer: _Calls | None = None

    def __call__(self, x: Any, time: Any, condition: Any = None, train: bool = False) -> Any:
        jax.debug.callback(self.observer, time[0], len(x))
        return super().__call__(x, time, condition, train)


@dataclasses.dataclass
class _Setting:
    """A sampler on a law, for a process and a prediction: what its cases share."""

    sampler: Any
    law: Mixture
    process: Any
    prediction: Any
    conditional: bool = False

    def __post_init__(self) -> None:
        self.calls = _Calls()
        model = _Observed(
            self.process,
            self.prediction,
            *(tuple(map(tuple, np.asarray(part).tolist())) for part in (self.law.means, self.law.variances)),
            tuple(self.law.weights.tolist()),
            classes=len(self.law.weights) if self.conditional else None,
            observer=self.calls,
        )
        self.task = Diffusion(process=self.process, prediction=self.prediction).with_model(model)

    @property
    def refusal(self) -> str:
        """The sentence in which the sampler refuses this setting; "" if it takes it."""
        try:
            self.sampler.check(self.task, _NoData())
        except UsageError as problem:
            return str(problem)
        return ""

    def samples(self, count: int, seed: int = 0, nudge: tuple[float, float] | None = None) -> dict[str, np.ndarray]:
        """Samples ("coordinates"), with their labels where there are classes; the calls are noted."""
        self.calls.times.clear()
        variables = {} if nudge is None else {"nudge": dict(zip(("time", "size"), np.float32(nudge)))}
        made = self.sampler(self.task, variables, _NoData(), jax.random.key(seed), count)
        jax.effects_barrier()
        if "coordinates" not in made:
            raise UsageError(f"{type(self.sampler).__name__} gives {', '.join(made)}; expected 'coordinates' of points")
        points = np.asarray(made["coordinates"], np.float64)
        if points.shape != (count, len(self.law.mean)):
            raise UsageError(
                f"{type(self.sampler).__name__} gives coordinates of shape {points.shape}; expected "
                f"{(count, len(self.law.mean))}"
            )
        return {"coordinates": points} | ({"labels": np.asarray(made["labels"])} if "labels" in made else {})


class _NoData:
    """The data of a certification: there is none."""

    shapes: dict[str, Any] = {}  # noqa: RUF012 -- read only
    tokenizer = None


def certify(sampler: Any, small: bool = False) -> Iterator[Case]:
    """Every case of one sampler, with its verdict.

    Args:
      sampler: of any kind that draws points from a denoiser: it is called as samplers are, with a task whose model is
        exact. Fields `steps`, `spacing`, `guidance` and `temperature` are varied where it has them.
      small: whether only a few cases are taken, as a test.

    Yields:
      Cases; `fault` says what is wrong with one.
    """
    name = fields.to_json(sampler)["module"]
    known = {field.name for field in fields.settings(sampler)}
    changed = lambda **new: dataclasses.replace(sampler, **{k: v for k, v in new.items() if k in known})
    count = SAMPLES // 2 if small else SAMPLES
    sampler = changed(batch=count)  # so that every call of the network is counted once
    # Annealing that is too fast is no fault of the code: it has the levels that it asks for.
    steps = sampler.steps if getattr(sampler, "keeps_tilt", False) else STEPS
    plain = changed(steps=steps)
    taken = {}
    for process in PROCESSES:
        one = _Setting(changed(steps=10), LAWS["gaussian"], PROCESSES[process], PREDICTIONS["v"])
        taken[process] = one.refusal
    processes = [process for process, refusal in taken.items() if not refusal]
    if not processes:
        yield Case(name, "moments", fault=f"it takes no process: {taken['vp linear']}")
        return
    first = processes[0]
    if small:
        processes = [process for process in processes if process in ("vp linear", "edm", "flow")] or processes[:1]
    for process in processes:
        all_kinds = not small and process in ("vp linear", "edm", "flow")
        for prediction in PREDICTIONS if all_kinds else ("v", "noise"):
            if not small or prediction == "v":
                yield from _moments(name, plain, "gaussian", process, prediction, count)
    for process in processes:
        yield from _moments(name, plain, "mixture", process, "v", count)
    if "spacing" in known and not small:
        for process in ("vp linear", "flow"):
            for spacing in ("trailing", "leading", "linspace", "quadratic", "karras", "exponential"):
                if not (process == "flow" and spacing in ("karras", "exponential")):  # it begins with noise alone
                    yield from _moments(name, changed(steps=steps, spacing=spacing), "gaussian", process, "v", count)
    if "guidance" in known:
        for process in {first: 0} if small else {first: 0, processes[-1]: 0}:
            for guidance in (3.0,) if small else (0.0, 1.0, 3.0):
                for batched in (True, False) if "guidance_batched" in known and not small else (True,):
                    own = changed(steps=steps, guidance=guidance, guidance_batched=batched)
                    yield from _moments(name, own, "classes", process, "v", count)
    if "temperature" in known:
        yield from _moments(name, changed(steps=steps, temperature=0.25), "gaussian", first, "v", count)
    setting = _Setting(changed(steps=10), LAWS["gaussian"], PROCESSES[first], PREDICTIONS["v"])
    yield from _structure(name, setting, first, 10 if "steps" in known else None)
    if hasattr(sampler, "coefficients"):
        yield _order(name, sampler)


def _moments(name: str, sampler: Any, law: str, process: str, prediction: str, count: int) -> Iterator[Case]:
    """Mean, deviation and distance of samples; of a law of classes, class by class."""
    conditional = law == "classes"
    try:
        PREDICTIONS[prediction].check(PROCESSES[process])
    except UsageError:
        return  # it says nothing of the data there
    setting = _Setting(sampler, LAWS[law], PROCESSES[process], PREDICTIONS[prediction], conditional)
    if setting.refusal:
        return  # another process's sampler, say
    guidance = float(getattr(sampler, "guidance", 1.0))
    case = Case(
        name, "moments", law, process, prediction, str(getattr(sampler, "spacing", "") or ""), guidance,
        getattr(sampler, "steps", 0),
    )  # fmt: skip
    try:
        found = setting.samples(count)
    except ArchJaxError as problem:
        yield dataclasses.replace(case, fault=str(problem))
        return
    points, labels = found["coordinates"], found.get("labels")
    guided = _guided(sampler, setting.process)
    for label in range(len(LAWS[law].weights)) if conditional else (None,):
        if label is not None and labels is None:
            yield dataclasses.replace(case, fault="it has guidance, and its samples do not say their labels")
            return
        own = points if label is None else points[labels == label]
        expected = _answer(law, process, guidance, guided, label)
        scale = float(getattr(sampler, "temperature", 1.0)) ** 0.5
        expected = Answer(expected.mean, expected.std * scale)
        # Of classes under guidance 0 all are one law.
        distance = None
        if scale == 1 and (guidance == 1 or guidance == 0):
            distance = _distance(own, LAWS[law] if label is None or guidance == 0 else LAWS[law].component(label))
        yield _judged(case, own, expected, distance, len(setting.calls.times))


@functools.cache
def _answer(law: str, process: str, guidance: float, guided: Guided, label: int | None) -> Answer:
    return answer(LAWS[law], PROCESSES[process], guidance, guided, label)


def _judged(case: Case, points: np.ndarray, expected: Answer, distance: float | None, calls: int) -> Case:
    mean, std = points.mean(0), points.std(0, ddof=1)
    error = expected.std / len(points) ** 0.5
    allowed = 5 * error + ALLOWED * expected.std
    fault = ""
    if not np.isfinite(points).all():
        fault = f"{np.sum(~np.isfinite(points).all(1))} of {len(points)} samples are not finite"
    elif (abs(mean - expected.mean) > allowed).any():
        worst = np.argmax(abs(mean - expected.mean) / allowed)
        fault = f"the mean is {mean[worst]:.3g}; expected {expected.mean[worst]:.3g} +- {allowed[worst]:.2g}"
    elif (abs(std - expected.std) > allowed).any():
        worst = np.argmax(abs(std - expected.std) / allowed)
        fault = (
            f"the standard deviation is {std[worst]:.3g}; expected {expected.std[worst]:.3g} +- {allowed[worst]:.2g}"
        )
    elif distance is not None and distance > DISTANCE:
        fault = f"its samples are {distance:.1f} times as far from the law as true ones; expected at most {DISTANCE:g}"
    told = lambda x: tuple(float(f"{number:.5g}") if abs(number) > 1e-9 else 0.0 for number in np.ravel(x))
    return dataclasses.replace(
        case,
        mean=told(mean),
        std=told(std),
        expected_mean=told(expected.mean),
        expected_std=told(expected.std),
        distance=None if distance is None else float(f"{distance:.3g}"),
        calls=calls,
        fault=fault,
    )


def _distance(points: np.ndarray, law: Mixture, directions: int = 32) -> float:
    """The sliced Wasserstein-1 distance from true samples, over that of true samples from true ones."""
    generator = np.random.default_rng(1)
    angles = generator.standard_normal((directions, points.shape[1]))
    angles /= np.linalg.norm(angles, axis=1, keepdims=True)
    true, again = (np.sort(law.draw(generator, len(points)) @ angles.T, axis=0) for _ in range(2))
    apart = lambda x: np.abs(x - true).mean()
    return float(apart(np.sort(points @ angles.T, axis=0)) / apart(again))


def _guided(sampler: Any, process: Any) -> Guided:
    """The law that guidance ends in; of a sampler without a table, that of the flow is expected."""
    if getattr(sampler, "keeps_tilt", False):
        return "tilt"
    noisy = hasattr(sampler, "coefficients") and sampler.coefficients(process, sampler.grid(process)).noisy
    return "chain" if noisy else "flow"


def _structure(name: str, setting: _Setting, process: str, steps: int | None) -> Iterator[Case]:
    """Calls of the network, rows that do not depend on one another, and whether every call matters."""
    case = Case(name, "calls", "gaussian", process, "v", steps=steps or 0)
    try:
        few = setting.samples(3)["coordinates"]
        times = list(setting.calls.times)
        more = setting.samples(6)["coordinates"]
    except ArchJaxError as problem:
        yield dataclasses.replace(case, fault=str(problem))
        return
    calls = len(times)
    fault = ""
    if not calls:
        fault = "it never calls the network"
    elif steps is not None and calls > (most := CALLS * steps * max(1, getattr(setting.sampler, "correctors", 1))):
        fault = f"it calls the network {calls} times for {steps} steps; expected at most {most}"
    yield dataclasses.replace(case, calls=calls, fault=fault)
    apart = float(np.abs(few - more[:3]).max())
    yield dataclasses.replace(
        case,
        subject="rows",
        fault=f"a sample changes by {apart:.2g} with the number of those beside it" if apart > 1e-4 else "",
    )
    idle = []
    still = setting.samples(3, nudge=(times[0], 0.0))["coordinates"]
    for time in list(dict.fromkeys(times))[:: max(1, len(set(times)) // 12)] + times[-1:]:
        if np.array_equal(still, setting.samples(3, nudge=(time, 1000.0))["coordinates"]):
            idle.append(time)
    fault = ""
    if idle:
        fault = f"the call of the network at time {idle[-1]:g} changes nothing"
    yield dataclasses.replace(case, subject="effect", calls=calls, fault=fault)


def _order(name: str, sampler: Any) -> Case:
    """The order of convergence to the flow's exact end, on a grid that ends above 0, in float64."""
    process = PROCESSES["edm"]
    case = Case(name, "order", "mixture", "edm")
    between = lambda n: process.time_of(np.exp(np.linspace(np.log(20.0), np.log(0.05), n + 1)))
    if sampler.coefficients(process, between(8)).noisy:
        return case
    x = RING.noisy(1.0, 20.0).draw(np.random.default_rng(0), 64)
    denoise = lambda x, time: RING.denoised(x, 1.0, float(time))
    end = _flow_end(x, 20.0, 0.05)
    errors = []
    for n in (64, 128):
        made = solve_reference(sampler.coefficients(process, between(n)), denoise, x)
        errors.append(np.sqrt(np.mean((made - end) ** 2)))
    seen = float(np.log2(errors[0] / errors[1]))
    least = float(getattr(sampler, "order_seen", 0.0)) - 0.2
    fault = f"errors fall with the power {seen:.2f} of the steps; expected at least {least:.1f}" if seen < least else ""
    return dataclasses.replace(case, order=float(f"{seen:.3g}"), fault=fault)


@functools.cache
def _end_of_flow(x: bytes, begin: float, end: float) -> np.ndarray:
    from scipy.integrate import solve_ivp

    def slope(log_ratio: float, y: np.ndarray) -> np.ndarray:  # dy / d log r = y - D
        y = y.reshape(-1, 2)
        return (y - RING.denoised(y, 1.0, np.exp(log_ratio))).ravel()

    span = np.log([begin, end])
    return solve_ivp(slope, span, np.frombuffer(x), method="DOP853", rtol=1e-11, atol=1e-12).y[:, -1].reshape(-1, 2)


def _flow_end(x: np.ndarray, begin: float, end: float) -> np.ndarray:
    """Points at the end of the probability flow of `RING` between two noise levels, to ten digits."""
    return _end_of_flow(x.tobytes(), begin, end)


def certify_process(process: Any) -> Iterator[Case]:
    """A schedule: less signal and more noise at every later time, an end in noise, and its published formula.

    A process of one's own may say in an attribute `published` which process it is meant to be.
    """
    name = fields.to_json(process)["module"]
    case = Case(name, "schedule")
    whole = process.discrete
    times = np.arange(0, process.last + 1) if whole else np.linspace(0, process.last, 1001)
    alpha, sigma = (np.asarray(part, np.float64) for part in process.coefficients(times, np))
    told = functools.partial(dataclasses.replace, case)
    fault = ""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = sigma / alpha
    if not (np.isfinite(alpha).all() and np.isfinite(sigma).all()):
        fault = "alpha or sigma is not finite at some time"
    elif abs(alpha[0] - 1) > 1e-6 or abs(sigma[0]) > 1e-6:
        fault = f"alpha and sigma are {alpha[0]:g} and {sigma[0]:g} at time 0; expected 1 and 0"
    elif (np.diff(ratio) <= 0).any():
        where = times[np.flatnonzero(np.diff(ratio) <= 0)[0]]
        fault = f"sigma / alpha does not grow after time {where:g}; expected more noise at every later time"
    elif alpha[-1] / process.prior_std > 0.1:
        fault = (
            f"alpha is {alpha[-1]:.3g} at the last time, and the noise {process.prior_std:g}; expected at most a tenth"
        )
    yield told(fault=fault)
    like = getattr(process, "published", None)
    if like is None:
        return
    if not isinstance(like, tuple(type(one) for one in PROCESSES.values())):
        raise UsageError(
            f"published of {name} is {like!r:.60}; expected a process, such as VariancePreserving('cosine')"
        )
    theirs_alpha, theirs_sigma = like.coefficients(times, np)
    off = np.abs(sigma[1:] ** 2 / theirs_sigma[1:] ** 2 - 1)
    worst = int(np.argmax(off))
    fault = ""
    if off[worst] > 0.01:
        fault = f"sigma^2 at time {times[worst + 1]:g} is off by {100 * off[worst]:.0f} % from what was published"
    else:
        least = np.flatnonzero(theirs_alpha > 1e-3)
        away = np.abs(alpha[least] / theirs_alpha[least] - 1).max()
        fault = f"alpha is off by {100 * away:.1f} % from what was published" if away > 0.01 else ""
    yield told(fault=fault)
