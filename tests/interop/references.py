"""Models of transformers with random weights, for each family and its variants."""

import json

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
DISTILBERT = {
    "vocab_size": 67,
    "dim": 32,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
}
MODERNBERT = {
    **SMALL,
    "num_hidden_layers": 4,
    "local_attention": 6,
    "cls_token_id": 0,
    "sep_token_id": 2,
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
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
# Texts of more than 8 tokens are long.
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3, 1.7],
    "long_factor": [1.0, 1.5, 4.0, 9.0],
}
NEOX = {**SMALL, "hidden_size": 64}  # rotates 4 of 16 dimensions
SLIDING = ("sliding_attention", "full_attention")

# By name: the class of transformers and the arguments of its config.
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
    "llama_attention_bias": ("LlamaForCausalLM", {**GROUPED, "attention_bias": True}),
    "llama_mlp_bias": ("LlamaForCausalLM", {**GROUPED, "mlp_bias": True}),
    "llama_yarn": ("LlamaForCausalLM", {**GROUPED, "rope_parameters": YARN}),
    "llama_dynamic": (
        "LlamaForCausalLM",
        {**GROUPED, "max_position_embeddings": 8}
        | {"rope_parameters": {"rope_type": "dynamic", "factor": 16.0}},
    ),
    "smollm2": ("LlamaForCausalLM", {**GROUPED, "tie_word_embeddings": True}),
    "llama_classify": (
        "LlamaForSequenceClassification",
        {**GROUPED, "id2label": {0: "bad", 1: "fair", 2: "good"}},
    ),
    "qwen3_tag": ("Qwen3ForTokenClassification", {**GROUPED, "num_labels": 5}),
    "gpt2_classify": (
        "GPT2ForSequenceClassification",
        {**GPT2, "pad_token_id": 1, "num_labels": 3},
    ),
    "gpt2_tag": ("GPT2ForTokenClassification", {**GPT2, "num_labels": 5}),
    "llama_base": ("LlamaModel", GROUPED),
    "mistral": ("MistralForCausalLM", {**GROUPED, "sliding_window": 5}),
    "mistral_linear": (
        "MistralForCausalLM",
        {**GROUPED, "sliding_window": None, "rope_parameters": LINEAR},
    ),
    "qwen2": ("Qwen2ForCausalLM", GROUPED),
    "qwen2_windows": (
        "Qwen2ForCausalLM",
        {**GROUPED, "use_sliding_window": True, "sliding_window": 5}
        | {"max_window_layers": 2},
    ),
    "qwen2_yarn": (
        "Qwen2ForCausalLM",
        {**GROUPED, "rope_parameters": {**YARN, "beta_fast": 4, "truncate": False}}
        | {"num_attention_heads": 2},
    ),
    "qwen3": ("Qwen3ForCausalLM", {**GROUPED, "head_dim": 16}),
    "qwen3_bias": (
        "Qwen3ForCausalLM",
        {**GROUPED, "attention_bias": True}
        | {"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}},
    ),
    "phi3": ("Phi3ForCausalLM", {**GROUPED, "sliding_window": 5}),
    "phi3_long": (
        "Phi3ForCausalLM",
        {**SMALL, "original_max_position_embeddings": 8, "rope_parameters": LONGROPE},
    ),
    "phi3_short": (
        "Phi3ForCausalLM",
        {**GROUPED, "original_max_position_embeddings": 16, "hidden_size": 64}
        | {"tie_word_embeddings": True}
        | {"rope_parameters": {**LONGROPE, "partial_rotary_factor": 0.5}},
    ),
    "olmo2": ("Olmo2ForCausalLM", GROUPED),
    "olmo2_base": ("Olmo2Model", {**SMALL, "attention_bias": True}),
    "gemma": ("GemmaForCausalLM", {**GROUPED, "head_dim": 16}),
    "gemma2": (
        "Gemma2ForCausalLM",
        {**GROUPED, "head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 24}
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        {**GROUPED, "head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 24}
        | {"sliding_window_pattern": 2},
    ),
    "gemma3_scaled": (
        "Gemma3ForCausalLM",
        {**GROUPED, "head_dim": 16, "sliding_window": 5, "attention_bias": True}
        | {"layer_types": [SLIDING[i] for i in (1, 0, 1)]}
        | {
            "rope_parameters": dict(
                zip(SLIDING, ({"rope_type": "default"}, LINEAR), strict=True)
            )
        },
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", NEOX),
    "gpt_neox_sequential": (
        "GPTNeoXForCausalLM",
        {**NEOX, "use_parallel_residual": False, "attention_bias": False}
        | {"tie_word_embeddings": True, "rotary_pct": 1.0},
    ),
    "gpt_neox_tag": ("GPTNeoXForTokenClassification", {**NEOX, "num_labels": 5}),
    "gemma3_classify": (
        "Gemma3TextForSequenceClassification",
        {**GROUPED, "head_dim": 16, "num_labels": 3},
    ),
    "gpt_neox_base": ("GPTNeoXModel", NEOX),
    "bert_base": ("BertModel", SMALL),
    "bert": ("BertForMaskedLM", SMALL),
    "bert_pretraining": ("BertForPreTraining", {**SMALL, "hidden_act": "relu"}),
    "bert_classify": (
        "BertForSequenceClassification",
        {**SMALL, "id2label": {0: "bad", 1: "fair", 2: "good"}},
    ),
    "bert_pairs": ("BertForNextSentencePrediction", SMALL),
    "bert_tag": ("BertForTokenClassification", {**SMALL, "num_labels": 5}),
    "bert_span_qa": (
        "BertForQuestionAnswering",
        {**SMALL, "max_position_embeddings": 240},
    ),
    "roberta_classify": (
        "RobertaForSequenceClassification",
        {**SMALL, "type_vocab_size": 1, "num_labels": 3},
    ),
    "roberta_tag": (
        "RobertaForTokenClassification",
        {**SMALL, "type_vocab_size": 1, "num_labels": 5},
    ),
    "roberta_span_qa": (
        "RobertaForQuestionAnswering",
        {**SMALL, "type_vocab_size": 1, "max_position_embeddings": 240},
    ),
    "roberta_base": ("RobertaModel", {**SMALL, "type_vocab_size": 1}),
    "roberta": ("RobertaForMaskedLM", {**SMALL, "type_vocab_size": 1}),
    "xlm_roberta": ("XLMRobertaForMaskedLM", {**SMALL, "type_vocab_size": 1}),
    "xlm_roberta_classify": (
        "XLMRobertaForSequenceClassification",
        {**SMALL, "type_vocab_size": 1, "num_labels": 3},
    ),
    "camembert_base": ("CamembertModel", {**SMALL, "type_vocab_size": 1}),
    "distilbert_base": ("DistilBertModel", DISTILBERT),
    "distilbert": ("DistilBertForMaskedLM", DISTILBERT),
    "distilbert_untied": (
        "DistilBertForMaskedLM",
        {**DISTILBERT, "tie_word_embeddings": False, "sinusoidal_pos_embds": True},
    ),
    "distilbert_classify": (
        "DistilBertForSequenceClassification",
        {**DISTILBERT, "num_labels": 3},
    ),
    "distilbert_tag": (
        "DistilBertForTokenClassification",
        {**DISTILBERT, "num_labels": 5},
    ),
    "distilbert_span_qa": (
        "DistilBertForQuestionAnswering",
        {**DISTILBERT, "max_position_embeddings": 240},
    ),
    "modernbert_base": ("ModernBertModel", MODERNBERT),
    "modernbert": ("ModernBertForMaskedLM", MODERNBERT),
    "modernbert_classify": (
        "ModernBertForSequenceClassification",
        {**MODERNBERT, "num_labels": 3, "classifier_pooling": "mean"},
    ),
    "modernbert_tag": (
        "ModernBertForTokenClassification",
        {**MODERNBERT, "num_labels": 5},
    ),
    "modernbert_span_qa": (
        "ModernBertForQuestionAnswering",
        {**MODERNBERT, "max_position_embeddings": 240, "decoder_bias": False},
    ),
    "t5_encoder": ("T5EncoderModel", T5),
    "bert_untied": ("BertForMaskedLM", {**SMALL, "tie_word_embeddings": False}),
    "roberta_untied": (
        "RobertaForMaskedLM",
        {**SMALL, "type_vocab_size": 1, "tie_word_embeddings": False},
    ),
    "bart_base": ("BartModel", BART),
    "bart": ("BartForConditionalGeneration", {**BART, "scale_embedding": True}),
    "marian": (
        "MarianMTModel",
        {**BART, "scale_embedding": True, "activation_function": "swish"}
        | {"pad_token_id": 66, "decoder_start_token_id": 66},
    ),
    "mbart": (
        "MBartForConditionalGeneration",
        {**BART, "scale_embedding": True, "forced_bos_token_id": 5},
    ),
    "mbart_base": ("MBartModel", {**BART, "tie_word_embeddings": True}),
    "pegasus": (
        "PegasusForConditionalGeneration",
        {**BART, "scale_embedding": True, "activation_function": "relu"},
    ),
    "t5": ("T5ForConditionalGeneration", T5),
    "mt5": ("MT5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu"}),
    "mt5_encoder": (
        "MT5EncoderModel",
        {**T5, "feed_forward_proj": "gated-gelu"},
    ),
    "t5_v11_base": ("T5Model", {**T5, "feed_forward_proj": "gated-gelu"}),
    "t5_v11": ("T5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu"}),
    "t5_v11_new": ("T5ForConditionalGeneration", {**T5, "num_decoder_layers": 2}),
}


def build_reference(name, **changes):
    """Return a model of transformers in which no parameter is 0 or 1."""
    import torch
    import transformers

    torch.manual_seed(0)
    class_name, arguments = CASES[name]
    model_class = getattr(transformers, class_name)
    config = model_class.config_class(
        **{**arguments, **changes}, attn_implementation="eager"
    )
    model = model_class(config).eval()
    if name.startswith("t5_v11"):  # as published: not tied
        model.config.scale_decoder_outputs = False
    if name in ("t5_v11", "t5_v11_new", "mt5"):
        model.lm_head.weight = torch.nn.Parameter(0.1 * torch.randn(67, 32))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            sinusoids = name in ("marian", "pegasus") and "embed_positions" in key
            if not sinusoids:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for key, buffer in model.named_buffers():
            if key == "final_logits_bias":
                buffer.add_(torch.randn_like(buffer))
    return model


def save_reference(name, directory, **changes):
    """Save a reference model in a directory, and return it."""
    model = build_reference(name, **changes)
    model.save_pretrained(directory)
    if name in ("t5", "t5_v11"):  # as in the files of the hub: transformers 4
        path = directory / "config.json"
        config = json.loads(path.read_text())
        config["tie_word_embeddings"] = config.pop("scale_decoder_outputs")
        path.write_text(json.dumps(config))
    return model
