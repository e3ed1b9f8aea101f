"""BERT, T5, Marian and Mistral against transformers: equal outputs for random tiny weights, there and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.ops.attention.positions import relative_buckets
from arch_jax.sampling import beam_search, generate

torch = pytest.importorskip("torch", reason="parity needs torch: pip install arch-jax[parity]")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install arch-jax[parity]")

BERT = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
T5 = {"vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
MARIAN = {
    "vocab_size": 61, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "pad_token_id": 60,
    "decoder_start_token_id": 60, "max_position_embeddings": 64,
}  # fmt: skip
MISTRAL = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip

CASES = {
    "bert, pre-training": ("BertForPreTraining", BERT),
    "bert, masked tokens only, another epsilon and activation": (
        "BertForMaskedLM",
        BERT | {"layer_norm_eps": 1e-3, "hidden_act": "gelu_new", "type_vocab_size": 3, "max_position_embeddings": 17},
    ),
    "bert, classifier of 5": ("BertForSequenceClassification", BERT | {"num_labels": 5, "num_attention_heads": 1}),
    "bert, next sentence": ("BertForNextSentencePrediction", BERT | {"num_hidden_layers": 1, "hidden_act": "relu"}),
    "bert, no head": ("BertModel", BERT),
    "t5": ("T5ForConditionalGeneration", T5),
    "t5 v1.1": ("T5ForConditionalGeneration", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "t5, one decoder layer, few buckets, odd heads": (
        "T5ForConditionalGeneration",
        T5 | {
            "num_decoder_layers": 1, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 6,
            "d_kv": 5, "num_heads": 3, "feed_forward_proj": "gated-silu", "layer_norm_epsilon": 1e-3,
        },
    ),
    "marian": ("MarianMTModel", MARIAN),
    "marian, scaled, swish, three decoder layers": (
        "MarianMTModel",
        MARIAN | {"scale_embedding": True, "activation_function": "swish", "decoder_layers": 3},
    ),
    "marian, embeddings apart": ("MarianMTModel", MARIAN | {"share_encoder_decoder_embeddings": False}),
    "marian, a decoder with sizes of its own": (
        "MarianMTModel", MARIAN | {"decoder_ffn_dim": 20, "decoder_attention_heads": 2},
    ),
    "marian, two vocabularies": (
        "MarianMTModel",
        MARIAN | {"vocab_size": 75, "decoder_vocab_size": 61, "share_encoder_decoder_embeddings": False},
    ),
    "bert, causal": ("BertLMHeadModel", BERT | {"is_decoder": True}),
    "ministral, every second layer with a window of 5": (
        "MinistralForCausalLM",
        MISTRAL | {
            "num_hidden_layers": 4, "head_dim": 8, "sliding_window": 5,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
        },
    ),
    "ministral, no turn but all layers": (
        "MinistralForCausalLM",
        MISTRAL | {
            "num_hidden_layers": 3, "head_dim": 8, "sliding_window": 4,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
    ),
    "mistral, window of 5": ("MistralForCausalLM", MISTRAL | {"sliding_window": 5}),
    "mistral, no window, one kv head, heads of 6": (
        "MistralForCausalLM",
        MISTRAL | {"sliding_window": None, "num_key_value_heads": 1, "head_dim": 6, "tie_word_embeddings": True},
    ),
    "llama, yarn": ("LlamaForCausalLM", MISTRAL | {"rope_parameters": YARN}),
    "llama, yarn with its own magnitude and borders": (
        "LlamaForCausalLM",
        MISTRAL | {"rope_parameters": YARN | {
            "attention_factor": 1.3, "beta_fast": 8.0, "beta_slow": 2.0, "truncate": False,
        }},
    ),
    "gpt2, scores not scaled": (
        "GPT2LMHeadModel",
        {"vocab_size": 61, "n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 24, "scale_attn_weights": False},
    ),
}  # fmt: skip


def reference(case, seed=0):
    """A tiny model of theirs with every parameter away from its initial value: biases of 0 would hide mistakes."""
    name, settings = CASES[case]
    torch.manual_seed(seed)
    cls = getattr(transformers, name)
    model = cls(cls.config_class(**settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_positions" in name:
                continue  # fixed sines and cosines
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_(0, 0.1, generator=generator)
    return model.eval()


def batch():
    rng = np.random.default_rng(0)
    source, target = rng.integers(1, 59, (3, 13)), rng.integers(1, 59, (3, 9))
    mask = np.arange(13) < np.array([[13], [7], [10]])
    return source, target, mask


def their_outputs(model):
    """Name -> array, and where each is to be looked at."""
    source, target, mask = batch()
    t = torch.from_numpy
    with torch.no_grad():
        match model.config.model_type:
            case "bert":
                types = (np.arange(13) > 5).astype(int) * np.ones((3, 1), int)
                out = model(t(source), attention_mask=t(mask.astype(int)), token_type_ids=t(types))
                names = {
                    "logits": "logits", "prediction_logits": "logits", "seq_relationship_logits": "next",
                    "last_hidden_state": "hidden", "pooler_output": "pooled",
                }  # fmt: skip
                names["logits"] = {
                    "BertForSequenceClassification": "classes", "BertForNextSentencePrediction": "next",
                }.get(type(model).__name__, "logits")  # fmt: skip
                found = {ours: out[theirs].numpy() for theirs, ours in names.items() if theirs in out}
                return {n: x[mask] if x.shape[:2] == mask.shape else x for n, x in found.items()}
            case "t5" | "marian":
                out = model(t(source), attention_mask=t(mask.astype(int)), decoder_input_ids=t(target))
                return {"logits": out.logits.numpy()}
            case _:
                return {"logits": model(t(source)).logits.numpy()}


def our_outputs(module, variables):
    source, target, mask = batch()
    apply = jax.jit(module.apply)
    match type(module).__name__:
        case "BERT":
            types = np.broadcast_to((np.arange(13) > 5).astype(np.int32), (3, 13))
            found = apply(variables, source.astype(np.int32), types, mask)
            return {n: np.asarray(x)[mask] if x.shape[:2] == mask.shape else np.asarray(x) for n, x in found.items()}
        case "EncoderDecoder":
            return {"logits": apply(variables, source.astype(np.int32), target.astype(np.int32), mask)}
        case _:
            return {"logits": apply(variables, source.astype(np.int32))}


@pytest.mark.parametrize("case", CASES)
def test_outputs_there_and_back(case, tmp_path):
    theirs = reference(case)
    theirs.save_pretrained(tmp_path / "theirs")
    module, variables = arch_jax.load_pretrained(tmp_path / "theirs")
    expected, found = their_outputs(theirs), our_outputs(module, variables)
    assert expected
    for name, array in expected.items():
        largest = np.abs(array).max()
        assert largest > 0.3
        np.testing.assert_allclose(found[name], array, atol=1e-5 * max(1, largest), err_msg=name)

    apart, layers = module.unrolled(variables) if hasattr(module, "unrolled") else (module, variables)
    arch_jax.save_pretrained(apart, layers, tmp_path / "ours")
    again, notes = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not notes["missing_keys"]
    assert not notes["unexpected_keys"]
    before, after = theirs.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    fixed = "embed_positions" if theirs.config.model_type == "marian" else "none"  # sines: as many as one likes
    assert not [name for name in before if fixed not in name and not torch.equal(before[name], after[name])]
    for name, array in their_outputs(again.eval()).items():
        np.testing.assert_array_equal(array, expected[name])


def test_an_output_layer_of_its_own(tmp_path):
    """T5 v1.1's real checkpoints have one, and transformers 5 decides by the tensors whether it is tied."""
    theirs = reference("t5 v1.1")
    theirs.lm_head.weight = torch.nn.Parameter(torch.randn(61, 32) / 6)
    theirs.save_pretrained(tmp_path)
    module, variables = arch_jax.load_pretrained(tmp_path, **{"tied": False})
    assert not module.tied
    np.testing.assert_allclose(our_outputs(module, variables)["logits"], their_outputs(theirs)["logits"], atol=1e-5)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "longest"), [(32, 128), (8, 6), (64, 300)])
