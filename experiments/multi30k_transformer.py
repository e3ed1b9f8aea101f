r"""A small Transformer (Vaswani et al. 2017, 1706.03762) translates image captions from English to German.

    arch-jax train multi30k_transformer

Multi30k (Elliott et al. 2016, 1605.00459): 29,000 pairs, a joint byte-pair vocabulary of 4,000, and for a CPU 2 + 2
layers of width 192, with the paper's post-norm, sinusoidal positions, shared embeddings, dropout and label smoothing.
BLEU is sacrebleu's (13a, cased), of beam search (4 beams, length penalty 0.6) over the 1,000 sentences of the 2016
Flickr test; it needs the extra `arch-jax[translation]`.

Expected: 32.9 BLEU and 2.061 nats a token on the validation part (seed 0), in about 20 minutes on 2 CPU cores.

The setting of bentrevett/pytorch-seq2seq (6, "Attention is All You Need"), for a GPU: German to English in lower case,
3 + 3 layers of width 256, 10 epochs. It reports a perplexity of 5.316 and 36.52 BLEU, on spaCy's words with rare ones
cut away and scored on those words, so neither is quite what is measured here. Not run so far.

    arch-jax train multi30k_transformer --set data.direction=de-en --set data.lowercase=true \
      --set data.tokenizer=bpe:8000 --set data.length=40 --set data.batch=128 --set model.vocabulary=8002 \
      --set model.depth=3 --set model.width=256 --set model.initial_std=0.0625 \
      --set model.mixer.heads=8 --set model.cross.heads=8 \
      --set model.shared=false --set model.tied=false --set model.position=learned --set model.position.length=100 \
      --set objective.label_smoothing=0 --set objective.beams=1 --set optimizer.learning_rate=5e-4 \
      --set optimizer.schedule=constant --set optimizer.warmup=0 --set optimizer.b2=0.999 --set steps=2270
"""

import arch_jax


def config() -> arch_jax.Experiment:
    """2.4 M parameters, 64 pairs of up to 28 tokens a step, 6 times over the corpus."""
    return arch_jax.Experiment(
        model=arch_jax.create(
            "transformer-base",
            vocabulary=4002,
            depth=2,
            width=192,
            initial_std=192**-0.5,  # width^-1/2: embeddings are multiplied by width^1/2
            **{"mixer.heads": 6, "cross.heads": 6, "feed_forward.hidden": 512},
        ),
        objective=arch_jax.objective("sequence_to_sequence", label_smoothing=0.1, beams=4, length_penalty=0.6),
        data=arch_jax.Multi30k(direction="en-de", tokenizer="bpe:4000", length=28, batch=64),
        optimizer=arch_jax.Optimizer(
            "adam", learning_rate=1.5e-3, schedule="cosine", warmup=400, final=0.02, b2=0.98, epsilon=1e-9
        ),
        steps=2520,
        evaluate_every=840,
        checkpoint_every=840,
        log_every=10,
        steps_per_dispatch=10,
    )
