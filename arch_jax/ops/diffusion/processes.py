"""Forward processes: x_t = alpha(t) x_0 + sigma(t) noise, from data (t = 0) to noise (the largest t).

A process is only these two functions, and the number that a network is told for t. All else (posteriors, reverse steps,
losses) is written in alpha and sigma, so that it serves every process. Two facts about them come up everywhere:

    ratio r = sigma / alpha      the noise level of x_t / alpha, "sigma" in Karras et al. 2022 (2206.00364)
    SNR = 1 / r^2                and lambda = -log r, half its logarithm (Lu et al. 2022, 2206.00927)

The functions take NumPy arrays (float64, for the coefficients of samplers, which are computed once on the host) and
traced ones (for training), by the array module `xp`.
"""

import dataclasses
import functools
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from arch_jax.errors import UsageError
from arch_jax.fields import Kind, component
from arch_jax.ranges import Positive

Process = Annotated[Any, Kind("process")]


@dataclasses.dataclass(frozen=True)
class ProcessBase:
    """The parts that every process has; a new one overrides `coefficients`, and `time_of`.

    Times are its own: steps of a discrete process, a number in [0, 1] or a noise level of a continuous one. At time 0
    alpha is 1 and sigma 0.
    """

    @property
    def last(self) -> float:
        """The time of pure noise, the largest."""
        return 1.0

    @property
    def first(self) -> float:
        """The smallest time that is trained, above 0."""
        return 1e-3

    @property
    def discrete(self) -> bool:
        """True if only whole times are trained."""
        return False

    @property
    def prior_std(self) -> float:
        """Standard deviation of the noise that sampling begins with."""
        return 1.0

    @property
    def straight(self) -> bool:
        """True if alpha + sigma = 1, so that paths are straight in sigma: dx / d sigma = (x - D) / sigma."""
        return False

    @property
    def spacing(self) -> str:
        """The spacing of sampling times that goes with the process; see `arch_jax.ops.diffusion.grids`."""
        return "trailing"

    def coefficients(self, time: Any, xp: Any = jnp) -> tuple[Any, Any]:
        """(alpha, sigma) at `time`."""
        raise TypeError(f"{type(self).__name__} must say what alpha and sigma are")

    def time_of(self, ratio: Any) -> np.ndarray:
        """The times at which sigma / alpha is `ratio`, on the host in float64."""
        raise TypeError(f"{type(self).__name__} must say when sigma / alpha is a given number")

    def conditioning(self, time: Any) -> Any:
        """The number that the network is told, 0 to 999 as in DDPM, whatever the units of the process's own time."""
        return 999.0 * time

    def told(self, conditioning: Any) -> Any:
        """The time that a network was told as `conditioning`: the inverse of it."""
        return conditioning / 999.0

    def rates(self, time: jax.Array) -> tuple[jax.Array, jax.Array]:
        """d alpha / dt and d sigma / dt at traced times, by automatic differentiation."""
        return jax.jvp(self.coefficients, (time,), (jnp.ones_like(time),))[1]

    def ratios(self, time: Any) -> np.ndarray:
        """sigma / alpha at `time` on the host, infinite where alpha is 0."""
        alpha, sigma = self.coefficients(np.asarray(time, np.float64), np)
        with np.errstate(divide="ignore"):
            return np.asarray(sigma / alpha)


def linear_betas(steps: int, start: float, stop: float) -> np.ndarray:
    """Variances from `start` to `stop` in equal differences (Ho et al. 2020, 2006.11239, section 4)."""
    return np.linspace(start, stop, steps)


def scaled_linear_betas(steps: int, start: float, stop: float) -> np.ndarray:
    """Their square roots in equal differences (latent diffusion, Rombach et al. 2021, 2112.10752; its code)."""
    return np.linspace(start**0.5, stop**0.5, steps) ** 2


def cosine_betas(steps: int, offset: float = 0.008, largest: float = 0.999) -> np.ndarray:
    """1 - f(t + 1) / f(t) of f(t) = cos^2((t / T + s) / (1 + s) pi / 2), at most .999 (2102.09672, equation 17)."""
    f = np.cos((np.arange(steps + 1) / steps + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], largest)


