"""Sequence to sequence: the target's next tokens, given the source (Sutskever et al. 2014; Vaswani et al. 2017)."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from arch_jax import decoding
from arch_jax.errors import UsageError
from arch_jax.fields import component
from arch_jax.objectives.base import Batch, ObjectiveBase, Pair
from arch_jax.ops.losses import cross_entropy


@component("sequence_to_sequence", kind="objective")
@dataclasses.dataclass(frozen=True)
class SequenceToSequence(ObjectiveBase):
    """-log p(y_t | y_1 ... y_{t-1}, x), in nats, over the target's real tokens, the one that ends it among them.

    Attributes:
      model: the encoder-decoder; filled in by the experiment.
      label_smoothing: share of each target spread evenly over the vocabulary, in training (1706.03762, section 5.4).
      beams: hypotheses that beam search keeps, in `score` and `show`; 1 is greedy.
      length_penalty: alpha of ((5 + length) / 6)^alpha, by which a hypothesis's log-probability is divided (1609.08144,
        equation 14).
      longest: tokens that `score` and `show` write at most, as a multiple of the longest target there.
      show_pairs: how many pairs `show` writes.

    Raises:
      UsageError: a field out of range.
    """

    label_smoothing: float = 0.0
    beams: int = 4
    length_penalty: float = 0.6
    longest: float = 1.25
    show_pairs: int = 6

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing <= 1:
            raise UsageError(f"label_smoothing is {self.label_smoothing}; expected a number from 0 to 1, such as 0.1")
        if self.beams < 1:
            raise UsageError(f"beams is {self.beams}; expected at least 1, which is greedy")
        if not self.length_penalty >= 0:
            raise UsageError(f"length_penalty is {self.length_penalty}; expected at least 0, such as 0.6")
        if not self.longest >= 1:
            raise UsageError(f"longest is {self.longest}; expected at least 1")

    def arguments(self, batch: Batch) -> tuple:
        return batch["source"], batch["target"], batch.get("source_mask")

    def loss(self, player: str, variables: Any, batch: Batch, key: jax.Array) -> tuple[Pair, tuple[dict, dict]]:
        logits, updates = self.apply(variables, *self.arguments(batch), key=key)
        nats = cross_entropy(logits, jnp.asarray(batch["labels"]), label_smoothing=self.label_smoothing)
        loss = _weighted(nats, batch)
        return loss, ({"loss": loss}, updates)

    def evaluate(self, variables: Any, batch: Batch) -> dict[str, Pair]:
        """Nats a token without smoothing ("loss"; its exponential is the perplexity), and shares that are right.

        "accuracy" is of the tokens, each after the true ones before it; "exact" of the sequences of which all tokens
        are right, which are those that greedy decoding writes without a mistake.
        """
        logits = self.model.apply(variables, *self.arguments(batch))
        labels, weights = jnp.asarray(batch["labels"]), jnp.asarray(batch["weights"])
        right = jnp.argmax(logits, axis=-1) == labels
        nats = cross_entropy(logits, labels)
        rows = jnp.any(weights > 0, axis=1)  # what fills up the last batch has no real token
        exact = jnp.all(right | (weights == 0), axis=1) & rows
        return {
            "loss": _weighted(nats, batch),
            "accuracy": _weighted(right.astype(nats.dtype), batch),
            "exact": (jnp.sum(exact.astype(nats.dtype)), jnp.sum(rows.astype(nats.dtype))),
        }

    def check(self, data: Any) -> None:
        """The data must have pairs, with tokens that are in the model's vocabulary and lengths within its positions."""
        missing = [name for name in ("source", "target", "labels") if name not in data.shapes]
        if missing:
            raise UsageError(
                f"the objective 'sequence_to_sequence' takes pairs of sequences, and the data has "
                f"{', '.join(data.shapes)}; expected source, target and labels, such as arch_jax.Multi30k()"
            )
        if data.vocabulary > self.model.vocabulary:
            raise UsageError(
                f"model.vocabulary is {self.model.vocabulary}, but the data has {data.vocabulary} tokens; set "
                f"model.vocabulary={data.vocabulary}"
            )
        position = getattr(self.model, "position", None)
        if hasattr(position, "check"):
            position.check(data.length)
        if getattr(data, "references", None) is not None:
            _sacrebleu()  # that it is missing is told before the training, not after

    def translate(self, variables: Any, data: Any, batches: Any) -> Iterator[tuple[np.ndarray, Batch]]:
        """What beam search makes of each batch: (tokens "batch length", the batch), compiled once for each shape."""

        def search(variables: Any, source: jax.Array, mask: jax.Array, length: int) -> jax.Array:
            options = {"start": data.start, "stop": data.stop, "beams": self.beams}
            tokens, _ = decoding.beam_search(
                self.model, variables, source, length, source_mask=mask, length_penalty=self.length_penalty, **options
            )
            return tokens

        for batch in batches:
            length = max(1, round(self.longest * batch["labels"].shape[1]))
            room = getattr(getattr(self.model, "position", None), "length", None)
            length = length if room is None else min(length, room)
            source, mask = jnp.asarray(batch["source"]), jnp.asarray(batch["source_mask"])
            yield np.asarray(search(variables, source, mask, length)), batch

    def score(self, variables: Any, data: Any) -> dict[str, float]:
        """What beam search makes of the whole test part.

        Returns:
          "exact_beam": the share of sequences without a mistake; where the data has reference texts, "bleu": the
          corpus's BLEU by sacrebleu, 0 to 100, on text that is not tokenized (its own tokenizer "13a").

        Source of BLEU: M. Post, "A Call for Clarity in Reporting BLEU Scores", 2018, arXiv 1804.08771.
        """
        exact, said = [], []
        for tokens, batch in self.translate(variables, data, data.test()):
            for row, labels, weights in zip(tokens, batch["labels"], batch["weights"]):
                if weights.any():
                    said.append(_until(row, data.stop))
                    exact.append(np.array_equal(said[-1], _until(labels, data.stop)))
        found = {"exact_beam": float(np.mean(exact))}
        if data.references is not None:
            texts = [data.decode(tokens).strip() for tokens in said]
            found["bleu"] = bleu(texts, data.references, lowercase=data.lowercase)
        return found

    def show(self, variables: Any, data: Any, key: jax.Array) -> dict[str, Any]:
        """Some validation pairs, each with what the model makes of its source."""
        batch = next(iter(data.validation()))
        few = {name: array[: self.show_pairs] for name, array in batch.items()}
        ((tokens, _),) = self.translate(variables, data, [few])
        lines = []
        for i, row in enumerate(tokens):
            if few["weights"][i].any():
                source = few["source"][i][np.asarray(few["source_mask"][i])]
                truth = _until(few["labels"][i], data.stop)
                said = _until(row, data.stop)
                lines += [
                    f"source    {data.decode(_until(source, data.stop))}",
                    f"reference {data.decode(truth)}",
                    f"model     {data.decode(said)}" + ("" if np.array_equal(said, truth) else "  [differs]"),
                    "",
                ]
        return {"text": "\n".join(lines)}


