"""A run that an earlier version wrote is evaluated, sampled and resumed as that version did it.

`run_of_2026_11.zip` holds a tiny run of `induction` after 4 steps, with a moving average, from before the folders of
the package were divided by subject. The figures are what the version that wrote it said.
"""

import json
import zipfile
from pathlib import Path

import pytest

from arch_jax.cli import main
from arch_jax.train.workdir import read_metrics


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stored") / "induction"
    with zipfile.ZipFile(Path(__file__).with_name("run_of_2026_11.zip")) as archive:
        archive.extractall(folder)
    return folder


def test_it_is_evaluated_sampled_and_resumed(stored, capsys):
    assert main(["evaluate", str(stored), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["step"] == 4
    assert found["loss"] == pytest.approx(3.64059481901281, rel=1e-5)
    assert found["accuracy"] == pytest.approx(0.029411764705882353)

    assert main(["sample", str(stored), "--temperature", "0"]) == 0
    assert capsys.readouterr().out.startswith("5(:1@+")

    assert main(["train", "--workdir", str(stored), "--set", "steps=6"]) == 0
    losses = {line["step"]: line["loss"] for line in read_metrics(stored) if "loss" in line}
    assert losses[5] == pytest.approx(3.7609539609966856, rel=1e-5)
    assert losses[6] == pytest.approx(3.458550172693589, rel=1e-5)
    (last,) = [line for line in read_metrics(stored) if line["step"] == 6 and "validation/loss" in line]
    assert last["validation/loss"] == pytest.approx(3.640365712782916, rel=1e-5)
