"""Laws, processes and predictions that samplers are tried on, and the answer for each."""

import dataclasses
from typing import Any, Literal

import numpy as np

from arch_jax.ops.diffusion import predictions, processes
from arch_jax.ops.diffusion.ancestral import ddpm
from arch_jax.ops.diffusion.heun import heun
from arch_jax.ops.diffusion.laws import Mixture
from arch_jax.ops.diffusion.solve import solve_reference

#: Wider than [-1, 1], so that a clip shows; of two deviations, so that one that is right by chance does not.
GAUSSIAN = Mixture.gaussian([1.5, -0.5], [1.0, 0.09])
#: The usual 8 modes in the plane.
RING = Mixture.ring(8, 1.0, 0.1)
#: Two classes on a line, which guidance parts.
CLASSES = Mixture(np.array([[-1.0], [1.0]]), np.full((2, 1), 0.25), np.full(2, 0.5))

LAWS = {"gaussian": GAUSSIAN, "mixture": RING, "classes": CLASSES}

PROCESSES: dict[str, Any] = {
    "vp linear": processes.VariancePreserving(),
    "vp cosine": processes.VariancePreserving("cosine"),
    "vp zero snr": processes.VariancePreserving("scaled_linear", zero_terminal_snr=True),
    "vp sde": processes.VPSDE(),
    "sub-vp sde": processes.VPSDE(sub=True),
    "ve": processes.VarianceExploding(),
    "edm": processes.NoiseLevel(),
    "flow": processes.RectifiedFlow(),
}

PREDICTIONS: dict[str, Any] = {
    "noise": predictions.Noise(),
    "x0": predictions.Data(),
    "v": predictions.Velocity(),
    "score": predictions.Score(),
    "flow": predictions.Flow(),
    "preconditioned": predictions.Preconditioned(),
}


@dataclasses.dataclass(frozen=True)
class Answer:
    """The moments that samples should have, "features" each."""

    mean: np.ndarray
    std: np.ndarray


#: The law that guidance ends in: the flow's, the stochastic chain's, or the tilt p(x) p(c | x)^s.
Guided = Literal["flow", "chain", "tilt"]


def answer(law: Mixture, process: Any, guidance: float, guided: Guided, label: int | None) -> Answer:
    """The moments that a sampler without error gives.

    Without guidance (or with scale 1) those of the law, or of the class. With guidance only Langevin dynamics at every
    noise level ends in the tilted law, here an integral on a line. The deterministic flow and the stochastic chain end
    in laws of their own, which are found by 1,000 small steps in float64, with the marginals of the true score: of the
    flow from the quantiles of its noise, of the chain from draws.
    """
    target = law if label is None else law.component(label)
    if guidance == 1:
        return Answer(target.mean, np.sqrt(target.variance))
    if guidance == 0:
        return Answer(law.mean, np.sqrt(law.variance))
    if guided == "tilt":
        x = np.linspace(-12, 12, 20_001)[:, None]
        log = (1 - guidance) * law.log_density(x) + guidance * target.log_density(x)
        weights = np.exp(log - log.max()) / np.exp(log - log.max()).sum()
        mean = weights @ x
        return Answer(mean, np.sqrt(weights @ (x - mean) ** 2))
    # From a noise level where the law no longer shows, down to one where nothing moves any more.
    fine = process.time_of(np.exp(np.linspace(np.log(80.0), np.log(2e-3), 1001)))
    alpha, _ = process.coefficients(fine, np)
    start = float(process.coefficients(fine[0], np)[1])

    def denoise(x: np.ndarray, time: float) -> np.ndarray:
        a, s = process.coefficients(np.float64(time), np)
        without = law.denoised(x, a, s)
        return without + guidance * (target.denoised(x, a, s) - without)

    if guided == "chain":
        generator = np.random.default_rng(0)
        rows = ddpm(process, fine)
        x = start * generator.standard_normal((20_000, len(law.mean)))
        noises = (generator.standard_normal(x.shape) for _ in rows.times)
        x = solve_reference(rows, denoise, x, _Lazily(noises))
    else:
        nodes, weights = np.polynomial.hermite_e.hermegauss(80)
        x = solve_reference(heun(process, fine), denoise, start * nodes[:, None]) / alpha[-1]
        mean = weights @ x / weights.sum()
        return Answer(mean, np.sqrt(weights @ (x - mean) ** 2 / weights.sum()))
    x = x / alpha[-1]
    return Answer(x.mean(0), x.std(0))


class _Lazily:
    """Draws one after another, indexed in order: a thousand of them would fill the memory."""

    def __init__(self, draws: Any) -> None:
        self.draws = draws

    def __getitem__(self, index: int) -> np.ndarray:
        return next(self.draws)
