"""The kind of each parameter of each model, against a list written by hand; a name that it lacks fails until then."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from arch_jax import fields, registry
from arch_jax.errors import UsageError
from arch_jax.experiment import import_components
from arch_jax.layers import parameter_kinds
from arch_jax.layers.parameter_kinds import parameter_kind
from arch_jax.objectives import objective
from arch_jax.optimizer import Optimizer, kind_of, muon_dimensions
from tests.contract.test_mixers import BATCH, CASES, TIME, WIDTH

import_components()
ARCHITECTURES = {
    entry.architecture: entry
    for entry in reversed(registry.models().values())
    if not entry.build.__module__.startswith("tests")
}

#: Last name of the path -> kind. Where a name alone says too little, with the one before it.
KINDS = {
    "matrix": """
        kernel hidden_0_kernel hidden_1_kernel hidden_2_kernel output_kernel look/key look/query key_mixture
        value_mixture cell_recurrent forget_recurrent input_recurrent output_recurrent
    """,
    "table": "embedding position_embedding key_embedding value_embedding codebook/codes",
    "other": """
        bias scale A_imag A_log B C D P a_log bias_cell bias_f bias_forget bias_g bias_i bias_input bias_n bias_o
        bias_output bias_r bias_u bias_z bonus class_token decay decay_bias delta_bias forget_bias frequencies
        frequency hidden_0_bias hidden_1_bias hidden_2_bias input_bias key_rate log_A_real log_step log_variance
        logits_bias mask_token masked_bias mix_a mix_g mix_k mix_key mix_r mix_receptance mix_v mix_value mix_w
        norm_bias norm_scale of_coverage peephole_f peephole_i peephole_o rate_bias removal skip v value_bias
    """,
}
EXPECTED = {name: kind for kind, names in KINDS.items() for name in names.split()}


def judged(parameters) -> dict[str, tuple[str, str | None]]:
    """Path -> (what it is taken for, what the list says)."""
    found = {}
    for place, leaf in jax.tree_util.tree_flatten_with_path(parameters)[0]:
        path = jax.tree_util.keystr(place, simple=True, separator="/")
        last = path.split("/")
        expected = EXPECTED.get("/".join(last[-2:]), EXPECTED.get(last[-1]))
        found[path] = (kind_of(place, leaf), expected)
    return found


@pytest.mark.thorough
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_models(name):
    entry = ARCHITECTURES[name]
    module = entry.tiny()
    task = objective(entry.objective).with_model(module)
    batch = jax.eval_shape(lambda: entry.inputs.resized(module).batch(module, 4, jax.random.key(0)))
    parameters = jax.eval_shape(lambda batch: task.init(jax.random.key(0), batch), batch)["params"]
    found = judged(parameters)
    assert {path: pair for path, pair in found.items() if pair[0] != pair[1]} == {}
    decays = jax.tree.leaves(Optimizer(weight_decay=0.1).decays(parameters))
    assert decays == [kind in ("matrix", "table") for kind, _ in found.values()]
    assert any(decays)


def test_mixers():
    """Every setting of the mixers' contract."""
    x = jnp.ones((BATCH, TIME, WIDTH))
    for name, change in CASES:
        mixer = fields.override(fields.components("mixer")[name](), change)
        found = judged(jax.eval_shape(lambda m=mixer: m.init(jax.random.key(0), x))["params"])
        assert {path: pair for path, pair in found.items() if pair[0] != pair[1]} == {}, (name, change)


def test_scanned_layers_have_an_axis_more():
    assert parameter_kind(("stack", "layers", "block_0", "w"), 2) == "other"
    assert parameter_kind(("stack", "layer_0", "w"), 2) == parameter_kind(("stack", "layers", "w"), 3) == "matrix"
    assert parameter_kind(("layers",), 2) == "matrix"  # its own name is no part of its path


def test_kinds_are_declared_once():
    with pytest.raises(UsageError, match="the parameter 'A_log' is declared as 'other' already, and now as 'matrix'"):
        parameter_kinds.declare("matrix", "A_log")
    parameter_kinds.declare("other", "A_log")
    for wrong in ("otter", ""):
        with pytest.raises(UsageError, match="unknown kind of parameter"):
            parameter_kinds.declare(wrong, "test_parameter_kinds")
    assert parameter_kind(("test_parameter_kinds",), 2) == "matrix"


def test_what_is_imported_changes_no_kind():
    """A name of the package's own is the same in a process that has not imported the layer that makes it."""
    code = (
        "import jax.numpy as jnp; from arch_jax.optimizer import Optimizer; tree = {'A_log': jnp.ones((3, 3))}; "
        "before = Optimizer().decays(tree); import arch_jax; arch_jax.Mamba; print(before == Optimizer().decays(tree))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"


def test_what_decays_and_what_muon_turns():
    tree = {
        "stack": {
            "layer_0": {"mixer": {"kernel": jnp.ones((2, 2)), "recurrent": jnp.ones((3, 2, 2)), "skip": jnp.ones(2)}}
        },
        "layer_1": {"kernel": jnp.ones((2, 2))},
        "encoder": {"layers": {"kernel": jnp.ones((4, 2, 2)), "scale": jnp.ones((4, 2))}},
        "look": {"key": jnp.ones((2, 2)), "bias": jnp.ones(2)},
        "words": {"embedding": jnp.ones((5, 2))},
    }
    kept = lambda decay: sorted(
        jax.tree_util.keystr(path, simple=True, separator="/").rsplit("/", 1)[-1]
        for path, yes in jax.tree_util.tree_flatten_with_path(Optimizer(decay=decay).decays(tree))[0]
        if yes
    )
    assert kept("matrices") == ["embedding", "kernel", "kernel", "kernel", "key", "recurrent"]
    assert kept("kernels") == ["kernel", "kernel", "kernel", "key", "recurrent"]
    assert kept("all") == ["bias", "embedding", "kernel", "kernel", "kernel", "key", "recurrent", "scale", "skip"]
    turned = muon_dimensions(tree)
    hidden = [turned["stack"]["layer_0"]["mixer"]["kernel"], turned["stack"]["layer_0"]["mixer"]["recurrent"],
              turned["layer_1"]["kernel"], turned["encoder"]["layers"]["kernel"]]  # fmt: skip
    assert None not in hidden
    others = (turned["words"]["embedding"], turned["look"]["key"], turned["encoder"]["layers"]["scale"])
    assert others == (None, None, None)
