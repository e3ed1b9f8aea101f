"""Diffusion samplers by their contract: rows of their own, guidance, labels, what is compiled, laws that come out."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.errors import UsageError
from arch_jax.evaluation.point_distances import PointDistances
from arch_jax.models.diffusion.exact import RING, ExactDenoiser
from arch_jax.ops.sample_distances import mmd, mmd_reference, sliced_wasserstein

CHAIN = arch_jax.VariancePreserving()
SAMPLERS = {
    "DDPM": arch_jax.DDPM(steps=50),
    "DDPM, large": arch_jax.DDPM(steps=50, variance="large"),
    "DDIM": arch_jax.DDIM(),
    "DDIM, eta 1": arch_jax.DDIM(eta=1.0),
    "Euler": arch_jax.Euler(),
    "Euler ancestral": arch_jax.EulerAncestral(),
    "Heun": arch_jax.Heun(steps=50),
    "2M": arch_jax.DPMSolver(steps=50),
    "3M": arch_jax.DPMSolver(steps=50, order=3),
    "SDE 2M": arch_jax.DPMSolver(steps=50, stochastic=True),
}
KEY = jax.random.key(7)


def exact(process=CHAIN, prediction=None, **fields):
    prediction = prediction or arch_jax.NoisePrediction()
    model = ExactDenoiser(process=process, prediction=prediction, **fields)
    return arch_jax.objective("diffusion", process=process, prediction=prediction).with_model(model)


class Told(nn.Module):
    """Answers what is asked: D = `slope` x + label + 1, for x_0 prediction; with a variance at `where`."""

    features: int = 4
    classes: int | None = 3
    null_class: bool = True
    learned_variance: bool = False
    slope: float = 0.5
    where: float = 0.0

    def __call__(self, x, time, condition=None, train=False):
        made = self.slope * x
        if self.classes is not None:
            made = made + (condition.label[:, None] + 1.0) * jnp.arange(1.0, self.features + 1)
        return jnp.concatenate([made, jnp.full_like(made, self.where)], -1) if self.learned_variance else made


def told(**fields):
    return arch_jax.objective("diffusion", prediction=arch_jax.DataPrediction()).with_model(Told(**fields))


def few(sampler, **fields):
    return type(sampler)(**{**vars(sampler), "steps": 6, **fields})


@pytest.mark.parametrize("name", ["DDPM", "Heun", "SDE 2M"])
def test_row_i_depends_on_the_key_and_on_i_alone(name):
    task, sampler = exact(), few(SAMPLERS[name])
    seven = sampler.draw(task, {}, KEY, 7)
    assert seven.shape == (7, 2)
    assert seven.dtype == np.float32
    np.testing.assert_allclose(sampler.draw(task, {}, KEY, 3), seven[:3], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(few(sampler, batch=2).draw(task, {}, KEY, 7), seven, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(sampler.draw(task, {}, KEY, 7), seven)
    other = sampler.draw(task, {}, jax.random.key(8), 7)
    assert np.abs(np.asarray(other) - seven).max(axis=1).min() > 1e-3
    apart = np.abs(seven[:, None] - seven[None]).max(-1) + np.eye(7)
    assert apart.min() > 1e-4  # no two rows are alike


def test_rows_with_labels_do_not_depend_on_the_batch():
    task, sampler = exact(classes=8), few(arch_jax.DDPM(), guidance=2.0)
    labels = np.arange(7)
    whole = sampler.draw(task, {}, KEY, 7, labels)
    np.testing.assert_allclose(few(sampler, batch=3).draw(task, {}, KEY, 7, labels), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sampler.draw(task, {}, KEY, 3, labels[:3]), whole[:3], rtol=1e-5, atol=1e-6)


def test_guidance_of_1_is_the_conditional_model_and_of_0_the_unconditional():
    """2207.12598, equation 6, with w = s - 1."""
    labels = np.arange(8)
    task = exact(classes=8)
    sampler = arch_jax.DDIM(steps=6)
    bare = exact(classes=8, null_class=False)  # which guidance can't be applied to
    np.testing.assert_array_equal(
        sampler.draw(task, {}, KEY, 8, labels), few(sampler, guidance=1.0).draw(bare, {}, KEY, 8, labels)
    )
    none = few(sampler, guidance=0.0).draw(task, {}, KEY, 8, labels)
    np.testing.assert_allclose(none, sampler.draw(exact(), {}, KEY, 8), rtol=1e-6, atol=1e-6)
    near = sampler.draw(task, {}, KEY, 8, labels)
    assert np.abs(near - RING.means).max() < 0.6
    assert np.abs(none - RING.means).max() > 1


def test_both_outputs_of_guidance_in_one_call_or_in_two():
    task, labels = exact(classes=8), np.arange(8)
    made = [
        arch_jax.DDIM(steps=6, guidance=3.0, guidance_batched=batched).draw(task, {}, KEY, 8, labels)
        for batched in (True, False)
    ]
    np.testing.assert_allclose(*made, rtol=1e-6, atol=1e-6)


def test_guided_outputs_written_out():
    """One step of DDIM ends at D, which is unconditional + s (conditional - unconditional)."""
    begin = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    labels = np.array([0, 1, 2])
    draw = lambda **fields: arch_jax.DDIM(steps=1, **fields).draw(told(), {}, KEY, 3, labels, begin=begin)
    each = np.arange(1.0, 5)
    conditional, nothing = 0.5 * begin + (labels[:, None] + 1) * each, 0.5 * begin + 4 * each
    combined = nothing + 2.5 * (conditional - nothing)
    np.testing.assert_allclose(draw(guidance=2.5), combined, rtol=1e-5)
    # 2305.08891, equations 15 and 16
    rescaled = combined * np.std(conditional, axis=-1, keepdims=True) / np.std(combined, axis=-1, keepdims=True)
    np.testing.assert_allclose(draw(guidance=2.5, guidance_rescale=0.7), 0.7 * rescaled + 0.3 * combined, rtol=1e-5)
    np.testing.assert_array_equal(draw(guidance=2.5, guidance_rescale=0.0), draw(guidance=2.5))


def test_guidance_applies_in_its_interval_alone():
    """2404.07724: with s between two noise levels, and the conditional model elsewhere."""
    task, labels = exact(classes=8), np.arange(8)
    make = lambda **fields: np.asarray(arch_jax.DDIM(steps=8, **fields).draw(task, {}, KEY, 8, labels, path=True)[1])
    plain, everywhere = make(), make(guidance=3.0)
    np.testing.assert_allclose(make(guidance=3.0, guidance_interval=(0.0, 1e6)), everywhere, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(make(guidance=3.0, guidance_interval=(1e5, 1e6)), plain, rtol=1e-5, atol=1e-6)
    sampler = arch_jax.DDIM(steps=8)
    ratios = CHAIN.ratios(sampler.grid(CHAIN)[:-1])  # of the calls, from large to small
    low, high = (ratios[4] + ratios[5]) / 2, (ratios[1] + ratios[2]) / 2  # calls 2, 3 and 4
    inside = make(guidance=3.0, guidance_interval=(float(low), float(high)))
    np.testing.assert_allclose(inside[:3], plain[:3], rtol=1e-6, atol=1e-6)
    assert np.abs(inside[3] - plain[3]).max() > 1e-2
    # after the interval it is the conditional model, from where it is
    alpha, sigma = CHAIN.coefficients(sampler.grid(CHAIN), np)
    for call in (4, 5, 6):
        x = jnp.asarray(inside[call])
        scale = 3.0 if call == 4 else 1.0
        clean = [
            task.denoised({}, x, float(sampler.grid(CHAIN)[call]), arch_jax.Condition(label=jnp.asarray(label)))
            for label in (labels, np.full(8, 8))
        ]
        clean = np.asarray(clean[1] + scale * (clean[0] - clean[1]))
        expected = alpha[call + 1] * clean + sigma[call + 1] * (inside[call] - alpha[call] * clean) / sigma[call]
        np.testing.assert_allclose(inside[call + 1], expected, rtol=2e-4, atol=2e-4)


def test_a_clip_is_of_the_denoised_estimate():
    begin = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    draw = lambda **fields: np.asarray(
        arch_jax.DDIM(steps=1, **fields).draw(told(classes=None, slope=3.0), {}, KEY, 2, begin=begin)
    )
    free = 3 * begin
    np.testing.assert_allclose(draw(), free, rtol=1e-6)
    np.testing.assert_allclose(draw(clip=1.5), np.clip(free, -1.5, 1.5), rtol=1e-6)
    # Saharia et al. 2022 (2205.11487, section 2.3): s is a quantile of |D|, at least the clip
    bound = np.maximum(np.quantile(np.abs(free), 0.6, axis=-1, keepdims=True), 1.0)
    np.testing.assert_allclose(draw(clip=1.0, clip_quantile=0.6), np.clip(free, -bound, bound) / bound, rtol=1e-5)
    np.testing.assert_allclose(draw(clip=50.0, clip_quantile=0.6), free, rtol=1e-5)


def test_labels_are_drawn_in_turn():
    task = exact(classes=8)
    assert arch_jax.DDIM().labels_of(task, 11).tolist() == [*range(8), 0, 1, 2]
    assert arch_jax.DDIM(labels=(3, 7)).labels_of(task, 5).tolist() == [3, 7, 3, 7, 3]
    assert arch_jax.DDIM().labels_of(exact(), 5) is None
    data = arch_jax.Ring(std=0.1, batch=8, validation=40).load()
    made = arch_jax.DPMSolver(steps=20, labels=(3, 7))(task, {}, data, KEY, 6)
    assert np.asarray(made["labels"]).tolist() == [3, 7] * 3
    assert np.abs(made["coordinates"] - RING.means[[3, 7] * 3]).max() < 0.5
    assert len(made["points"].splitlines()) == 6
    assert "labels" not in arch_jax.DPMSolver(steps=20)(exact(), {}, data, KEY, 2)


@pytest.mark.parametrize("process", [CHAIN, arch_jax.NoiseLevel(largest=20.0)], ids=["chain", "EDM"])
def test_the_path_begins_with_noise_and_ends_near_the_sample(process):
    prediction = arch_jax.NoisePrediction() if process is CHAIN else arch_jax.PreconditionedPrediction()
    task, sampler = exact(process, prediction), arch_jax.DDIM(steps=30)
    sample, path = sampler.draw(task, {}, KEY, 400, path=True)
    assert path.shape == (30, 400, 2)
    assert np.std(path[0]) == pytest.approx(process.prior_std, rel=0.1)
    assert np.mean(path[0]) == pytest.approx(0, abs=5 * process.prior_std / math.sqrt(800))
    assert np.abs(path[-1] - sample).max() < 0.6
    np.testing.assert_array_equal(sampler.draw(task, {}, KEY, 400), sample)
    # from the same point, with whatever key, a sampler without noise goes to the same point
    again, from_there = sampler.draw(task, {}, jax.random.key(99), 400, path=True, begin=np.asarray(path[0]))
    np.testing.assert_array_equal(from_there[0], path[0])
    np.testing.assert_allclose(again, sample, rtol=1e-5, atol=1e-6)


@pytest.fixture
def compiled():
    """The names of the programs that are compiled, each as it is."""
    names = []

    def heard(event, duration, **facts):
        if event.endswith("backend_compile_duration"):
            names.append(facts.get("fun_name", "?"))

    jax.monitoring.register_event_duration_secs_listener(heard)
    yield names
    jax.monitoring.unregister_event_duration_listener(heard)


def test_a_second_sample_seed_or_sampler_compiles_nothing(compiled):
    data = arch_jax.Ring(std=0.1, batch=8, validation=40).load()
    task = exact(classes=8)
    jax.clear_caches()
    arch_jax.DDIM(steps=9, guidance=2.0, eta=0.5)(task, {}, data, jax.random.key(0), 5)
    before = len(compiled)
    assert before
    for sampler in (
        arch_jax.DDIM(steps=9, guidance=2.0, eta=0.5),
        arch_jax.DDIM(steps=9, guidance=4.0, eta=0.3),
        arch_jax.DDIM(steps=9, guidance=2.0, eta=0.5, labels=(1, 2)),
        arch_jax.DDPM(steps=9, guidance=2.0),
        arch_jax.DDPM(steps=9, guidance=2.0, spacing="leading"),
        arch_jax.EulerAncestral(steps=9, guidance=2.0),
        arch_jax.DPMSolver(steps=9, order=1, stochastic=True, guidance=2.0),
    ):
        for seed in (1, 2):
            sampler(task, {}, data, jax.random.key(seed), 5)
        assert compiled[before:] == [], sampler


@pytest.mark.parametrize(("where", "variance"), [(-1.0, "small"), (1.0, "large")])
def test_a_learned_variance_at_its_bounds_is_ddpms(where, variance):
    """2102.09672, equation 15."""
    made = arch_jax.DDPM(steps=8, variance="learned").draw(
        told(learned_variance=True, classes=None, where=where), {}, KEY, 5
    )
    fixed = arch_jax.DDPM(steps=8, variance=variance).draw(told(classes=None), {}, KEY, 5)
    np.testing.assert_allclose(made, fixed, rtol=1e-4, atol=1e-5)
    guided = arch_jax.DDPM(steps=8, variance="learned", guidance=2.0, guidance_batched=where > 0).draw(
        told(learned_variance=True, where=where), {}, KEY, 5, np.zeros(5, int)
    )
    expected = arch_jax.DDPM(steps=8, variance=variance, guidance=2.0).draw(told(), {}, KEY, 5, np.zeros(5, int))
    np.testing.assert_allclose(guided, expected, rtol=1e-4, atol=1e-4)
    # other samplers leave the variance out
    for sampler in (arch_jax.DDIM(steps=4), arch_jax.DDPM(steps=4), arch_jax.DDIM(steps=4, guidance=2.0)):
        each = [told(learned_variance=learned) for learned in (False, True)]
        one, other = (sampler.draw(task, {}, KEY, 3, np.zeros(3, int)) for task in each)
        np.testing.assert_array_equal(one, other)


#: Error of the spread within a mode that is the sampler's own with 50 steps: methods of order 1, and too much noise.
OWN = {"DDPM, large": 0.4, "DDIM": 0.2, "Euler": 0.2}


def check_the_law(sampler, task, tolerance=0.1):
    """The last step of them all goes to D of the last call, whose spread within a mode is known: x v / (v + r^2)."""
    count = 1000
    points = np.float64(sampler.draw(task, {}, KEY, count))
    last = float(task.process.ratios(sampler.grid(task.process)[-2:-1])[0])
    spread = 0.1 * math.sqrt(0.01 / (0.01 + last**2))
    np.testing.assert_allclose(np.mean(points, axis=0), 0, atol=5 * math.sqrt(0.51 / count))
    np.testing.assert_allclose(np.mean(np.sum(points**2, axis=1)), 1 + 2 * spread**2, atol=0.04)
    near = np.argmin(np.sum((points[:, None] - RING.means) ** 2, axis=-1), axis=1)
    assert np.abs(np.bincount(near, minlength=8) / count - 1 / 8).max() < 5 * math.sqrt(0.11 / count)
    np.testing.assert_allclose(np.std(points - RING.means[near]), spread, rtol=tolerance)


@pytest.mark.parametrize(
    "name",
    [*(pytest.param(n, marks=() if n in ("DDPM", "Heun", "2M") else pytest.mark.thorough) for n in SAMPLERS)],
)
def test_the_exact_denoiser_gives_samples_of_the_law(name):
    check_the_law(SAMPLERS[name], exact(), OWN.get(name, 0.1))


@pytest.mark.thorough
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    ("process", "prediction"),
    [
        (arch_jax.NoiseLevel(), arch_jax.PreconditionedPrediction()),
        (arch_jax.RectifiedFlow(), arch_jax.FlowPrediction()),
        (arch_jax.VPSDE(), arch_jax.VelocityPrediction()),
    ],
    ids=["EDM", "flow", "SDE"],
)
def test_so_do_other_processes(name, process, prediction):
    sampler = few(SAMPLERS[name], steps=200 if name.startswith(("DDPM", "DDIM, eta", "Euler a")) else 80)
    check_the_law(sampler, exact(process, prediction), OWN.get(name, 0.1))


# Distances of points.


def test_mmd_is_its_reference():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(7, 2)), 0.5 + generator.normal(size=(5, 2))
    widths = np.array([0.3, 1.0])
    kernel = lambda a, b: np.mean(np.exp(-np.sum((a - b) ** 2) / (2 * widths**2)))
    within = lambda z: sum(kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j)
    across = sum(kernel(a, b) for a in x for b in y)
    expected = within(x) / (7 * 6) + within(y) / (5 * 4) - 2 * across / 35  # equation 3 of Gretton et al.
    found = mmd(*(jnp.asarray(part, jnp.float32) for part in (x, y, widths)))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(mmd_reference(x, y, widths), expected, rtol=1e-5)


def test_mmd_is_unbiased():
    """0 on average for equal laws, though sets are small; the biased estimate would have about .3."""
    x, y = jax.random.normal(jax.random.key(0), (2, 2000, 6, 2))
    each = np.asarray(jax.jit(jax.vmap(lambda x, y: mmd(x, y, jnp.array([0.5, 1.0]))))(x, y))
    assert abs(each.mean()) < 4 * each.std() / math.sqrt(2000)
    assert each.min() < 0


@pytest.mark.parametrize("size", [1, 2, 3])
def test_sliced_wasserstein_of_shifted_points(size):
    """|shift| times the mean of |cos| over the sphere: Gamma(d / 2) / (sqrt(pi) Gamma((d + 1) / 2))."""
    x = jax.random.normal(jax.random.key(0), (50, size))
    shift = jnp.array([3.0, -4.0, 12.0])[:size]
    found = sliced_wasserstein(x, jax.random.permutation(jax.random.key(3), x + shift), jax.random.key(1), 20_000)
    cosine = math.gamma(size / 2) / (math.sqrt(math.pi) * math.gamma((size + 1) / 2))
    np.testing.assert_allclose(found, cosine * float(jnp.linalg.norm(shift)), rtol=0.015)
    assert float(sliced_wasserstein(x, x[::-1], jax.random.key(1))) == pytest.approx(0, abs=1e-6)


class Draws(arch_jax.Sampler):
    """True samples, or those without the first modes."""

    def __init__(self, missing=0):
        self.missing = missing

    def check(self, task, data):
        pass

    def __call__(self, task, variables, data, key, count=1):
        generator = np.random.default_rng(int(jax.random.randint(key, (), 0, 2**30)))
        points = RING.draw(generator, 2 * count + 200)
        near = np.argmin(np.sum((points[:, None] - RING.means) ** 2, axis=-1), axis=1)
        return {"coordinates": np.float32(points[near >= self.missing][:count])}


def test_distances_of_true_points_are_about_1():
    data = arch_jax.Ring(std=0.1, batch=8, validation=600).load()
    measured = [PointDistances()(exact(), {}, Draws(), data, jax.random.key(seed)) for seed in range(4)]
    assert set(measured[0]) == {"sliced_wasserstein", "distance", "mmd", "mode_share", "high_quality"}
    distances = np.array([m["distance"] for m in measured])
    assert 0.6 < distances.mean() < 1.6
    assert max(abs(m["mmd"]) for m in measured) < 0.003
    assert min(m["mode_share"] for m in measured) > 0.75
    without = PointDistances()(exact(), {}, Draws(missing=3), data, jax.random.key(0))
    assert without["mode_share"] == 0
    assert without["distance"] > 2
    assert without["mmd"] > 0.01


def test_the_other_half_of_the_real_points_is_at_the_distance_1():
    class Reversed(Draws):
        def __call__(self, task, variables, data, key, count=1):
            return {"coordinates": next(iter(data.validation()))["x"][:count][::-1]}

    data = arch_jax.Ring(std=0.1, batch=8, validation=600).load()
    measured = PointDistances()(exact(), {}, Reversed(), data, KEY)
    assert measured["distance"] == pytest.approx(1, rel=1e-6)
    assert measured["sliced_wasserstein"] == pytest.approx(0, abs=1e-6)


def test_there_are_no_distances_of_images():
    images = arch_jax.Images(source="digits", batch=4).load()
    assert PointDistances()(exact(), {}, Draws(), images, KEY) == {}


# What is refused.


def refused(sampler, task, data=None):
    with pytest.raises(UsageError) as caught:
        (sampler() if callable(sampler) and not isinstance(sampler, arch_jax.Sampler) else sampler).check(task, data)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize(
    ("make", "task", "parts"),
    [
        (lambda: arch_jax.DDIM(guidance=2.0), exact(), ("guidance is 2", "classes")),
        (lambda: arch_jax.DDIM(guidance=2.0), exact(classes=8, null_class=False), ("guidance is 2", "null_class")),
        (lambda: arch_jax.DDIM(labels=(1,)), exact(), ("labels", "classes")),
        (lambda: arch_jax.DDIM(labels=(1, 8)), exact(classes=8), ("8", "labels", "7")),
        (lambda: arch_jax.DDPM(steps=1001), exact(), ("1001", "1000")),
        (lambda: arch_jax.DDIM(steps=0), exact(), ("steps is 0",)),
        (lambda: arch_jax.DDIM(batch=0), exact(), ("batch is 0",)),
        (lambda: arch_jax.DDIM(clip_quantile=0.9), exact(), ("clip_quantile", "clip")),
        (
            lambda: arch_jax.DDPM(variance="learned"),
            exact(),
            ("sampler.variance is 'learned'", "expected 'small' or 'large'"),
        ),
        (lambda: arch_jax.DDIM(guidance_interval=(2.0, 1.0)), exact(classes=8), ("guidance_interval",)),
        (lambda: arch_jax.DDIM(guidance=float("nan")), exact(classes=8), ("guidance is nan",)),
        (lambda: arch_jax.DDIM(eta=2.0), exact(), ("eta is 2",)),
        (lambda: arch_jax.DPMSolver(order=3, stochastic=True), exact(), ("order", "stochastic")),
        (lambda: arch_jax.DPMSolver(order=4), exact(), ("order is 4",)),
        (
            lambda: arch_jax.DDPM(variance="learned", steps=10),
            exact(arch_jax.RectifiedFlow(), arch_jax.FlowPrediction()),
            ("learned",),
        ),
    ],
)
def test_what_is_refused(make, task, parts):
    data = arch_jax.Ring(std=0.1, batch=8, validation=40).load()
    sentence = refused(make, task, data)
    for part in parts:
        assert part in sentence, sentence


def test_distances_need_two_points_and_say_so_before_training():
    data = arch_jax.Ring(std=0.1, batch=8, validation=1).load()
    with pytest.raises(UsageError, match=r"1 validation point, .* at least 2; expected such as data\.validation=2500"):
        PointDistances().check(exact(), Draws(), data)
    with pytest.raises(UsageError, match="count is 1; expected at least 2"):
        PointDistances(count=1).check(exact(), Draws(), data)
    PointDistances().check(exact(), Draws(), arch_jax.Ring(std=0.1, batch=8, validation=2).load())
    PointDistances().check(exact(), Draws(), arch_jax.Images(source="digits", batch=4).load())


def test_a_count_of_0_is_refused():
    data = arch_jax.Ring(std=0.1, batch=8, validation=40).load()
    with pytest.raises(UsageError, match="count is 0; expected at least 1"):
        arch_jax.DDIM(steps=4)(exact(), {}, data, KEY, 0)