def bleu(said: Sequence[str], references: Sequence[str], lowercase: bool = False) -> float:
    """Corpus BLEU of sentences against one reference each, 0 to 100, by sacrebleu with its defaults.

    Raises:
      UsageError: sacrebleu is not installed, or there are not as many of one as of the other.
    """
    if len(said) != len(references):
        raise UsageError(
            f"there are {len(said)} translations of {len(references)} references; expected as many of both"
        )
    return float(_sacrebleu().corpus_bleu(list(said), [list(references)], lowercase=lowercase).score)


def _sacrebleu() -> Any:
    try:
        import sacrebleu
    except ImportError:
        raise UsageError(
            "BLEU needs sacrebleu, which is not installed; install it with pip install 'arch-jax[translation]'"
        ) from None
    return sacrebleu


def _until(tokens: np.ndarray, stop: int) -> np.ndarray:
    """The tokens before the first `stop`; all where there is none."""
    tokens = np.asarray(tokens)
    ends = np.flatnonzero(tokens == stop)
    return tokens[: ends[0]] if len(ends) else tokens


def _weighted(each: jax.Array, batch: Batch) -> Pair:
    weights = jnp.asarray(batch["weights"]).astype(each.dtype)
    # A place without weight may have anything in it, and 0 * NaN is NaN.
    return jnp.sum(jnp.where(weights > 0, each * weights, 0)), jnp.sum(weights)
