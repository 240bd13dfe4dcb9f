"""Every family against its reference implementation in transformers."""

import numpy as np
import pytest
from references import CASES, reference, write

from lmjax.config.experiment import MeshConfig
from lmjax.interop import hf
from lmjax.parallel import sharding

torch = pytest.importorskip("torch", reason="the reference runs on torch")
transformers = pytest.importorskip("transformers", reason="is the reference")

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def one_device():
    import jax

    return sharding.make_mesh(MeshConfig(), devices=jax.devices()[:1])


def read(directory):
    """Return the model of a workdir, and its parameters."""
    return hf.restore(directory, None)


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
    if name.endswith("span_qa"):
        logits = jax.jit(model.label_logits)(params, hidden)
        return {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}
    if name in ("bert_classify", "bert_tag", "roberta_tag"):
        if name == "bert_classify":
            hidden = jax.jit(model.summary)(params, hidden, ours["segments"])
        return {"logits": jax.jit(model.label_logits)(params, hidden)}
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
        if difference.shape[:2] == np.shape(segments):
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
