"""Weights are arguments of every compiled program: with others, evaluating, sampling and drawing compile nothing.

A program that closes over the weights is compiled anew for each of them, and each of its entries in the compilation
cache is as large as the model.
"""

import ast
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import arch_jax
from arch_jax import fields
from arch_jax.data.base import load_corpus
from arch_jax.experiment import import_components, load
from arch_jax.train.checks import evaluation_program

PACKAGE = Path(__file__).parents[2] / "arch_jax"
DIGITS = {"data.source": "digits", "data.resize": 28, "data.batch": 16, "objective.show_images": 2}
POINTS = {"data.batch": 6, "data.validation": 12, "model.depth": 1, "model.width": 16}
#: Those that an experiment of points is drawn with beside its own.
SAMPLERS = (
    "ddim", "euler", "euler_ancestral", "heun", "dpm_solver", "unipc", "pndm", "predictor_corrector",
    "annealed_langevin",
)  # fmt: skip
#: A trained part of a measure, as a run has it once it is open.
CLASSIFIER = arch_jax.models()["resnet-18"].tiny().clone(classes=10)
EXTRACTOR = arch_jax.Frozen("runs/classifier", CLASSIFIER, "classifier", low=0.0, high=1.0)
#: Experiment, or one with another sampler, and what makes it small, of data that is at hand.
SMALL = {
    "adding_problem": {"data.batch": 6, "data.length": 6, "data.validation": 6},
    "bert_markov": {"data.batch": 6, "data.validation": 6, "model.depth": 1, "model.width": 16},
    "ddpm_fashion": DIGITS | {"data.resize": 4, "data.pad": 0},
    "ddpm_points": POINTS | {"sampler.steps": 3},
    # Of as many steps two of them are one program.
    **{f"ddpm_points:{name}": POINTS | {"sampler": name, "sampler.steps": 4 + i} for i, name in enumerate(SAMPLERS)},
    "denoising_score": {"data.batch": 6, "data.validation": 12},
    "gan_ring": {"data.batch": 6, "data.validation": 12},
    "gcn_karate": {},
    "lenet_digits": {"data.batch": 12, "objective.show_images": 2},
    "likelihood_points": POINTS | {"sampler.steps": 3},
    "luong_reverse": {"data.batch": 4, "data.validation": 4, "model.hidden": 16, "model.embedding": 32},
    "mae_fashion": DIGITS | {"model.depth": 1, "model.decoder_depth": 1, "objective.probe_images": 32},
    "mqar": {"data.batch": 4, "data.validation": 4, "objective.show_length": 2, "objective.show_reach": True},
    "sparse_dictionary": {"data.batch": 6, "data.validation": 12},
    "vae_fashion": DIGITS | {"model.latent": 2, "model.hidden": (16,)},
    "vqvae_fashion": DIGITS | {"model.width": 8},
}


def small(name):
    it = load(name.partition(":")[0])[0]
    if name == "ddpm_fashion":  # the classifier that guides it
        guide = arch_jax.models()["adm-classifier-64"].tiny().clone(channels=1, classes=10)
        parts = {"objective": arch_jax.objective("noisy_classification"), "sampler": None, "measures": None}
        it = dataclasses.replace(it, model=guide, **parts)
    it = it.overridden(SMALL[name])
    if name == "ddpm_points":
        other = arch_jax.OfSampler(measure=arch_jax.PointDistances(count=8), sampler=arch_jax.DDIM(steps=2), name="two")
        return dataclasses.replace(it, measures=(*it.used_measures, other))
    if name != "vae_fashion":
        return it
    return dataclasses.replace(
        it, measures=(arch_jax.ImageDistances(extractor=EXTRACTOR, count=8, training_images=16),)
    )


def everything(experiment, corpus, variables):
    """All that a run does with its weights, but steps: a batch evaluated, samples, measures, figures."""
    task, sampler = experiment.task, experiment.used_sampler
    evaluation_program(task)(variables, next(iter(corpus.validation())))
    sampler(task, variables, corpus, jax.random.key(0), 2)
    for part in (*experiment.used_measures, *experiment.used_figures):
        part(task, variables, sampler, corpus, jax.random.key(0))


@pytest.mark.thorough
@pytest.mark.parametrize("name", SMALL)
def test_other_weights_compile_nothing(name, compiled):
    experiment = small(name)
    corpus = load_corpus(experiment.data)
    batch = {key: jnp.zeros(*facts) for key, facts in corpus.shapes.items()}
    init = jax.jit(experiment.task.init)
    one, other = (init(jax.random.key(i), batch) for i in range(2))
    if name == "vae_fashion":
        held = jax.jit(CLASSIFIER.init)
        one, other = (
            variables | {"frozen": {"classifier": held(jax.random.key(i), batch["images"])}}
            for i, variables in enumerate((one, other))
        )
    before = len(compiled)
    everything(experiment, corpus, one)
    assert compiled[before:]  # something is there to be counted
    before = len(compiled)
    everything(small(name), corpus, other)  # with parts that are equal, not the same
    assert compiled[before:] == []


@pytest.mark.thorough
def test_every_objective_sampler_measure_and_figure_is_among_them():
    import_components()
    seen = {kind: set() for kind in ("objective", "sampler", "measure", "figure")}
    for name in SMALL:
        it = small(name)
        seen["objective"].add(type(it.objective))
        seen["sampler"].add(type(it.used_sampler))
        seen["measure"] |= set(map(type, it.used_measures))
        seen["figure"] |= set(map(type, it.used_figures))
    for kind, parts in seen.items():
        own = {part for part in fields.components(kind).values() if part.__module__.startswith("arch_jax.")}
        assert parts == own


def made_in_functions(source):
    """Lines of a file where a function that is called makes a compiled one, which is then another at each call."""
    tree = ast.parse(source)
    jit = lambda node: isinstance(node, ast.Attribute) and node.attr in ("jit", "pmap")
    of_decorators = {
        inner
        for node in tree.body
        for one in getattr(node, "decorator_list", [])
        for inner in ast.walk(one)
        if jit(inner)
    }
    return [node.lineno for node in ast.walk(tree) if jit(node) and node not in of_decorators]


@pytest.mark.parametrize("folder", ["objectives", "sampling", "evaluation", "figures", "interop", "models", "layers"])
def test_programs_are_made_once_for_a_file(folder):
    """`jax.jit` decorates functions of files: what closes over something is in nobody's cache."""
    files = sorted((PACKAGE / folder).rglob("*.py"))
    texts = [(file.name, file.read_text(encoding="utf-8")) for file in files]
    assert files
    assert {name: made_in_functions(text) for name, text in texts if ".jit" in text and made_in_functions(text)} == {}


def test_programs_in_functions_are_found():
    assert made_in_functions("def f(w):\n    return jax.jit(lambda x: x + w)") == [2]
    assert made_in_functions("def f(w):\n    @jax.jit\n    def g(x):\n        return x + w") == [2]
    assert made_in_functions("@functools.partial(jax.jit, static_argnums=0)\ndef f(w, x):\n    return x + w") == []
