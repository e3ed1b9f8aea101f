"""Next-token prediction: the language-model objective (Shannon 1948; Bengio et al. 2003)."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from arch_jax.errors import UsageError
from arch_jax.evaluation.base import Measure
from arch_jax.evaluation.further_corpora import FurtherCorpora
from arch_jax.fields import component
from arch_jax.figures.base import Figure
from arch_jax.figures.gradient_reach import GradientReach
from arch_jax.figures.samples import Samples
from arch_jax.inputs import calls
from arch_jax.objectives.base import Batch, ObjectiveBase, Pair
from arch_jax.ops.losses import cross_entropy, weighted
from arch_jax.protocols import check_head, check_length, sequence_limit
from arch_jax.ranges import Count, Share
from arch_jax.sampling.autoregressive import Autoregressive


@component("next_token", kind="objective")
@dataclasses.dataclass(frozen=True)
class NextToken(ObjectiveBase):
    """-log p(x_{t+1} | x_1 ... x_t), in nats, over the targets that have weight.

    Attributes:
      model: the decoder; filled in by the experiment.
      label_smoothing: share of each target spread evenly over the vocabulary, in training.
      z_loss: factor on log(Z)^2, which keeps the logits' normaliser near 1 (PaLM, 2204.02311, section 5), in training.
      prompt, show_length, temperature: defaults of the sampler's prompt, length and temperature.
      show_reach: whether the default figures include how far back the gradient of the last target's nats reaches.
    """

    label_smoothing: Share = 0.0
    z_loss: float = 0.0
    prompt: str = "\n"
    show_length: Count = 400
    temperature: float = 0.8
    show_reach: bool = False

    @property
    def sampler(self) -> Autoregressive:
        """Continuations, as long as the model's positions have room for."""
        room = sequence_limit(self.model)
        length = self.show_length if room is None else max(1, min(self.show_length, room - 8))
        return Autoregressive(prompt=self.prompt, length=length, temperature=self.temperature)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The metrics on further corpora, where the data has some."""
        return (FurtherCorpora(),)

    @property
    def figures(self) -> tuple[Figure, ...]:
        """One sampled text; and the gradient's reach, if asked for."""
        return (Samples(), *([GradientReach()] if self.show_reach else []))

    def arguments(self, batch: Batch) -> tuple:
        return calls.decoder(batch)

    def loss(
        self, player: str, phase: str, variables: Any, batch: Batch, key: jax.Array, step: Any
    ) -> tuple[Pair, tuple[dict, dict]]:
        logits, updates = self.apply(variables, batch["tokens"], segment_ids=batch.get("segment_ids"), key=key)
        nats = cross_entropy(logits, batch["targets"], label_smoothing=self.label_smoothing, z_loss=self.z_loss)
        loss = weighted(nats, batch["weights"])
        return loss, ({"loss": loss}, updates)

    def evaluate(self, variables: Any, batch: Batch) -> dict[str, Pair]:
        """Nats a token ("loss"), bits a byte of the text predicted, and the share of tokens predicted right."""
        logits = self.model.apply(variables, batch["tokens"], segment_ids=batch.get("segment_ids"))
        nats = cross_entropy(logits, batch["targets"])
        right = (jnp.argmax(logits, axis=-1) == batch["targets"]).astype(nats.dtype)
        metrics = {"loss": weighted(nats, batch["weights"]), "accuracy": weighted(right, batch["weights"])}
        if "bytes" in batch:
            of_text, _ = weighted(batch["bytes"].astype(nats.dtype), batch["weights"])
            metrics["bits_per_byte"] = (metrics["loss"][0] / math.log(2), of_text)
        return metrics

    def check(self, data: Any) -> None:
        """The tokenizer's tokens must be in the model's vocabulary, the prompt too, and sequences within positions."""
        if "tokens" not in data.shapes or "targets" not in data.shapes:
            raise UsageError(
                f"the objective 'next_token' takes sequences of tokens, and the data has {', '.join(data.shapes)}; "
                "expected tokens and targets, such as arch_jax.Text()"
            )
        check_head(self.model)
        vocabulary = data.tokenizer.vocabulary
        if vocabulary > self.model.vocabulary:
            raise UsageError(
                f"model.vocabulary is {self.model.vocabulary}, but the tokenizer {data.tokenizer.name!r} has "
                f"{vocabulary} tokens; set model.vocabulary={vocabulary}"
            )
        check_length(self.model, data.length)