def sigmoid_betas(steps: int, start: float, stop: float) -> np.ndarray:
    """From `start` to `stop` along a logistic curve on [-6, 6] (GeoDiff, Xu et al. 2022, 2203.02923; its code)."""
    return start + (stop - start) / (1 + np.exp(-np.linspace(-6, 6, steps)))


def zero_terminal_snr(alpha_bars: np.ndarray) -> np.ndarray:
    """sqrt(alpha_bar) shifted so that its last is 0, and scaled so that its first stays (2305.08891, algorithm 1)."""
    root = np.sqrt(alpha_bars)
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


_BETAS = {"linear": linear_betas, "scaled_linear": scaled_linear_betas, "sigmoid": sigmoid_betas}


@component("variance_preserving", kind="process")
@dataclasses.dataclass(frozen=True)
class VariancePreserving(ProcessBase):
    """DDPM's chain: alpha_bar_t = prod_{s <= t} (1 - beta_s), alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar).

    Times are the steps 0 (data) to `steps`; a network is told t - 1, which starts at 0, or of another number of steps
    the same in thousandths (improved DDPM's `rescale_timesteps`). Between two steps log alpha_bar is linear.

    Source: Ho et al. 2020 (2006.11239, equation 4).

    Attributes:
      schedule: of the betas: "linear", "scaled_linear", "cosine" or "sigmoid".
      steps: T.
      start: beta of the first step; not of the cosine.
      stop: beta of the last.
      betas: all of them, in place of a schedule.
      zero_terminal_snr: whether they are rescaled so that x_T is noise alone (Lin et al. 2023, 2305.08891).
      shift: factor of sigma / alpha at every time: above 1 for larger images, whose neighbouring pixels average the
        noise out (Hoogeboom et al. 2023, 2301.11093, section 3.1, where it is resolution / 64).
    """

    schedule: Literal["linear", "scaled_linear", "cosine", "sigmoid"] = "linear"
    steps: int = 1000
    start: Positive = 1e-4
    stop: Positive = 0.02
    betas: tuple[float, ...] | None = None
    zero_terminal_snr: bool = False
    shift: Positive = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.start <= self.stop < 1:
            raise UsageError(
                f"start is {self.start} and stop {self.stop}; expected 0 < start <= stop < 1, such as 0.0001 and 0.02"
            )
        if self.betas is not None:
            if len(self.betas) != self.steps:
                raise UsageError(f"betas are {len(self.betas)} numbers and steps is {self.steps}; expected as many")
            bad = next((beta for beta in self.betas if not 0 < beta < 1), None)
            if bad is not None:
                raise UsageError(f"betas hold {bad}; expected numbers above 0 and below 1, so that noise only grows")

    @functools.cached_property
    def _log_alpha_bar(self) -> np.ndarray:
        """log alpha_bar at the times 0 to `steps`, -inf at the last with zero terminal SNR."""
        if self.betas is not None:
            betas = np.asarray(self.betas, np.float64)
        elif self.schedule == "cosine":
            betas = cosine_betas(self.steps)
        else:
            betas = _BETAS[self.schedule](self.steps, self.start, self.stop)
        alpha_bars = np.cumprod(1 - betas)
        if self.zero_terminal_snr:
            alpha_bars = zero_terminal_snr(alpha_bars)
        if self.shift != 1:
            alpha_bars = alpha_bars / (alpha_bars + self.shift**2 * (1 - alpha_bars))
        with np.errstate(divide="ignore"):
            return np.concatenate([[0.0], np.log(alpha_bars)])

    @property
    def last(self) -> float:
        return float(self.steps)

    @property
    def first(self) -> float:
        return 1.0

    @property
    def discrete(self) -> bool:
        return True

    def coefficients(self, time: Any, xp: Any = jnp) -> tuple[Any, Any]:
        dtype = np.float64 if xp is np else jnp.promote_types(jnp.result_type(time), jnp.float32)
        table, time = xp.asarray(self._log_alpha_bar, dtype), xp.asarray(time, dtype)
        before = xp.clip(xp.floor(time), 0, self.steps - 1).astype(int)
        part = time - before
        # Where the step is whole its neighbour does not count, even if that is -inf.
        low = xp.where(part < 1, table[before], 0) * xp.where(part < 1, 1 - part, 0)
        high = xp.where(part > 0, table[before + 1], 0) * xp.where(part > 0, part, 1)
        log = low + high
        return xp.exp(log / 2), xp.sqrt(-xp.expm1(log))

    def time_of(self, ratio: Any) -> np.ndarray:
        with np.errstate(over="ignore"):
            log = -np.log1p(np.square(np.asarray(ratio, np.float64)))
        return np.asarray(np.interp(-log, -self._log_alpha_bar, np.arange(self.steps + 1.0)))

    def conditioning(self, time: Any) -> Any:
        return (time - 1.0) * (1000.0 / self.steps)

    def told(self, conditioning: Any) -> Any:
        return conditioning * (self.steps / 1000.0) + 1.0


