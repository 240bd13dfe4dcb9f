"""Directories of sentence-transformers: the vectors of texts, in and out."""

import json

import numpy as np
import pytest
from references import save_reference

import lmjax
from lmjax.errors import UserError
from lmjax.interop import hf

torch = pytest.importorskip("torch", reason="the reference runs on torch")
library = pytest.importorskip("sentence_transformers", reason="is the reference")
Dense = pytest.importorskip("sentence_transformers.base.modules").Dense

WORDS = [f"w{i}" for i in range(60)]
TEXTS = ["w1 w2 W3", "w4", "", " ".join(WORDS[:40]), "w5 w6 unknown w7"]
TOLERANCE = 2e-6


def save_tokenizer(directory, **settings):
    """Write a tokenizer of words, with [CLS] and [SEP], in all 67 ids."""
    special = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS, "x", "y"])}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, "special": True, "single_word": False}
            | {"lstrip": False, "rstrip": False, "normalized": False}
            for i, token in enumerate(special)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "BertProcessing",
            "sep": ["[SEP]", 3],
            "cls": ["[CLS]", 2],
        },
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    }
    (directory / "tokenizer.json").write_text(json.dumps(content))
    names = {"unk": 0, "pad": 1, "cls": 2, "sep": 3, "mask": 4}
    config = {f"{name}_token": special[i] for name, i in names.items()}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def save_modules(directory, *modules, pooling, size=32, **settings):
    """Write modules.json and the directories of its modules, as older versions do."""
    kinds = ["Transformer", "Pooling", *(kind for kind, *_ in modules)]
    listed = []
    for i, kind in enumerate(kinds):
        path = f"{i}_{kind}" if i else ""
        listed.append({"idx": i, "name": str(i), "path": path})
        listed[-1]["type"] = f"sentence_transformers.models.{kind}"
        (directory / path).mkdir(exist_ok=True)
    (directory / "modules.json").write_text(json.dumps(listed))
    config = {"word_embedding_dimension": size, **pooling}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(config))
    for i, (_, layer) in enumerate(modules, start=2):
        if layer is not None:
            layer.save(str(directory / listed[i]["path"]))
    for name, values in settings.items():
        (directory / f"{name}.json").write_text(json.dumps(values))


def dense(inputs, outputs, activation, **settings):
    torch.manual_seed(1)
    layer = Dense(inputs, outputs, activation_function=activation, **settings)
    return "Dense", layer


def mode(*names):
    return {f"pooling_mode_{name}": True for name in names}


CASES = {
    "first": ("bert_base", (), {"pooling": mode("cls_token")}),
    "max_then_normalize": (
        "bert_base",
        [("Normalize", None)],
        {"pooling": mode("max_tokens")},
    ),
    "three_joined_then_dense": (
        "roberta_base",
        [dense(96, 8, torch.nn.Tanh())],
        {
            "pooling": mode("mean_tokens", "cls_token", "lasttoken"),
            "sentence_bert_config": {"max_seq_length": 9, "do_lower_case": True},
        },
    ),
    "two_dense_layers_and_a_prompt": (
        "bert_base",
        [
            dense(64, 48, torch.nn.Identity(), bias=False),
            dense(48, 16, torch.nn.GELU()),
            ("Normalize", None),
        ],
        {
            "pooling": {"pooling_mode": ["weightedmean", "mean_sqrt_len_tokens"]},
            "config_sentence_transformers": {
                "prompts": {"q": "w8 w9 "},
                "default_prompt_name": "q",
            },
        },
    ),
    "last_of_a_decoder": ("llama_base", (), {"pooling": mode("lasttoken")}),
    "default_mean": ("gpt2_base", (), {"pooling": {}}),
}


