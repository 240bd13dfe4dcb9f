"""Adapters in PEFT's files, and merged into transformers' files."""

import json

import jax
import numpy as np
import pytest
from references import save_reference

import lmjax
from lmjax import models
from lmjax.config.experiment import parse
from lmjax.errors import UserError
from lmjax.interop import hf
from lmjax.interop.peft import export_adapters
from lmjax.nn import lora
from lmjax.run import workdir
from lmjax.run.checkpoint import save_params
from lmjax.training import init_from

torch = pytest.importorskip("torch", reason="the reference runs on torch")
transformers = pytest.importorskip("transformers", reason="is the reference")
peft = pytest.importorskip("peft", reason="reads the adapters")


def create_adapters(directory, name, targets):
    """Return a reference model, and a workdir of it with random adapters."""
    reference = save_reference(name, directory / "hf")
    hf.import_hf(directory / "hf", directory / "base")
    overrides = ["model.lora.rank=3", "model.lora.alpha=5", "data.source=none"]
    config = parse(
        {"init_from": str(directory / "base")},
        [*overrides, "data.length=16", f"model.lora.targets={targets}"],
        defaults=init_from.sections,
    )
    model = models.build(config.model, platform="cpu")
    _, params = hf.restore_model(directory / "base", None)
    rng = np.random.default_rng(0)
    fresh = model.init(jax.random.key(0))

    def join(new, old):
        if not isinstance(new, dict):
            return old
        return {
            name: rng.standard_normal(leaf.shape, np.float32)
            if name in lora.NAMES
            else join(leaf, old[name])
            for name, leaf in new.items()
        }

    adapted = directory / "adapted"
    adapted.mkdir()
    workdir.write_config(adapted, config)
    (adapted / "tokenizer").symlink_to(directory / "base" / "tokenizer")
    save_params(adapted, join(fresh, params))
    return reference, adapted


def compute_logits(lm, tokens, source):
    return np.asarray(lm.logits(tokens, **source))


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("llama", "('*attention.*', 'mlp.*')"),
        ("gpt2", "('attention.out', 'mlp.*')"),
        ("bart", "('*attention.query', '*attention.out')"),
    ],
)
def test_peft_computes_the_same(tmp_path, name, targets):
    reference, adapted = create_adapters(tmp_path, name, targets)
    rng = np.random.default_rng(1)
    tokens = rng.integers(3, 66, (2, 12))
    source = {"source": rng.integers(3, 66, (2, 9))} if name == "bart" else {}
    inputs = {"input_ids": torch.tensor(tokens)}
    if source:
        inputs = {
            "input_ids": torch.tensor(source["source"]),
            "decoder_input_ids": torch.tensor(tokens),
        }
    expected = compute_logits(lmjax.load(adapted), tokens, source)
    before = compute_logits(lmjax.load(tmp_path / "base"), tokens, source)
    assert np.abs(expected - before).max() > 0.1
    export_adapters(adapted, tmp_path / "adapters")
    files = {file.name for file in (tmp_path / "adapters").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors"}
    with torch.no_grad():
        model = peft.PeftModel.from_pretrained(reference, tmp_path / "adapters").eval()
        found = model(**inputs).logits
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-5)
    hf.export_hf(adapted, tmp_path / "merged")
    again = type(reference).from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        merged = again(**inputs).logits
    np.testing.assert_allclose(merged, expected, rtol=0, atol=3e-5)


def test_adapters_that_peft_cannot_express(tmp_path):
    _, adapted = create_adapters(tmp_path, "gpt2", "('attention.query',)")
    with pytest.raises(UserError, match=r"lora\.targets: .*attention\.query .*c_attn"):
        export_adapters(adapted, tmp_path / "adapters")
    with pytest.raises(UserError, match=r"base: .*lora\.rank = 0"):
        export_adapters(tmp_path / "base", tmp_path / "adapters")
    assert not (tmp_path / "adapters").exists()
    assert (
        json.loads((adapted / "config.json").read_text())["model"]["lora"]["rank"] == 3
    )
