"""The table of machines: that it is whole, that its slices are what their names say, and what an unknown name meets."""

import math

import pytest

from arch_jax.errors import UsageError
from arch_jax.plan.chips import TARGETS, target


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_is_whole(name):
    one = target(name)
    chip = one.chip
    assert one.name == name
    assert one.chips >= 1
    assert 1e12 < chip.float32 <= chip.bfloat16 <= 1e15
    assert chip.float16 >= chip.bfloat16
    assert 0 < chip.usable < chip.memory
    assert 1e11 < chip.bandwidth < 1e13
    if one.compiles:
        assert math.prod(one.shape) == one.chips
        assert one.accelerator.startswith(chip.accelerator)


def test_slices_are_counted_as_their_names_count_them():
    """v4 and v5p by TensorCores, of which a chip has two; v5e and v6e by chips."""
    chips = {
        name: target(name).chips for name in ("v5e-8", "v6e-8", "v4-8", "v5p-8", "v4-16", "kaggle-v5e-8", "h100x8")
    }
    assert chips == {"v5e-8": 8, "v6e-8": 8, "v4-8": 4, "v5p-8": 4, "v4-16": 8, "kaggle-v5e-8": 8, "h100x8": 8}
    assert target("v5e-8").accelerator == "v5litepod-8"
    assert target("v4-8").accelerator == "v4-8"


def test_what_the_compiler_is_told():
    assert target("v5e-1").topology == {"topology_name": "v5e:1x1", "chips_per_host_bounds": (1, 1, 1)}
    assert target("v4-8").topology == {"topology_name": "v4:2x2x1", "chip_config_name": "megacore"}
    with pytest.raises(UsageError, match="'t4'"):
        _ = target("t4").topology


def test_peaks_by_dtype():
    """A TPU takes float32 products in bfloat16; a GPU has TF32 for them; T4 has float16 and no bfloat16."""
    assert target("v5e-1").chip.peak("float32") == target("v5e-1").chip.peak("bfloat16") == 197e12
    assert target("a100-40").chip.peak("float32") == 156e12
    assert target("t4").chip.peak("bfloat16") == target("t4").chip.peak("float32") == 8.1e12
    assert target("t4").chip.peak("float16") == 65e12


def test_lent_machines_say_for_how_long():
    hours = {name: one.hours for name, one in TARGETS.items() if one.hours is not None}
    assert hours
    assert all(name.split("-")[0] in ("colab", "kaggle") for name in hours)
    assert hours["kaggle-v5e-8"] == 9
    assert all(name in hours for name in TARGETS if name.startswith(("colab", "kaggle")))


@pytest.mark.parametrize(("name", "near"), [("v5e-9", "'v5e-8'"), ("colab-v5e", "'colab-v5e-1'"), ("", "valid are")])
def test_an_unknown_target_is_one_sentence(name, near):
    with pytest.raises(UsageError, match=near) as caught:
        target(name)
    assert "\n" not in str(caught.value)
