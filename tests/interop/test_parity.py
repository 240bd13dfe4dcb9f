"""Every family against its reference implementation in transformers."""

import json

import numpy as np
import pytest

from lmjax import sharding
from lmjax.config import MeshConfig
from lmjax.interop import hf

torch = pytest.importorskip("torch", reason="the reference runs on torch")
transformers = pytest.importorskip("transformers", reason="is the reference")

SMALL = {
    "vocab_size": 67,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
GPT2 = {"vocab_size": 67, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
BART = {
    "vocab_size": 67,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
}
T5 = {
    "vocab_size": 67,
    "d_model": 32,
    "d_kv": 12,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "decoder_start_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e3,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}

# name: (transformers' class, the settings of its config)
CASES = {
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "gpt2_untied": (
        "GPT2LMHeadModel",
        {**GPT2, "n_inner": 40, "tie_word_embeddings": False},
    ),
    "gpt2_base": ("GPT2Model", GPT2),
    "llama": ("LlamaForCausalLM", GROUPED),
    "llama_rope": (
        "LlamaForCausalLM",
        {**GROUPED, "rope_parameters": LLAMA3, "attention_bias": True}
        | {"mlp_bias": True, "head_dim": 16},
    ),
    "smollm2": ("LlamaForCausalLM", {**GROUPED, "tie_word_embeddings": True}),
    "mistral": ("MistralForCausalLM", {**GROUPED, "sliding_window": 5}),
    "mistral_linear": (
        "MistralForCausalLM",
        {**GROUPED, "sliding_window": None, "rope_parameters": LINEAR},
    ),
    "qwen2": ("Qwen2ForCausalLM", GROUPED),
    "qwen3": ("Qwen3ForCausalLM", {**GROUPED, "head_dim": 16}),
    "gemma": ("GemmaForCausalLM", {**GROUPED, "head_dim": 16}),
    "gemma2": (
        "Gemma2ForCausalLM",
        {**GROUPED, "head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 24}
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "bert_base": ("BertModel", SMALL),
    "bert": ("BertForMaskedLM", SMALL),
    "bert_pretraining": ("BertForPreTraining", {**SMALL, "hidden_act": "relu"}),
    "roberta_base": ("RobertaModel", {**SMALL, "type_vocab_size": 1}),
    "roberta": ("RobertaForMaskedLM", {**SMALL, "type_vocab_size": 1}),
    "bart_base": ("BartModel", BART),
    "bart": ("BartForConditionalGeneration", {**BART, "scale_embedding": True}),
    "marian": (
        "MarianMTModel",
        {**BART, "scale_embedding": True, "activation_function": "swish"}
        | {"pad_token_id": 66, "decoder_start_token_id": 66},
    ),
    "t5": ("T5ForConditionalGeneration", T5),
    "t5_v11": ("T5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu"}),
    "t5_v11_new": ("T5ForConditionalGeneration", {**T5, "num_decoder_layers": 2}),
}
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def one_device():
    import jax

    return sharding.make_mesh(MeshConfig(), devices=jax.devices()[:1])


def reference(name):
    """Return a model of transformers with weights all of which matter."""
    torch.manual_seed(0)
    cls, settings = CASES[name]
    kind = getattr(transformers, cls)
    model = kind(kind.config_class(**settings, attn_implementation="eager")).eval()
    if name.startswith("t5_v11"):  # the published ones are not tied, and say so
        model.lm_head.weight = torch.nn.Parameter(0.1 * torch.randn(67, 32))
        model.config.scale_decoder_outputs = False
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if name != "marian" or "embed_positions" not in key:  # sinusoids
                parameter.add_(0.1 * torch.randn_like(parameter))
        for key, buffer in model.named_buffers():
            if key == "final_logits_bias":
                buffer.add_(torch.randn_like(buffer))
    return model


def write(name, model, directory):
    model.save_pretrained(directory)
    if name in ("t5", "t5_v11"):  # as the hub's files have it, unlike transformers 5
        path = directory / "config.json"
        config = json.loads(path.read_text())
        config["tie_word_embeddings"] = config.pop("scale_decoder_outputs")
        path.write_text(json.dumps(config))


def read(directory):
    """Return the model of a workdir, and its parameters."""
    return hf._restore(directory, None)


def batch_of(model, rng):
    """Return a batch for us, and the same for transformers."""
    import jax

    tokens = rng.integers(3, 66, (2, 14), dtype=np.int32)
    places = np.broadcast_to(np.arange(14, dtype=np.int32), tokens.shape)
    ours = {"tokens": tokens, "segments": np.ones_like(tokens), "positions": places}
    theirs = {"input_ids": torch.tensor(tokens, dtype=torch.long)}
    if model.config.kind == "encoder":
        lengths = np.array([14, 9])
        ours["segments"] = (places < lengths[:, None]).astype(np.int32)
        types = (places > 4).astype(np.int32) * (model.config.num_token_types - 1)
        ours["token_types"] = types
        theirs["token_type_ids"] = torch.tensor(types, dtype=torch.long)
        theirs["attention_mask"] = torch.tensor(ours["segments"])
    if model.config.kind == "encoder_decoder":
        source = rng.integers(3, 66, (2, 17), dtype=np.int32)
        spots = np.broadcast_to(np.arange(17, dtype=np.int32), source.shape)
        segments = (spots < np.array([[17], [11]])).astype(np.int32)
        ours |= {"source": source, "source_segments": segments}
        ours |= {"source_positions": spots}
        theirs = {
            "input_ids": torch.tensor(source, dtype=torch.long),
            "attention_mask": torch.tensor(segments),
            "decoder_input_ids": torch.tensor(tokens, dtype=torch.long),
        }
    return jax.tree.map(np.asarray, ours), theirs


def outputs(name, model, params, ours):
    """Return what is compared, by the name of transformers' output."""
    import jax

    hidden = jax.jit(model.hidden)(params, ours)
    if CASES[name][0] in ("GPT2Model", "BertModel", "RobertaModel", "BartModel"):
        found = {"last_hidden_state": hidden}
        if getattr(model.config, "pooler", False):
            found["pooler_output"] = jax.jit(model.pooled)(params, hidden)
        return found
    if name == "bert_pretraining":
        return {
            "prediction_logits": jax.jit(model.token_logits)(params, hidden),
            "seq_relationship_logits": jax.jit(model.pair_logits)(params, hidden),
        }
    return {"logits": jax.jit(model.token_logits)(params, hidden)}


def largest_difference(found, expected, segments):
    """Return the largest difference where there is text."""
    differences = []
    for key, value in found.items():
        difference = np.abs(np.asarray(value) - expected[key].detach().numpy())
        if difference.ndim == 3:
            difference = difference[np.asarray(segments) > 0]
        differences.append(float(difference.max()))
    return max(differences)


@pytest.mark.parametrize("name", CASES)
def test_parity(name, tmp_path, one_device):
    model = reference(name)
    write(name, model, tmp_path / "theirs")
    hf.import_hf(tmp_path / "theirs", tmp_path / "ours", one_device)
    ours, params = read(tmp_path / "ours")
    batch, inputs = batch_of(ours, np.random.default_rng(0))
    with torch.no_grad():
        expected = model(**inputs)
    found = outputs(name, ours, params, batch)
    difference = largest_difference(found, expected, batch["segments"])
    print(f"{name}: {difference:.1e}")
    assert difference < TOLERANCE

    hf.export_hf(tmp_path / "ours", tmp_path / "back")
    kind = type(model)
    if name in ("gpt2_base", "bart_base"):
        kind = transformers.AutoModel
    again, info = kind.from_pretrained(
        tmp_path / "back", attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["mismatched_keys"]
    with torch.no_grad():
        returned = again.eval()(**inputs)
    for key in found:
        torch.testing.assert_close(returned[key], expected[key], rtol=0, atol=1e-6)

    hf.import_hf(tmp_path / "back", tmp_path / "twice", one_device)
    model_again, params_again = read(tmp_path / "twice")
    assert model_again.config == ours.config
    import jax

    for a, b in zip(
        jax.tree.leaves(params), jax.tree.leaves(params_again), strict=True
    ):
        np.testing.assert_array_equal(a, b)