@pytest.mark.parametrize("name", CASES)
def test_vectors_are_those_of_sentence_transformers(name, tmp_path):
    model, modules, options = CASES[name]
    save_reference(model, tmp_path / "hf")
    save_tokenizer(tmp_path / "hf", model_max_length=30)
    save_modules(tmp_path / "hf", *modules, **options)
    expected = library.SentenceTransformer(str(tmp_path / "hf")).encode(TEXTS)
    hf.import_hf(tmp_path / "hf", tmp_path / "workdir")
    found = lmjax.load(tmp_path / "workdir").embed(TEXTS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)

    hf.export_hf(tmp_path / "workdir", tmp_path / "exported")
    exported = library.SentenceTransformer(str(tmp_path / "exported"))
    np.testing.assert_allclose(exported.encode(TEXTS), expected, rtol=0, atol=TOLERANCE)
    hf.import_hf(tmp_path / "exported", tmp_path / "again")
    a, b = (lmjax.load(tmp_path / d) for d in ("workdir", "again"))
    assert a.config.model.text_embedding == b.config.model.text_embedding
    np.testing.assert_array_equal(a.embed(TEXTS), b.embed(TEXTS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"1_Pooling/config.json": {"pooling_mode": "median"}}, "= 'median': .*cls"),
        ({"1_Pooling/config.json": {"pooling_mode_sum": True}}, "mode_sum = true"),
        ({"1_Pooling/config.json": {"word_embedding_dimension": 7}}, "= 7: .*32"),
        ({"2_Dense/config.json": {"in_features": 31}}, "in_features = 31: .*32"),
        (
            {
                "2_Dense/config.json": {
                    "in_features": 32,
                    "out_features": 8,
                    "activation_function": "x.Y",
                }
            },
            "activation_function = 'x.Y'",
        ),
        (
            {"2_Dense/config.json": {"in_features": 32, "use_residual": True}},
            "use_residual = true",
        ),
        ({"modules.json": [{"type": "a.WordEmbeddings"}]}, "'a.WordEmbeddings': not"),
        ({"modules.json": [{"type": "a.Pooling"}]}, "Pooling: expected a Transformer"),
        (
            {"modules.json": [{"type": f"a.{k}"} for k in ("Transformer", "Dense")]},
            "Transformer, Dense: expected",
        ),
        (
            {"config_sentence_transformers.json": {"default_prompt_name": "q"}},
            "default_prompt_name = 'q'",
        ),
        ({"modules.json": {}}, "expected a list"),
    ],
)
def test_modules_that_cannot_be_computed_are_refused(change, message, tmp_path):
    save_reference("bert_base", tmp_path)
    layers = dense(32, 8, torch.nn.Tanh()), ("Normalize", None)
    save_modules(tmp_path, *layers, pooling={})
    assert hf.open_hf(tmp_path).config.model.text_embedding.normalize
    for name, value in change.items():
        (tmp_path / name).write_text(json.dumps(value))
    with pytest.raises(UserError, match=message) as error:
        hf.open_hf(tmp_path)
    assert "\n" not in str(error.value)


def test_the_greatest_length_of_a_classifier_travels(tmp_path):
    save_reference("bert_classify", tmp_path / "hf")
    save_tokenizer(tmp_path / "hf", model_max_length=24)
    hf.import_hf(tmp_path / "hf", tmp_path / "workdir")
    assert lmjax.load(tmp_path / "workdir").config.data.length == 24
    hf.export_hf(tmp_path / "workdir", tmp_path / "exported")
    settings = json.loads((tmp_path / "exported/tokenizer_config.json").read_text())
    assert settings["model_max_length"] == 24
    assert hf.open_hf(tmp_path / "exported").config.data.length == 24


@pytest.mark.parametrize("length", [1e30, -1, "long", None])
def test_a_tokenizer_without_a_greatest_length(length, tmp_path):
    save_reference("bert_classify", tmp_path)
    save_tokenizer(tmp_path, model_max_length=length)
    assert hf.open_hf(tmp_path).config.data.length == 64


def test_windows_of_a_question_answerer_fit_its_greatest_length(tmp_path):
    save_reference("bert_span_qa", tmp_path)
    save_tokenizer(tmp_path, model_max_length=40)
    config = hf.open_hf(tmp_path).config
    assert (config.data.length, config.task.stride) == (40, 10)
