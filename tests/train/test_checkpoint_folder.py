"""Folders of other libraries in the place of a run: language models write text, others are called what they are."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

import arch_jax
from arch_jax.cli import main
from arch_jax.errors import UsageError
from arch_jax.train.checkpoint_folder import is_checkpoint, open_checkpoint

TEXT = "the cat sat on the mat and the cat sat"
END = 2


def tokenizer(folder):
    """Words with the space before them, as Llama and T5 have them; a text begins with <s>."""
    words = ["<unk>", "<s>", "</s>", *sorted({f"▁{word}" for word in [*TEXT.split(), "a"]})]
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    made.decoder = tokenizers.decoders.Metaspace()
    made.add_special_tokens(["<s>", "</s>"])
    made.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    made.save(str(folder / "tokenizer.json"))
    return made


def saved(folder, module, *inputs, **facts):
    """A checkpoint's folder, with fields of its config.json set."""
    variables = jax.jit(module.init)(jax.random.key(0), *inputs)
    arch_jax.save_pretrained(module, variables, folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))
    return module, variables


ONE = jnp.ones((1, 2), jnp.int32)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoder")
    sizes = {"vocabulary": 10, "depth": 1, "width": 8, "mixer.heads": 1, "position.length": 32}
    return folder, tokenizer(folder), *saved(folder, arch_jax.create("gpt2", **sizes), ONE, eos_token_id=[END])


@pytest.fixture(scope="module")
def encoder_decoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder_decoder")
    sizes = {"vocabulary": 10, "depth": 1, "width": 8, "mixer.heads": 1, "cross.heads": 1}
    module = arch_jax.create("t5-small", **sizes)
    facts = {"eos_token_id": END, "decoder_start_token_id": 0}
    return folder, tokenizer(folder), *saved(folder, module, ONE, ONE, **facts)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    sizes = {"vocabulary": 10, "depth": 1, "width": 8, "mixer.heads": 1, "position.length": 8}
    tokenizer(folder)
    saved(folder, arch_jax.create("bert-base", **sizes), ONE)
    return folder


def test_a_decoder_continues_a_text(decoder, capsys):
    folder, library, module, variables = decoder
    settings = {"prompt": "the cat", "length": "6", "temperature": "0.9"}
    made = open_checkpoint(folder).sample(3, 2, settings)
    ids = library.encode("the cat").ids
    assert ids[0] == 1
    new = arch_jax.generate(module, variables, [ids] * 2, 6, jax.random.key(3), temperature=0.9)
    for text, row in zip(made.values(), new.tolist()):
        row = row[: row.index(END)] if END in row else row
        assert text == library.decode([*ids, *row])
    flags = [word for name, value in settings.items() for word in (f"--{name}", value)]
    before = sorted(folder.iterdir())
    assert main(["sample", str(folder), "--seed", "3", "--count", "2", *flags]) == 0
    assert all(text in capsys.readouterr().out for text in ["the cat"])
    assert sorted(folder.iterdir()) == before  # it is not ours to write to


def test_text_ends_where_the_model_ends_it(decoder):
    found = open_checkpoint(decoder[0]).data.tokenizer
    cat, sat = (int(found.encode(word)[-1]) for word in ("cat", "sat"))
    assert found.decode([cat, sat, END, cat]) == " cat sat"
    assert found.encode("the cat</s>").tolist() == found.encode("the cat").tolist()


def test_an_encoder_decoder_writes_a_target(encoder_decoder):
    folder, library, module, variables = encoder_decoder
    opened = open_checkpoint(folder)
    source = [*library.encode("the cat sat", add_special_tokens=False).ids, END]
    tokens, _ = arch_jax.beam_search(
        module, variables, [source], round(1.25 * len(source)), start=0, stop=END, beams=4, length_penalty=0.6
    )
    row = np.asarray(tokens[0]).tolist()
    row = row[: row.index(END)] if END in row else row
    assert opened.sample(settings={"prompt": "the cat sat"}) == {"text": library.decode(row)}
    with pytest.raises(UsageError, match="writes a target for a source; expected --prompt TEXT"):
        opened.sample()


