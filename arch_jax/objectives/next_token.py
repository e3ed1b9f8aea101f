"""Next-token prediction: the language-model objective (Shannon 1948; Bengio et al. 2003)."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from arch_jax.errors import UsageError
from arch_jax.evaluation.gradient_reach import gradient_by_distance
from arch_jax.fields import component
from arch_jax.figures.gradient_reach import reach_figure
from arch_jax.layers.dense import Embedding
from arch_jax.objectives.base import Batch, ObjectiveBase, Pair, compiled
from arch_jax.ops.losses import cross_entropy
from arch_jax.sampling import generate


@component("next_token", kind="objective")
@dataclasses.dataclass(frozen=True)
class NextToken(ObjectiveBase):
    """-log p(x_{t+1} | x_1 ... x_t), in nats, over the targets that have weight.

    Attributes:
      model: the decoder; filled in by the experiment.
      label_smoothing: share of each target spread evenly over the vocabulary, in training.
      z_loss: factor on log(Z)^2, which keeps the logits' normaliser near 1 (PaLM, 2204.02311, section 5), in training.
      prompt: what `show` and `sample` continue, unless told otherwise.
      show_length: tokens that `show` writes.
      temperature: of `show`'s sampling.
      show_reach: whether `show` draws, too, how far back the gradient of the last target's nats reaches.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    prompt: str = "\n"
    show_length: int = 400
    temperature: float = 0.8
    show_reach: bool = False

    def arguments(self, batch: Batch) -> tuple:
        return (batch["tokens"],)

    def loss(
        self, player: str, phase: str, variables: Any, batch: Batch, key: jax.Array, step: Any
    ) -> tuple[Pair, tuple[dict, dict]]:
        logits, updates = self.apply(variables, batch["tokens"], segment_ids=batch.get("segment_ids"), key=key)
        nats = cross_entropy(logits, batch["targets"], label_smoothing=self.label_smoothing, z_loss=self.z_loss)
        weights = batch["weights"].astype(nats.dtype)
        loss = (jnp.sum(nats * weights), jnp.sum(weights))
        return loss, ({"loss": loss}, updates)

    def evaluate(self, variables: Any, batch: Batch) -> dict[str, Pair]:
        """Nats a token ("loss"), bits a byte of the text predicted, and the share of tokens predicted right."""
        logits = self.model.apply(variables, batch["tokens"], segment_ids=batch.get("segment_ids"))
        nats = cross_entropy(logits, batch["targets"])
        weights = batch["weights"].astype(nats.dtype)
        total, weight = jnp.sum(nats * weights), jnp.sum(weights)
        right = (jnp.argmax(logits, axis=-1) == batch["targets"]) * weights
        metrics = {"loss": (total, weight), "accuracy": (jnp.sum(right), weight)}
        if "bytes" in batch:
            metrics["bits_per_byte"] = (total / math.log(2), jnp.sum(batch["bytes"] * weights))
        return metrics

    def score(self, variables: Any, data: Any) -> dict[str, float]:
        """The metrics of `evaluate` on what data has `elsewhere`, such as longer sequences: "accuracy_at_4096"."""
        metrics = jax.jit(self.evaluate)
        found = {}
        for name, corpus in getattr(data, "elsewhere", {}).items():
            sums = [metrics(variables, batch) for batch in corpus.validation()]
            for metric in sums[0]:
                total, weight = (sum(float(pairs[metric][i]) for pairs in sums) for i in (0, 1))
                found[f"{metric}_{name}"] = total / weight
        return found

    def check(self, data: Any) -> None:
        """The tokenizer's tokens must be in the model's vocabulary, the prompt too, and sequences within positions."""
        if "tokens" not in data.shapes or "targets" not in data.shapes:
            raise UsageError(
                f"the objective 'next_token' takes sequences of tokens, and the data has {', '.join(data.shapes)}; "
                "expected tokens and targets, such as arch_jax.Text()"
            )
        vocabulary = data.tokenizer.vocabulary
        if vocabulary > self.model.vocabulary:
            raise UsageError(
                f"model.vocabulary is {self.model.vocabulary}, but the tokenizer {data.tokenizer.name!r} has "
                f"{vocabulary} tokens; set model.vocabulary={vocabulary}"
            )
        if getattr(self.model, "position", None) is not None:
            self.model.position.check(data.length)
        data.tokenizer.encode(self.prompt)  # a prompt outside the vocabulary is told before the training, not after

    def sample(
        self,
        variables: Any,
        data: Any,
        key: jax.Array,
        *,
        prompt: str | None = None,
        count: int = 1,
        length: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> list[str]:
        """`count` texts, each the prompt and what the model makes of it.

        Raises:
          UsageError: the prompt is empty, has characters outside the vocabulary, or the text would be too long.
        """
        prompt = self.prompt if prompt is None else prompt
        if count < 1:
            raise UsageError(f"count is {count}; expected at least 1")
        if not prompt:
            raise UsageError("the prompt is empty; expected at least one character")
        tokens = data.tokenizer.encode(prompt)
        length = self.show_length if length is None else length
        temperature = self.temperature if temperature is None else temperature
        options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        new = generate(self.model, variables, [tokens] * count, length, key, **options)
        return [prompt + data.tokenizer.decode(row) for row in jax.device_get(new)]

    def show(self, variables: Any, data: Any, key: jax.Array) -> dict[str, Any]:
        """One sampled text, within the model's positions and those of training; and the gradient's reach, if asked."""
        room = getattr(getattr(self.model, "position", None), "length", None)
        length = self.show_length if room is None else min(self.show_length, room - 8)
        shown = {"text": self.sample(variables, data, key, length=max(1, length))[0]}
        if self.show_reach:
            batch = next(iter(data.validation()))
            # Of one key throughout: from picture to picture of the film it is the trained model that moves.
            fresh = compiled(self, "init", jax.random.key(0), batch)
            trained, at_first = (compiled(self, "_reach", v, batch) for v in (variables, fresh))
            shown["gradient"] = reach_figure({"trained": trained, "freshly drawn": at_first})
        return shown

    def _reach(self, variables: Any, batch: Batch) -> jax.Array:
        """`gradient_by_distance` of the nats of each row's last target, in what the embedding gives."""
        tokens, last = batch["tokens"], batch["targets"][:, -1]

        def nats(added: jax.Array) -> jax.Array:
            def add(call: Any, arguments: Any, options: Any, context: Any) -> Any:
                out = call(*arguments, **options)
                embeds = isinstance(context.module, Embedding) and context.method_name == "__call__"
                return out + added if embeds else out

            with nn.intercept_methods(add):
                logits = self.model.apply(variables, tokens)
            return cross_entropy(logits[:, -1], last)[:, None]

        return gradient_by_distance(nats, jnp.zeros((*tokens.shape, self.model.width)))
