r"""Recurrent translation of captions, German to English, with attention and without: Sutskever, Cho, Bahdanau, Luong.

    arch-jax reproduce multi30k_seq2seq
    arch-jax ablate multi30k_seq2seq --axis model --seeds 1

The papers: 1409.3215, 1406.1078, 1409.0473 and 1508.04025. Multi30k (Elliott et al. 2016, 1605.00459) in lower case,
29,000 pairs with a joint byte-pair vocabulary of 4,000. The models have word vectors of 128 and 256 units, for a CPU.
BLEU is sacrebleu's of beam search over the 1,000 sentences of the 2016 Flickr test; it needs the extra
`arch-jax[translation]`.

bentrevett/pytorch-seq2seq (1 to 3) reports, with word vectors of 256 and 512 units, 10 epochs, spaCy's words: test
perplexities of 43.83 (Sutskever), 37.46 (Cho) and 25.57 (Bahdanau) with the decoder fed its own words, and 13.8, 20.6
and 28.3 BLEU. A perplexity of words is not one of byte pairs; what can be reproduced is the order, and that
attention passes what is reached without it. Seen here after 1,680 steps (one CPU core each; seeds 0 to 2 with
attention, seed 0 without), and the perplexity of a byte pair over the validation pairs with the true words before it:

    Sutskever    9.9 BLEU                    perplexity 28.0                   14 minutes
    Cho         18.6 BLEU                    perplexity 12.6                    7 minutes
    Luong       27.7, 27.2 and 26.5 BLEU     perplexity 12.5, 12.9 and 12.9     7 minutes
    Bahdanau    35.6, 36.5 and 36.5 BLEU     perplexity  7.3,  7.2 and  7.1     9 minutes
"""

import arch_jax

VOCABULARY, EMBEDDING, HIDDEN, DROPOUT, STD = 4002, 128, 256, 0.2, 0.06
SIZES = {"vocabulary": VOCABULARY, "embedding": EMBEDDING, "hidden": HIDDEN, "dropout": DROPOUT}
#: The papers' initial weights (0.01, and 0.001 in the score) are for 1000 units. At 256 the alignment comes late:
#: Bahdanau's model has 25.3 BLEU after as many steps (seed 0), and 36.0 with this initializer.
GATED = {"maxout": 128, "initial_std": STD}


def reported(bleu: float, part: str, **settings) -> arch_jax.Published:
    """A BLEU of the tutorials, which is to be passed."""
    source = f"bentrevett/pytorch-seq2seq {part}"
    return arch_jax.Published(
        bleu, source, tolerance=0, metric="bleu", seeds=3, unit="BLEU", direction="at least", **settings
    )


published = (
    reported(20.6, "(2): the BLEU of Cho's model, which attention must pass", behaviour=True),
    reported(28.3, "(3): Bahdanau's model"),
)
#: Axes whose variants belong to the record.
recorded = ("attention",)


def config() -> arch_jax.Experiment:
    """Bahdanau's model, 64 pairs of up to 28 tokens a step, 4 times over the corpus."""
    return arch_jax.Experiment(
        model=arch_jax.create("bahdanau", **SIZES, **GATED, **{"score.hidden": HIDDEN, "score.initial_std": STD}),
        objective=arch_jax.objective("sequence_to_sequence", beams=4, length_penalty=0.6),
        data=arch_jax.Multi30k(direction="de-en", tokenizer="bpe:4000", lowercase=True, length=28, batch=64),
        optimizer=arch_jax.Optimizer("adam", learning_rate=2e-3, schedule="cosine", warmup=200, final=0.02, clip=1.0),
        steps=1680,
        evaluate_every=420,
        checkpoint_every=420,
        log_every=10,
        steps_per_dispatch=10,
    )


def ablate_model():
    """The three papers at equal sizes: one summary for all, one seen at every step, and attention."""
    yield {"model": {"module": "sutskever", **SIZES, "depth": 2}}
    yield {"model": {"module": "cho", **SIZES, **GATED, "rank": None}}
    score = {"module": "additive_attention", "hidden": HIDDEN, "initial_std": STD}
    yield {"model": {"module": "bahdanau", **SIZES, **GATED, "score": score}}


def ablate_attention():
    """Luong's attention (1508.04025): after the recurrent step, by a bilinear score, and fed to the next step."""
    yield {"model": {"module": "luong", **SIZES, "depth": 1}}