def test_what_is_no_run_and_writes_no_text(decoder, encoder, capsys, tmp_path):
    def says(*arguments):
        assert main(list(map(str, arguments))) == 2
        return capsys.readouterr().err

    assert "holds a BERT, which writes no text; expected a decoder or an encoder-decoder" in says("sample", encoder)
    for command in ("evaluate", "train --workdir"):
        said = says(*command.split(), decoder[0])
        assert "holds no run, but a checkpoint of another library (model_type='gpt2')" in said
    assert "--best is for runs" in says("sample", decoder[0], "--best")
    assert "'lenght' is not a setting of this run's sampler 'autoregressive'" in says(
        "sample", decoder[0], "--set", "sampler.lenght=3"
    )
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "gpt2"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    for config in (None, "{}"):
        if config is not None:
            (tmp_path / "config.json").write_text(config)
        assert is_checkpoint(tmp_path)
        said = says("sample", tmp_path)
        assert "is a PEFT adapter (adapter_config.json, type 'LORA') of the model 'gpt2', and no model" in said


def test_an_adapter_beside_its_model_is_not_left_out(decoder, tmp_path):
    shutil.copytree(decoder[0], tmp_path / "both")
    (tmp_path / "both" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(UsageError, match=r"a model and a PEFT adapter .*, which would be left out; expected their sum"):
        arch_jax.load_pretrained(tmp_path / "both")


def test_a_head_that_was_left_out_is_not_written(tmp_path):
    """Its class's name would have transformers draw one at random."""
    sizes = {"vocabulary": 10, "depth": 1, "width": 8, "mixer.heads": 1, "position.length": 8}
    module = arch_jax.create("bert-base", **sizes, pooler=True, classes=3, masked=False, following=False)
    saved(tmp_path, module, ONE, architectures=["BertForTokenClassification"], id2label={"0": "a", "1": "b", "2": "c"})
    from safetensors.numpy import load_file, save_file

    file = tmp_path / "model.safetensors"
    save_file({name: one for name, one in load_file(file).items() if "pooler" not in name}, file)
    left_out = ("classifier.weight", "classifier.bias")
    arch_jax.save_pretrained(*arch_jax.load_pretrained(tmp_path, ignore=left_out), tmp_path / "again")
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert written["architectures"] == ["BertModel"]
    assert "id2label" not in written


def test_a_classifier_of_tokens_is_called_so(tmp_path):
    sizes = {"vocabulary": 10, "depth": 1, "width": 8, "mixer.heads": 1, "position.length": 8}
    module = arch_jax.create("bert-base", **sizes, classes=3, masked=False, following=False)
    saved(tmp_path, module, ONE)
    from safetensors.numpy import load_file, save_file

    file = tmp_path / "model.safetensors"
    save_file({name: one for name, one in load_file(file).items() if "pooler" not in name}, file)
    with pytest.raises(
        UsageError, match=r"'classifier\.bias', which the module lacks.*ignore=\('classifier\.bias', 'classi"
    ):
        arch_jax.load_pretrained(tmp_path)


@pytest.mark.parametrize(
    "value", [None, 3, 2.5, b"x", [], {}, object(), True, ("a",)], ids=lambda value: type(value).__name__
)
def test_arguments_that_are_no_folder(value, decoder):
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)  # a person's process checks no types
    try:
        for call in (arch_jax.load_pretrained, arch_jax.load_tokenizer, arch_jax.open_run):
            with pytest.raises(UsageError, match=r"directory is .*; expected the path of a folder"):
                call(value)
        with pytest.raises(UsageError, match=r"directory is .*; expected the path of a folder"):
            arch_jax.save_pretrained(*decoder[2:], value)
        if value not in ([], {}):
            for name in ("dtype", "ignore", "width"):
                if (name, value) in (("width", 3), ("ignore", ("a",))):
                    continue
                with pytest.raises(UsageError):
                    arch_jax.load_pretrained(decoder[0], **{name: value})
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