@component("vp_sde", kind="process")
@dataclasses.dataclass(frozen=True)
class VPSDE(ProcessBase):
    """The variance preserving SDE, dx = -beta x / 2 dt + sqrt(beta) dw with beta(t) from `start` to `stop` on [0, 1].

    alpha = exp(-t^2 (stop - start) / 4 - t start / 2), sigma^2 = 1 - alpha^2; of the sub-VP SDE, sigma = 1 - alpha^2.

    Source: Song et al. 2021 (2011.13456, equations 29, 33 and appendix C).

    Attributes:
      start: beta at t = 0.
      stop: beta at t = 1.
      sub: whether it is the sub-VP SDE, whose variance is smaller at every time.
    """

    start: Positive = 0.1
    stop: Positive = 20.0
    sub: bool = False

    def __post_init__(self) -> None:
        if not self.start <= self.stop:
            raise UsageError(f"start is {self.start} and stop {self.stop}; expected start <= stop, such as 0.1 and 20")

    @property
    def first(self) -> float:
        return 1e-3

    def coefficients(self, time: Any, xp: Any = jnp) -> tuple[Any, Any]:
        log = -0.25 * time**2 * (self.stop - self.start) - 0.5 * time * self.start
        variance = -xp.expm1(2 * log)
        return xp.exp(log), variance if self.sub else xp.sqrt(variance)

    def time_of(self, ratio: Any) -> np.ndarray:
        ratio = np.asarray(ratio, np.float64)
        if self.sub:  # (1 - a^2) / a = r
            log = np.log(2) - np.log(ratio + np.sqrt(ratio**2 + 4))
        else:
            log = -0.5 * np.log1p(ratio**2)
        # The quadratic's root in the form without cancellation; noise alone is never reached.
        some = np.where(np.isinf(log), -1.0, log)
        time = -4 * some / (self.start + np.sqrt(self.start**2 - 4 * (self.stop - self.start) * some))
        return np.where(np.isinf(log), np.inf, time)


@component("variance_exploding", kind="process")
@dataclasses.dataclass(frozen=True)
class VarianceExploding(ProcessBase):
    """The variance exploding SDE: alpha = 1, sigma = smallest (largest / smallest)^t for t in (0, 1].

    Source: Song & Ermon 2019 (1907.05600); Song et al. 2021 (2011.13456, equation 31).

    Attributes:
      smallest: sigma at t -> 0; time 0 itself is the data.
      largest: sigma at t = 1, about the largest distance between two examples (2006.09011, technique 1).
    """

    smallest: Positive = 0.01
    largest: Positive = 50.0

    def __post_init__(self) -> None:
        if not self.smallest < self.largest:
            raise UsageError(f"smallest is {self.smallest} and largest {self.largest}; expected smallest < largest")

    @property
    def first(self) -> float:
        return 1e-5

    @property
    def prior_std(self) -> float:
        return self.largest

    def coefficients(self, time: Any, xp: Any = jnp) -> tuple[Any, Any]:
        sigma = self.smallest * xp.exp(time * np.log(self.largest / self.smallest))
        return xp.ones_like(sigma), xp.where(time > 0, sigma, 0 * sigma)

    def time_of(self, ratio: Any) -> np.ndarray:
        ratio = np.asarray(ratio, np.float64)
        with np.errstate(divide="ignore"):
            time = np.log(ratio / self.smallest) / np.log(self.largest / self.smallest)
        return np.where(ratio > 0, np.maximum(time, 1e-12), 0.0)


