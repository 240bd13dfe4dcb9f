"""The tokenizer of an exported directory, as transformers and lmjax read it."""

import json
import logging

import pytest

from lmjax.config.tokenizer import TokenizerConfig
from lmjax.data.tokenizers.plain import Bytes
from lmjax.data.tokenizers.tokenizer import make_tokenizer
from lmjax.errors import UserError
from lmjax.generate.prompts import encode_prompts
from lmjax.interop import hf
from lmjax.run import workdir
from lmjax.run.checkpoint import save_params

tokenizers = pytest.importorskip("tokenizers", reason="needs lmjax[hf]")
transformers = pytest.importorskip("transformers", reason="reads the directory")

TEXTS = ["say number 3", "", " a  b\n", "naïve 日本語。", "</s> x</s>", "[MASK]<s>"]
BERT = {"position_offset": 0, "pair_head": False}
T5 = {"gated": True}
# (architecture of the tests, its changes, the class in transformers).
MODELS = {
    "gpt2": ("gpt2", {}, "GPT2LMHeadModel"),
    "llama": ("llama", {}, "LlamaForCausalLM"),
    "qwen2": ("llama", {"qkv_bias": True}, "Qwen2ForCausalLM"),
    "t5": ("t5", T5, "T5ForConditionalGeneration"),
    "bert": ("bert", BERT, "BertForMaskedLM"),
}


@pytest.fixture
def make_workdir(tmp_path, make_config, tiny, random_params):
    """Return a function that writes a workdir with random weights."""

    def make(name, tok, **more):
        architecture, changes, _ = MODELS[name]
        changes = {**changes, **more, "vocab_size": tok.vocab_size}
        config = make_config(architecture, **changes)
        directory = tmp_path / name
        directory.mkdir()
        save_params(directory, random_params(tiny(architecture, **changes)))
        tok.save(directory / "tokenizer")
        workdir.write_config(directory, config)
        return directory, config

    return make


@pytest.fixture(scope="module")
def trained():
    texts = [f"say number {i}\n" for i in range(100)]

    class Texts(list):
        def size(self, index):
            return len(self[index])

        def fingerprint(self):
            return "texts"

    config = TokenizerConfig(vocab_size=290, mask=True)
    return make_tokenizer(config, documents=[Texts(texts)], seed=0)


@pytest.mark.parametrize("name", MODELS)
def test_ids_are_those_that_the_model_reads(
    name, make_workdir, trained, tmp_path, caplog
):
    directory, config = make_workdir(name, trained)
    target = tmp_path / "hf"
    with caplog.at_level(logging.WARNING):
        summary = hf.export_hf(directory, target)
    assert summary.architecture == MODELS[name][2]
    values = json.loads((target / "config.json").read_text())
    assert all(
        values[f"{role}_token_id"] < trained.vocab_size for role in ("eos", "pad")
    )
    generic = name == "qwen2"
    assert ("AutoTokenizer reads every tokenizer of a qwen2" in caplog.text) == generic
    auto = "PreTrainedTokenizerFast" if generic else "AutoTokenizer"
    reference = getattr(transformers, auto).from_pretrained(target)
    if config.model.kind == "encoder":
        ids = [[trained.bos_id, *trained.encode(t), trained.eos_id] for t in TEXTS]
    else:
        given = encode_prompts(trained, TEXTS, config=config.model)
        ids = given.get("sources", given["prompts"])
    assert reference(TEXTS).input_ids == [list(map(int, row)) for row in ids]
    again = hf.import_hf(target, tmp_path / "again")
    assert again.tokenizer == "its own"
    assert workdir.read_config(tmp_path / "again").model.kind == config.model.kind


def test_roberta_keeps_an_id_for_padding(make_workdir, tmp_path):
    tok = Bytes(bos=True, mask=True)
    directory, _ = make_workdir("bert", tok, position_offset=2, pooler=False)
    with pytest.raises(UserError, match=r"position_offset = 2: .*id 1.*<0x01>"):
        hf.export_hf(directory, tmp_path / "hf")
