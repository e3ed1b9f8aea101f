"""Markov chains of known entropy, and the ideal predictor of their masked tokens.

An HMM in disguise: the chain is hidden, and BERT's corruption is its noisy observation, so that forward and backward
messages give the exact posterior of every token.
"""

import dataclasses

import numpy as np

from arch_jax.errors import UsageError

#: Stands for a masked token among the observations.
MASKED = -1


@dataclasses.dataclass(frozen=True)
class Corruption:
    """BERT's corruption: each token is chosen independently with probability `share`; chosen tokens are replaced.

    Attributes:
      share: probability that a token is chosen.
      masked: probability that a chosen token becomes [MASK].
      random: probability that it becomes a state drawn uniformly; else it stays.
    """

    share: float = 0.15
    masked: float = 0.8
    random: float = 0.1

    @property
    def kept(self) -> float:
        """Probability that a chosen token stays as it is."""
        return 1 - self.masked - self.random


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """A stationary Markov chain.

    Attributes:
      transition: P, float64 "states states"; row i is the law of the state after i.
      stationary: pi, float64 "states", with pi P = pi.
    """

    transition: np.ndarray
    stationary: np.ndarray

    @classmethod
    def of(cls, transition: np.ndarray) -> "Chain":
        """The chain of a transition matrix.

        Raises:
          UsageError: rows that are no distributions, or a chain that has no unique stationary law.
        """
        transition = np.asarray(transition, np.float64)
        square = transition.ndim == 2 and transition.shape[0] == transition.shape[1]
        if not square or (transition < 0).any() or not np.allclose(transition.sum(1), 1):
            raise UsageError(
                f"a transition matrix of shape {transition.shape} has rows that are no distributions; expected a "
                "square of numbers of at least 0 whose rows add up to 1"
            )
        count = len(transition)
        # pi (P - I) = 0 and sum(pi) = 1: of full rank exactly where the stationary law is unique.
        equations = np.concatenate([transition.T - np.eye(count), np.ones((1, count))])
        if np.linalg.matrix_rank(equations, tol=1e-12) < count:
            raise UsageError(
                f"a chain of {count} states falls into parts that never meet; expected one stationary law, as where "
                "all entries are above 0"
            )
        stationary = np.linalg.lstsq(equations, np.append(np.zeros(count), 1.0), rcond=None)[0]
        return cls(transition, np.maximum(stationary, 0) / np.maximum(stationary, 0).sum())

    @classmethod
    def random(cls, states: int, concentration: float | int, seed: int) -> "Chain":
        """Rows from a Dirichlet law; a thousandth of each is uniform, which makes every chain ergodic."""
        rows = np.random.default_rng([seed, states]).dirichlet(np.full(states, float(concentration)), size=states)
        return cls.of(0.999 * rows + 0.001 / states)

    @property
    def entropy_rate(self) -> float:
        """h = H(x_t | x_{t-1}) = - sum_i pi_i sum_j P_ij log P_ij, in nats."""
        return float(self.stationary @ _entropy(self.transition))

    @property
    def two_sided_entropy(self) -> float:
        """H(x_t | x_{t-1}, x_{t+1}) = 2 h - H(x_{t+1} | x_{t-1}), in nats: a single hidden token between known ones."""
        return 2 * self.entropy_rate - float(self.stationary @ _entropy(self.transition @ self.transition))

    def sample(self, generator: np.random.Generator, count: int, length: int) -> np.ndarray:
        """Stationary sequences: int32 "count length"."""
        rows = np.cumsum(np.concatenate([self.transition, self.stationary[None]]), axis=1)
        rows[:, -1] = 1.0  # a sum of rounded numbers may stay below the uniform sample
        sequences = np.empty((count, length), np.int32)
        state = np.full(count, len(self.stationary))
        for t in range(length):
            state = (generator.random((count, 1)) >= rows[state]).sum(axis=1)
            sequences[:, t] = state
        return sequences

    def corrupted(self, generator: np.random.Generator, sequences: np.ndarray, how: Corruption) -> np.ndarray:
        """The sequences as they are observed, `MASKED` where masked."""
        chosen = generator.random(sequences.shape) < how.share
        action = generator.random(sequences.shape)
        drawn = generator.integers(len(self.stationary), size=sequences.shape)
        new = np.where(action < how.masked, MASKED, np.where(action < how.masked + how.random, drawn, sequences))
        return np.where(chosen, new, sequences)

    def cavity(self, observed: np.ndarray, how: Corruption) -> np.ndarray:
        """P(x_t | y_u for all u except t), "count length states": forward times backward messages, normalised."""
        count, length = observed.shape
        states = len(self.stationary)
        # P(y | x) of a token of which it is not known whether it was chosen, up to a factor.
        same = np.equal(observed[..., None], np.arange(states))
        evidence = (1 - how.share + how.share * how.kept) * same + how.share * how.random / states
        evidence = np.where(observed[..., None] == MASKED, 1.0, evidence)
        forward = np.empty((count, length, states))
        backward = np.empty((count, length, states))
        message = np.tile(self.stationary, (count, 1))
        for t in range(length):
            forward[:, t] = message
            message = _normalised(message * evidence[:, t]) @ self.transition
        message = np.ones((count, states))
        for t in reversed(range(length)):
            backward[:, t] = message
            message = _normalised(message * evidence[:, t]) @ self.transition.T
        return _normalised(forward * backward)

    def posterior(self, observed: np.ndarray, how: Corruption) -> np.ndarray:
        """P(x_t | y, t was chosen), float64 "count length states": the optimal prediction of a chosen token.

        Args:
          observed: corrupted sequences, "count length", `MASKED` where masked.
          how: the corruption.
        """
        states = len(self.stationary)
        same = np.equal(observed[..., None], np.arange(states))
        evidence = how.kept * same + how.random / states
        return _normalised(self.cavity(observed, how) * np.where(observed[..., None] == MASKED, 1.0, evidence))

    def masked_entropy(self, length: int, how: Corruption, count: int = 2048, seed: int = 0) -> float:
        """The expected loss of the ideal predictor on a chosen token, in nats: the floor for a masked language model.

        The mean over positions of E[-log P(x_t | y, t chosen)]. Events at t itself are summed over; only the other
        tokens' observations are sampled.

        Args:
          length: tokens of a sequence.
          how: the corruption.
          count: the number of sampled sequences; each position of each is one sample.
          seed: of the draw.
        """
        generator = np.random.default_rng([seed, count, length])
        parts = [min(512, count - first) for first in range(0, count, 512)]  # all at once would need a gigabyte
        found = [self._masked_entropies(self.sample(generator, size, length), generator, how) for size in parts]
        return float(np.concatenate(found).mean())

    def _masked_entropies(self, sequences: np.ndarray, generator: np.random.Generator, how: Corruption) -> np.ndarray:
        prior = self.cavity(self.corrupted(generator, sequences, how), how)
        states = len(self.stationary)
        # Seen value v of a chosen token that was not masked: P(v | x) = kept [v = x] + random / states.
        joint = prior[..., None, :] * (how.kept * np.eye(states) + how.random / states)
        seen = joint.sum(-1)
        split = np.where(seen > 0, seen * _entropy(joint / np.maximum(seen, 1e-300)[..., None]), 0).sum(-1)
        return how.masked * _entropy(prior) + split


def _entropy(p: np.ndarray) -> np.ndarray:
    return -np.sum(np.where(p > 0, p * np.log(np.maximum(p, 1e-300)), 0), axis=-1)


def _normalised(p: np.ndarray) -> np.ndarray:
    """Divided by its sum; uniform where all is 0, that is, at impossible observations."""
    total = p.sum(-1, keepdims=True)
    return np.where(total > 0, p / np.where(total > 0, total, 1), 1 / p.shape[-1])
