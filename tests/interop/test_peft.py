"""Adapters in PEFT's files, and merged into transformers' files."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from references import save_reference

import lmjax
from lmjax import models
from lmjax.config.experiment import parse
from lmjax.errors import UserError
from lmjax.interop import hf
from lmjax.interop.peft import export_adapters
from lmjax.run import workdir
from lmjax.run.checkpoint import save_params
from lmjax.training import init_from

torch = pytest.importorskip("torch", reason="the reference runs on torch")
transformers = pytest.importorskip("transformers", reason="is the reference")
peft = pytest.importorskip("peft", reason="reads the adapters")


TUNED = {
    "bert_classify": {"kind": "classify", "labels": ("bad", "fair", "good")},
    "bert_tag": {"kind": "tag", "labels": tuple(f"LABEL_{i}" for i in range(5))},
    "bert_span_qa": {"kind": "span_qa"},
    "bert": {"kind": "masked_lm"},
}


def create_adapters(directory, name, targets, trainable="()", **changes):
    """Return a reference model, and a workdir of it with random adapters.

    All that `trainable` names is another than in the reference, too.
    """
    reference = save_reference(name, directory / "hf", **changes)
    hf.import_hf(directory / "hf", directory / "base")
    overrides = ["model.lora.rank=3", "model.lora.alpha=5", "data.source=none"]
    length = 240 if name == "bert_span_qa" else 16
    config = parse(
        {"init_from": str(directory / "base"), "task": TUNED.get(name, {})},
        [
            *overrides,
            f"data.length={length}",
            f"model.lora.targets={targets}",
            f"optim.trainable={trainable}",
        ],
        defaults=init_from.sections,
    )
    model = models.build(config.model, platform="cpu")
    _, params = hf.restore_model(directory / "base", None)
    rng = np.random.default_rng(0)

    def join(new, old, path=""):
        if not isinstance(new, dict):
            changed = config.optim.is_trainable(path)
            noise = rng.standard_normal(new.shape, np.float32) * changed
            return 0.2 * noise if old is None else old + 0.2 * noise
        old = {} if old is None else old
        return {
            name: join(leaf, old.get(name), f"{path}.{name}".strip("."))
            for name, leaf in new.items()
        }

    adapted = directory / "adapted"
    adapted.mkdir()
    workdir.write_config(adapted, config)
    (adapted / "tokenizer").symlink_to(directory / "base" / "tokenizer")
    save_params(adapted, join(model.shapes, params))
    return reference, adapted


def compute_outputs(directory, tokens, source):
    """Return what a task predicts from: its label head's logits, or those of tokens."""
    lm = lmjax.load(directory)
    if "classifier" not in lm.params:
        return np.asarray(lm.logits(tokens, **source))
    hidden = lm.hidden(tokens)
    if lm.config.task.kind == "classify":
        hidden = lm.model.summary(lm.params, hidden, jnp.ones_like(tokens))
    return np.asarray(lm.model.label_logits(lm.params, hidden))


def compute_references(model, tokens, source):
    """Return the same of a model of transformers."""
    inputs = {"input_ids": torch.tensor(tokens)}
    if source:
        inputs = {
            "input_ids": torch.tensor(source["source"]),
            "decoder_input_ids": inputs["input_ids"],
        }
    with torch.no_grad():
        out = model.eval()(**inputs)
    if "start_logits" in out:
        return torch.stack([out.start_logits, out.end_logits], -1).numpy()
    return out.logits.numpy()


QUERIES = "('*attention.query', '*attention.value')"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "targets", "trainable", "task_type"),
    [
        ("llama", "('*attention.*', 'mlp.*')", "()", "CAUSAL_LM"),
        ("llama", "('mlp.down',)", "('*norm*', 'embed.*', 'head.*')", "CAUSAL_LM"),
        ("smollm2", QUERIES, "('embed.*',)", "CAUSAL_LM"),  # tied
        ("qwen2", QUERIES, "('*.query.bias',)", "CAUSAL_LM"),  # of adapted matrices
        ("gpt2", "('attention.*', 'mlp.*')", "()", "CAUSAL_LM"),
        ("gpt2", "('attention.query',)", "('*norm*', '*.positions.*')", "CAUSAL_LM"),
        ("phi3", "('attention.*', 'mlp.*')", "()", "CAUSAL_LM"),  # unequal parts
        ("gpt_neox", "('attention.*', 'mlp.up')", "()", "CAUSAL_LM"),  # by head
        ("gpt_neox", QUERIES, "('head.*',)", "CAUSAL_LM"),
        ("bart", QUERIES, "('decoder.*norm*', 'embed.*')", "SEQ_2_SEQ_LM"),
        ("t5", QUERIES, "('embed.*', '*.relative*')", "SEQ_2_SEQ_LM"),
        ("bert_classify", "('mlp.down',)", "('pooler.*',)", "SEQ_CLS"),
        ("bert_tag", QUERIES, "('encoder.blocks.mlp_norm.*',)", "TOKEN_CLS"),
        ("bert_span_qa", QUERIES, "()", "QUESTION_ANS"),
        ("bert", QUERIES, "('embed.*', 'head.*')", None),
    ],
)
def test_peft_computes_the_same(tmp_path, name, targets, trainable, task_type):
    reference, adapted = create_adapters(tmp_path, name, targets, trainable)
    rng = np.random.default_rng(1)
    tokens = rng.integers(3, 66, (2, 12))
    source = (
        {"source": rng.integers(3, 66, (2, 9))} if "SEQ_2" in str(task_type) else {}
    )
    expected = compute_outputs(adapted, tokens, source)
    before = compute_references(reference, tokens, source)
    assert np.abs(expected - before).max() > 0.01
    export_adapters(adapted, tmp_path / "adapters")
    files = {file.name for file in (tmp_path / "adapters").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors"}
    settings = json.loads((tmp_path / "adapters/adapter_config.json").read_text())
    assert settings["task_type"] == task_type
    assert settings["base_model_name_or_path"] == str(tmp_path / "hf")
    model = peft.PeftModel.from_pretrained(reference, tmp_path / "adapters")
    found = compute_references(model, tokens, source)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "bert_classify"])
def test_merged_adapters_compute_the_same(tmp_path, name):
    reference, adapted = create_adapters(tmp_path, name, QUERIES, "('*norm*',)")
    tokens = np.random.default_rng(1).integers(3, 66, (2, 12))
    hf.export_hf(adapted, tmp_path / "merged")
    merged = type(reference).from_pretrained(tmp_path / "merged")
    found = compute_references(merged, tokens, {})
    expected = compute_outputs(adapted, tokens, {})
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_adapters_that_peft_cannot_express(tmp_path):
    _, adapted = create_adapters(tmp_path, "bart", QUERIES, "('head.bias',)")
    with pytest.raises(UserError, match=r"optim\.trainable: head\.bias .*logits_bias"):
        export_adapters(adapted, tmp_path / "adapters")
    with pytest.raises(UserError, match=r"base: .*lora\.rank = 0"):
        export_adapters(tmp_path / "base", tmp_path / "adapters")
    assert not (tmp_path / "adapters").exists()