@component("noise_level", kind="process")
@dataclasses.dataclass(frozen=True)
class NoiseLevel(ProcessBase):
    """EDM's process: alpha = 1 and sigma = t, so that time is the noise level.

    Source: Karras et al. 2022 (2206.00364, table 1, last column).

    Attributes:
      smallest: noise level that sampling reaches before 0.
      largest: noise level that sampling begins with.
    """

    smallest: Positive = 0.002
    largest: Positive = 80.0

    def __post_init__(self) -> None:
        if not self.smallest < self.largest:
            raise UsageError(f"smallest is {self.smallest} and largest {self.largest}; expected smallest < largest")

    @property
    def first(self) -> float:
        return self.smallest

    @property
    def last(self) -> float:
        return self.largest

    @property
    def prior_std(self) -> float:
        return self.largest

    @property
    def spacing(self) -> str:
        return "karras"

    def coefficients(self, time: Any, xp: Any = jnp) -> tuple[Any, Any]:
        return xp.ones_like(time), time * xp.ones_like(time)

    def time_of(self, ratio: Any) -> np.ndarray:
        return np.asarray(ratio, np.float64)

    def conditioning(self, time: Any) -> Any:
        """1000 c_noise with EDM's c_noise = log(sigma) / 4 (table 1)."""
        xp = np if isinstance(time, np.ndarray | float) else jnp
        return 250.0 * xp.log(xp.maximum(time, 1e-12))

    def told(self, conditioning: Any) -> Any:
        return jnp.exp(conditioning / 250.0)


@component("rectified_flow", kind="process")
@dataclasses.dataclass(frozen=True)
class RectifiedFlow(ProcessBase):
    """Straight paths from data to noise: alpha = 1 - t, sigma = t.

    Source: Liu et al. 2022 (2209.03003, equation 1); Lipman et al. 2022 (2210.02747, equation 20, with sigma_min = 0).
    Their t runs from noise to data; here, as in the other processes, t = 0 is the data.

    Attributes:
      shift: factor of sigma / alpha at every time, t' = shift t / (1 + (shift - 1) t), for larger images (Esser et al.
        2024, 2403.03206, equation 23, where it is 3 at 1024 x 1024 pixels).
    """

    shift: Positive = 1.0

    @property
    def straight(self) -> bool:
        return True

    def coefficients(self, time: Any, xp: Any = jnp) -> tuple[Any, Any]:
        sigma = self.shift * time / (1 + (self.shift - 1) * time)
        return (1 - time) / (1 + (self.shift - 1) * time), sigma

    def rates(self, time: jax.Array) -> tuple[jax.Array, jax.Array]:
        """d alpha / d sigma and 1: by sigma, which is t without a shift.

        A shift moves the times at which a network is asked, not what it is asked, which is noise - x_0 everywhere.
        """
        return -jnp.ones_like(time), jnp.ones_like(time)

    def time_of(self, ratio: Any) -> np.ndarray:
        ratio = np.asarray(ratio, np.float64) / self.shift
        return np.where(np.isinf(ratio), 1.0, ratio / (1 + np.where(np.isinf(ratio), 0, ratio)))

    def conditioning(self, time: Any) -> Any:
        """1000 sigma: 0 for data, 1000 for noise, as released flow models have it."""
        return 1000.0 * self.coefficients(time, np if isinstance(time, np.ndarray | float) else jnp)[1]

    def told(self, conditioning: Any) -> Any:
        sigma = conditioning / 1000.0
        return sigma / (self.shift - (self.shift - 1) * sigma)
