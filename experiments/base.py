"""Sections that experiments share: models, optimizers, data and tokenizers."""

from ml_collections import ConfigDict


def gpt2(*, dim: int, num_layers: int, num_heads: int, max_length: int) -> ConfigDict:
    """Return GPT-2 (Radford et al. 2019), at any size."""
    return ConfigDict(
        {
            "kind": "decoder",
            "dim": dim,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "max_length": max_length,
            "position": "learned",
            "norm": "layernorm",
            "activation": "gelu_tanh",
            "gated": False,
            "use_bias": True,
            "tie_embeddings": True,
        }
    )


def llama(
    *,
    dim: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    mlp_dim: int,
    max_length: int,
) -> ConfigDict:
    """Return Llama (Touvron et al. 2023), at any size."""
    return ConfigDict(
        {
            "kind": "decoder",
            "dim": dim,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "num_kv_heads": num_kv_heads,
            "mlp_dim": mlp_dim,
            "max_length": max_length,
            "position": "rope",
            "norm": "rmsnorm",
            "activation": "silu",
            "gated": True,
            "use_bias": False,
            "tie_embeddings": False,
        }
    )


def bert(*, dim: int, num_layers: int, num_heads: int, max_length: int) -> ConfigDict:
    """Return BERT (Devlin et al. 2019), at any size."""
    return ConfigDict(
        {
            "kind": "encoder",
            "dim": dim,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "max_length": max_length,
            "num_token_types": 2,
            "pooler": True,
            "position": "learned",
            "norm": "layernorm",
            "norm_epsilon": 1e-12,
            "norm_place": "post",
            "embedding_norm": True,
            "activation": "gelu",
            "gated": False,
            "use_bias": True,
            "tie_embeddings": True,
            "head_bias": True,
        }
    )


def t5(
    *, dim: int, num_layers: int, num_heads: int, mlp_dim: int, max_length: int
) -> ConfigDict:
    """Return T5 v1.1 (Raffel et al. 2020; Shazeer 2020), at any size.

    Attention scores are not scaled; the queries have a smaller initialization.
    """
    return ConfigDict(
        {
            "kind": "encoder_decoder",
            "dim": dim,
            "num_layers": num_layers,  # of the encoder, and of the decoder
            "num_heads": num_heads,
            "mlp_dim": mlp_dim,
            "max_length": max_length,
            "position": "relative",
            "attention_scale": 1.0,
            "norm": "rmsnorm",
            "norm_epsilon": 1e-6,
            "activation": "gelu_tanh",
            "gated": True,
            "use_bias": False,
            "tie_embeddings": False,
        }
    )


def bart(*, dim: int, num_layers: int, num_heads: int, max_length: int) -> ConfigDict:
    """Return BART (Lewis et al. 2020), at any size."""
    return ConfigDict(
        {
            "kind": "encoder_decoder",
            "dim": dim,
            "num_layers": num_layers,  # of the encoder, and of the decoder
            "num_heads": num_heads,
            "max_length": max_length,
            "position": "learned",
            "position_offset": 2,
            "norm": "layernorm",
            "norm_place": "post",
            "embedding_norm": True,
            "activation": "gelu",
            "gated": False,
            "use_bias": True,
            "tie_embeddings": True,
            "head_bias": True,
        }
    )


def transformer(
    *, dim: int, num_layers: int, num_heads: int, max_length: int, dropout: float
) -> ConfigDict:
    """Return an encoder-decoder after Vaswani et al. 2017, at any size.

    Unlike theirs it is pre-norm (Xiong et al. 2020), as Pegasus is (Zhang et al. 2020),
    whose format it is exported in.
    """
    return ConfigDict(
        {
            "kind": "encoder_decoder",
            "dim": dim,
            "num_layers": num_layers,  # of the encoder, and of the decoder
            "num_heads": num_heads,
            "max_length": max_length,
            "position": "sinusoidal",
            "scale_embeddings": True,
            "norm": "layernorm",
            "activation": "relu",
            "gated": False,
            "use_bias": True,
            "tie_embeddings": True,
            "dropout": dropout,
        }
    )


def adamw(*, learning_rate: float, warmup_steps: int, **more: object) -> ConfigDict:
    """Return AdamW with warmup and cosine decay, as is usual for language models."""
    return ConfigDict(
        {
            "name": "adamw",
            "learning_rate": learning_rate,
            "schedule": "cosine",
            "warmup_steps": warmup_steps,
            "weight_decay": 0.1,
            "clip_norm": 1.0,
            **more,
        }
    )


def muon(*, learning_rate: float, warmup_steps: int, **more: object) -> ConfigDict:
    """Return Muon with warmup and linear decay: the fastest for small budgets."""
    return ConfigDict(
        {
            "name": "muon",
            "learning_rate": learning_rate,
            "schedule": "linear",
            "warmup_steps": warmup_steps,
            "final_fraction": 0.02,
            "b1": 0.95,
            "b2": 0.99,
            "weight_decay": 0.1,
            "clip_norm": 1.0,
            **more,
        }
    )


def parallel_text(
    directory: str, *, source: str, target: str, length: int
) -> ConfigDict:
    """Return the data of DIRECTORY/{train,valid,test}.{SOURCE,TARGET}, by line."""
    return ConfigDict(
        {
            "source": "parallel",
            "path": f"{directory}/train",
            "valid_path": f"{directory}/valid",
            "test_path": f"{directory}/test",
            "fields": {"source": source, "target": target},
            "length": length,
            "num_buckets": 6,
        }
    )


def subwords(vocab_size: int, *, lossless: bool = False) -> ConfigDict:
    """Return a subword tokenizer, trained on sources and targets together.

    Texts are normalized (NFKC), which makes ASCII of the full-width punctuation of
    Chinese and Japanese. With `lossless` they keep it, as every other character.
    """
    return ConfigDict(
        {
            "algorithm": "bpe",
            "vocab_size": vocab_size,
            "bos": False,
            "lossless": lossless,
            "num_training_bytes": 10_000_000,
        }
    )