def test_buckets(bidirectional, buckets, longest):
    distance = np.arange(-700, 700)
    theirs = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket(
        torch.from_numpy(-distance), bidirectional, buckets, longest
    )
    ours = relative_buckets(jnp.asarray(distance), buckets, longest, bidirectional)
    np.testing.assert_array_equal(ours, theirs.numpy())


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("case", ["t5", "marian, scaled, swish, three decoder layers", "t5 v1.1"])
def test_beam_search(case, beams, tmp_path):
    theirs = reference(case)
    # A tied output layer of random weights repeats the last token for ever.
    theirs.lm_head.weight = torch.nn.Parameter(torch.randn(61, 32) / 3)
    theirs.config.tie_word_embeddings = False
    theirs.save_pretrained(tmp_path)
    module, variables = arch_jax.load_pretrained(tmp_path)
    source, _, mask = batch()
    start = getattr(theirs.config, "decoder_start_token_id", None) or 0

    def generated(stop):
        with torch.no_grad():
            return theirs.generate(
                torch.from_numpy(source), attention_mask=torch.from_numpy(mask.astype(int)), num_beams=beams,
                max_new_tokens=12, do_sample=False, length_penalty=0.0, early_stopping="never" if beams > 1 else False,
                decoder_start_token_id=start, eos_token_id=stop, pad_token_id=stop or 0, forced_eos_token_id=None,
            ).numpy()[:, 1:]  # fmt: skip

    written = generated(None)
    assert len(np.unique(written)) > 3
    stop = int(written[0, 5])  # a token that comes up
    expected = generated(stop)
    expected = np.pad(expected, [(0, 0), (0, 12 - expected.shape[1])], constant_values=stop)
    tokens, _ = beam_search(
        module, variables, source.astype(np.int32), 12, source_mask=mask, start=start, stop=stop, beams=beams
    )
    np.testing.assert_array_equal(tokens, expected)


def test_greedy_decoding_beyond_the_window(tmp_path):
    """The ring holds five tokens; twenty are written."""
    theirs = reference("mistral, window of 5")
    theirs.save_pretrained(tmp_path)
    module, variables = arch_jax.load_pretrained(tmp_path)
    prompt = np.random.default_rng(2).integers(0, 61, (2, 9))
    with torch.no_grad():
        expected = theirs.generate(
            torch.from_numpy(prompt), max_new_tokens=20, min_new_tokens=20, do_sample=False, pad_token_id=0,
            eos_token_id=None,
        ).numpy()[:, 9:]  # fmt: skip
    tokens = generate(module, variables, prompt.astype(np.int32), 20, temperature=0)
    np.testing.assert_array_equal(tokens, expected)
    assert module.initial_state(2, 28).layers[0].entries[0].shape[1] == 5
