"""`arch-jax certify`: of pairs of files, the right one passes, and the fault of the other is named."""

import json
from pathlib import Path

import numpy as np
import pytest

from arch_jax.cli import main
from arch_jax.errors import UsageError
from arch_jax.fields import components
from arch_jax.ops.diffusion import processes
from arch_jax.ops.diffusion.laws import Mixture
from arch_jax.sampling.diffusion.higher_order import PNDM, DPMSolver, Heun, UniPC
from arch_jax.sampling.diffusion.single_step import DDIM, DDPM
from arch_jax.study.certify import presentation
from arch_jax.study.certify.cases import CLASSES, answer
from arch_jax.study.certify.certify import certify, certify_process

FILES = Path(__file__).with_name("files")
#: File -> a part of the sentence on its fault.
FAULTS = {
    "ancestral": "the mean is",
    "cosine": "is off by 142 % from what was published",
    "fixed_clip": "the mean is",
    "guided": "the mean is",
    "idle_call": "changes nothing",
    "langevin": "the standard deviation is",
    "many_calls": "it calls the network 1000 times for 10 steps; expected at most 30",
    "reverse_sde": "the mean is",
    "strided_ddim": "the mean is",
}
#: Those that are tried in the quick tier: a table, a schedule, and a loop of one's own.
QUICK = ("cosine", "idle_call", "many_calls")
every_file = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.thorough]) for name in FAULTS]
)


def test_every_file_is_tried():
    assert {path.stem for path in FILES.glob("*.py")} == FAULTS.keys()


@every_file
def test_a_right_file_of_ones_own_is_certified(name, capsys):
    main(["certify", "--small", "--import", str(FILES / f"{name}.py"), "--json"])
    cases = json.loads(capsys.readouterr().out)
    assert cases
    assert not any(case["fault"] for case in cases)


@every_file
def test_its_faulty_twin_is_not_and_the_fault_is_named(name, tmp_path, capsys):
    text = (FILES / f"{name}.py").read_text(encoding="utf-8")
    assert text.count("FAULTY = False") == 1
    file = tmp_path / f"{name}.py"
    file.write_text(text.replace("FAULTY = False", "FAULTY = True"), encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        main(["certify", "--small", "--import", str(file)])
    assert stopped.value.code == 1
    assert FAULTS[name] in capsys.readouterr().out


@pytest.mark.parametrize(
    "sampler", [DDIM(), Heun(), DPMSolver(), DDPM(), UniPC(), PNDM()], ids=lambda one: type(one).__name__
)
@pytest.mark.thorough
def test_the_samplers_of_the_package_are_certified(sampler):
    cases = list(certify(sampler, small=True))
    assert len(cases) > 9
    assert [case for case in cases if case.fault] == []


@pytest.mark.parametrize("cls", components("process").values(), ids=lambda cls: cls.__name__)
def test_the_processes_of_the_package_are_certified(cls):
    assert [case.fault for case in certify_process(cls())] == [""]


def test_the_answer_under_guidance_of_a_gaussian_is_the_flows_and_not_the_tilt():
    """A conditional law N(1.5, 1) of an unconditional N(0, 2): variance a^(2 (1 - s)) b^(2 s) for scale s."""

    class Pair(Mixture):
        def component(self, number):
            return Mixture.gaussian([1.5], [1.0])

    law = Pair(np.zeros((1, 1)), np.full((1, 1), 2.0), np.ones(1))
    found = answer(law, processes.NoiseLevel(), 3.0, "flow", 0)
    # From a noise level of 80 the exponent reaches its limit to some 1e-3.
    np.testing.assert_allclose(found.std**2, 2.0 ** (1 - 3) * 1.0**3, rtol=2e-3)


def test_the_chain_and_the_flow_end_in_different_guided_laws():
    flow = answer(CLASSES, processes.NoiseLevel(), 3.0, "flow", 1)
    chain = answer(CLASSES, processes.NoiseLevel(), 3.0, "chain", 1)
    assert flow.mean > 1.2
    assert abs(flow.std - chain.std) > 0.01


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["ddmi"], "ddim"),
        (["ddim:eta"], "expected field=value"),
        (["ddim:eta=3"], "at most 1"),
        (["beam_search"], "draws from no denoiser"),
    ],
)
def test_names_that_are_none_are_refused_in_a_sentence(names, sentence):
    with pytest.raises(UsageError, match=sentence):
        presentation.candidates(names, {})
