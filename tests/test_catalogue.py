"""The catalogue: what is stored is what the registry says; what is selected from it; and that describing is quick."""

import dataclasses

import pytest

from arch_jax import catalogue, model_pages, registry
from arch_jax.errors import UsageError


def test_the_stored_facts_are_the_registry_s():
    """The counts are compared where they are counted, in the contract suite."""
    stored = [dataclasses.asdict(row) for row in catalogue.stored()]
    for row in stored:
        del row["parameters"]
    now = [catalogue.registered_facts(entry) for entry in registry.models().values()]
    assert stored == now, "python -m arch_jax.catalogue writes it anew"


@pytest.mark.parametrize("page", ["models.md", "fidelity.md"])
def test_generated_pages_are_the_registry_s(page, tmp_path):
    model_pages.write_pages(tmp_path)
    stored = (model_pages.DOCS / page).read_text(encoding="utf-8")
    assert stored == (tmp_path / page).read_text(encoding="utf-8"), "python -m arch_jax.model_pages writes it anew"


def test_the_pages_hold_every_model_and_departure():
    models = (model_pages.DOCS / "models.md").read_text(encoding="utf-8")
    fidelity = (model_pages.DOCS / "fidelity.md").read_text(encoding="utf-8")
    for name, entry in registry.models().items():
        assert f"| `{name}` |" in models
        assert f"`{name}`" in fidelity
        assert all(sentence in fidelity and sentence.endswith(".") for sentence in entry.departures), name
        assert entry.family in model_pages.HEADINGS, entry.family


def names(*words: str, **options: str) -> list[str]:
    return [row.name for row in catalogue.list_models(*words, **options)]


def test_selection():
    everything = names()
    assert "gpt2" in everything
    assert names("GPT2") == [name for name in everything if "gpt2" in name]
    assert "mamba-130m" in names("gu", "dao")  # the authors
    assert set(names(family="ssm")) < set(everything)
    between = catalogue.list_models(parameters="1_000_000:124_439_808")
    assert {row.name for row in between} >= {"gpt2"}
    assert all(10**6 <= row.parameters <= 124_439_808 for row in between)
    assert sorted(names(parameters=":1e9") + names(parameters="1000000001:")) == sorted(everything)
    assert names(parameters="1.5B:1.6b") == [r.name for r in catalogue.stored() if 1.5e9 <= r.parameters <= 1.6e9]


@pytest.mark.parametrize(
    ("words", "options", "sentence"),
    [
        (["mambo"], {}, "unknown model 'mambo'; the nearest are 'mamba"),
        ([], {"family": "diffusoin"}, "unknown family 'diffusoin'; "),
        ([], {"parameters": "7"}, "parameters is '7'; expected a range such as 100M:1B, 1B: or :7B"),
        ([], {"parameters": ":"}, "parameters is ':'; expected a range"),
        ([], {"parameters": "9B:7B"}, "parameters is '9B:7B', which is empty; expected 7B:9B"),
        ([], {"parameters": "many:7B"}, "'many' is not a number of parameters; expected one such as 124439808"),
        (["gpt2"], {"family": "cnn"}, "no model has 'gpt2' and family 'cnn' together; leave one of them out"),
        ([], {"parameters": "1:2"}, "no model has parameters 1:2 together"),
    ],
)
def test_nothing_found_is_a_sentence(words, options, sentence):
    with pytest.raises(UsageError) as caught:
        catalogue.list_models(*words, **options)
    assert str(caught.value).startswith(sentence)


def test_a_family_without_models_is_not_offered():
    families = {row.family for row in catalogue.stored()}
    with pytest.raises(UsageError) as caught:
        catalogue.list_models(family="none such")
    offered = str(caught.value).split("families are ")[1]
    assert {name.strip("'") for name in offered.split(", ")} == families
