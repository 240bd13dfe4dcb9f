"""Adapters that PEFT made, as workdirs that compute the same."""

import json

import numpy as np
import pytest
from references import save_reference
from test_peft import compute_outputs, compute_references

from lmjax.cli import main
from lmjax.errors import UserError
from lmjax.interop import hf
from lmjax.interop.peft import export_adapters
from lmjax.interop.peft_import import import_adapters

torch = pytest.importorskip("torch", reason="the reference runs on torch")
transformers = pytest.importorskip("transformers", reason="is the reference")
peft = pytest.importorskip("peft", reason="makes the adapters")


def make_adapters(directory, name, **options):
    """Save a base, and adapters of PEFT for it, random; return the whole."""
    base = save_reference(name, directory / "hf")
    if options.get("task_type") == "SEQ_CLS":
        base = transformers.AutoModelForSequenceClassification.from_pretrained(
            directory / "hf", num_labels=3
        )
    model = peft.get_peft_model(base, peft.LoraConfig(**{"r": 3, **options}))
    torch.manual_seed(1)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "lora_" in key or ".modules_to_save." in key or value.requires_grad:
                value.add_(0.1 * torch.randn_like(value))
        if "lm_head" in options.get("modules_to_save", ()):  # tied, as in the base
            embedding = model.get_input_embeddings().weight
            model.get_output_embeddings().weight.copy_(embedding)
    model.save_pretrained(directory / "adapters")
    return model.eval()


CASES = [
    (
        "llama",
        {"target_modules": ["q_proj", "v_proj", "down_proj"], "use_rslora": True}
        | {"rank_pattern": {"q_proj": 5}, "alpha_pattern": {"layers.1.*v_proj": 9}},
    ),
    (
        "llama",
        {"target_modules": ["o_proj", "lm_head"], "layers_to_transform": [0, 2]}
        | {"modules_to_save": ["norm"]},
    ),
    ("smollm2", {"target_modules": "all-linear"}),
    (
        "smollm2",
        {"target_modules": ["k_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    ),
    (
        "gpt2",
        {"target_modules": ["c_attn", "c_proj"], "bias": "all", "lora_alpha": 5}
        | {"fan_in_fan_out": True, "task_type": "CAUSAL_LM"},
    ),
    (
        "phi3",  # several matrices of unequal sizes in one
        {"target_modules": ["qkv_proj", "gate_up_proj"], "modules_to_save": ["norm"]},
    ),
    (
        "gpt_neox",  # several matrices in one, head by head
        {"target_modules": ["query_key_value", "lm_head"], "bias": "all"},
    ),
    ("bart", {"target_modules": r".*decoder.*\.(q_proj|fc1)", "bias": "lora_only"}),
    ("bert_base", {"target_modules": ["query", "dense"], "task_type": "SEQ_CLS"}),
    ("smollm2", {"target_modules": ["v_proj"], "task_type": "SEQ_CLS"}),
    ("bert_tag", {"target_modules": ["value"], "task_type": "TOKEN_CLS"}),
]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_imported_adapters_compute_the_same(tmp_path, name, options):
    reference = make_adapters(tmp_path, name, **options)
    rng = np.random.default_rng(1)
    tokens = rng.integers(3, 66, (2, 12))
    source = {"source": rng.integers(3, 66, (2, 9))} if name == "bart" else {}
    expected = compute_references(reference, tokens, source)
    import_adapters(tmp_path / "adapters", tmp_path / "run", base=str(tmp_path / "hf"))
    found = compute_outputs(tmp_path / "run", tokens, source)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_adapters_come_and_go(tmp_path, capsys):
    options = {"target_modules": ["c_attn"], "modules_to_save": ["ln_f"]}
    options |= {"fan_in_fan_out": True, "task_type": "CAUSAL_LM"}
    reference = make_adapters(tmp_path, "gpt2", **options)
    tokens = np.random.default_rng(1).integers(3, 66, (2, 12))
    expected = compute_references(reference, tokens, {})
    file = tmp_path / "adapters/adapter_config.json"
    settings = json.loads(file.read_text())
    file.write_text(
        json.dumps({**settings, "base_model_name_or_path": str(tmp_path / "hf")})
    )
    run = tmp_path / "run"
    argv = ["import", f"--from={tmp_path / 'adapters'}", f"--workdir={run}"]
    assert main.main(argv) == 0
    assert "LoRA adapters of rank 3" in capsys.readouterr().out
    export_adapters(run, tmp_path / "again")
    base = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "hf")
    again = peft.PeftModel.from_pretrained(base, tmp_path / "again")
    np.testing.assert_allclose(
        compute_references(again, tokens, {}), expected, rtol=0, atol=1e-5
    )
    hf.import_hf(tmp_path / "hf", tmp_path / "base")  # and onto a workdir
    import_adapters(tmp_path / "adapters", tmp_path / "b", base=str(tmp_path / "base"))
    found = compute_outputs(tmp_path / "b", tokens, {})
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_adapters_are_no_model(tmp_path, capsys):
    make_adapters(tmp_path, "gpt2", target_modules=["c_attn"], fan_in_fan_out=True)
    adapters = tmp_path / "adapters"
    for flag in ("config.init_from", "--base"):
        with pytest.raises(UserError, match=rf"{flag}=.*: holds adapters .*--base=M"):
            hf.open_hf(adapters, flag=flag)
    assert main.main(["import", f"--from={adapters}", "--dry_run"]) == 0
    printed = capsys.readouterr().out
    for part in ("LoRA of 2 matrices, of rank 3", "trained    nothing else", "base  "):
        assert part in printed
    assert main.main(["import", f"--from={adapters}"]) == 2
    assert "--workdir: must be given" in capsys.readouterr().err


def test_adapters_that_are_not_supported_are_refused(tmp_path):
    make_adapters(tmp_path, "gpt2", target_modules=["c_attn"], fan_in_fan_out=True)
    adapters, right = tmp_path / "adapters", str(tmp_path / "hf")
    file = adapters / "adapter_config.json"
    settings = json.loads(file.read_text())
    save_reference("llama", tmp_path / "llama")
    for change, base, message in (
        ({"use_dora": True}, right, r"use_dora = True: not supported"),
        ({"peft_type": "IA3"}, right, r"peft_type = 'IA3': only LORA"),
        (
            {"init_lora_weights": "pissa"},
            right,
            r"init_lora_weights = 'pissa'",
        ),
        (
            {"layer_replication": [[0, 2]]},
            right,
            r"layer_replication = .*not sup",
        ),
        ({"a_new_thing": 1}, right, r"a_new_thing = 1: not supported"),
        ({"base_model_name_or_path": None}, "", r"--base: must name the model"),
        ({}, str(tmp_path / "llama"), r"c_attn\.weight: the base has no such tensor"),
        ({}, str(tmp_path / "nothing"), r"--base=.*nothing: "),
    ):
        file.write_text(json.dumps({**settings, **change}))
        with pytest.raises(UserError, match=message):
            import_adapters(adapters, tmp_path / "run", base=base)
        assert not (tmp_path / "run").exists()
