"""Sources and targets: rows, batches, truncation, decoder inputs, mistakes."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from lmjax import tasks
from lmjax.config.data import FieldsConfig
from lmjax.config.experiment import parse
from lmjax.data import batches, pipeline
from lmjax.data.features.prompted_lm import PromptedLMFeatures
from lmjax.data.features.seq2seq import Seq2SeqFeatures
from lmjax.data.tokenizers.plain import Bytes
from lmjax.errors import UserError
from lmjax.tasks import losses

COMMON = {"fields": FieldsConfig(), "metrics": ("exact_match",)}
PAIR = Seq2SeqFeatures(
    **COMMON, template="{source}", length=16, target_length=8, decoder_prefix_ids=(7,)
)
PROMPT = PromptedLMFeatures(**COMMON, template="{source}=", length=16, target_length=6)
BOS, EOS = 257, 256
TOKENIZER = Bytes(bos=True)


def encode(features, source, target="", tokenizer=TOKENIZER):
    example = {"source": source, "target": target}
    pair = features.parse(example, labelled=bool(target))
    return features.encode([pair], tokenizer)[0][0]


def test_a_target_follows_its_start_and_ends():
    row = encode(PAIR, "abc", "xy")
    assert row.columns["source"].tolist() == [BOS, *b"abc", EOS]
    assert row.columns["target"].tolist() == [*b"xy", EOS]
    assert (row.size, row.truncated) == (6, False)  # the target counts twice
    batch = PAIR.batch([row.columns, None], length=16)
    assert batch["tokens"].tolist() == [[7, *b"xy", 0, 0, 0, 0, 0], [0] * 8]
    assert batch["targets"][0].tolist() == [*b"xy", EOS, 0, 0, 0, 0, 0]
    assert batch["weights"].tolist() == batch["segments"].tolist()
    assert batch["weights"].sum(axis=1).tolist() == [3, 0]
    assert batch["positions"][0].tolist() == [0, 1, 2, 0, 0, 0, 0, 0]
    assert batch["source_segments"].sum(axis=1).tolist() == [5, 0]
    assert batch["source_positions"][0].tolist()[:6] == [0, 1, 2, 3, 4, 0]
    assert PAIR.decoder_inputs(row.columns)["prompts"] == [7]
    assert PAIR.decoder_inputs(row.columns)["sources"].tolist() == [BOS, *b"abc", EOS]


def test_a_target_has_the_prefix_of_the_decoder():
    opened = dataclasses.replace(PAIR, decoder_prefix_ids=(7, 9))
    row = encode(opened, "abc", "xy")
    assert row.columns["target"].tolist() == [9, *b"xy", EOS]
    batch = opened.batch([row.columns], length=16)
    assert batch["tokens"][0].tolist() == [7, 9, *b"xy", 0, 0, 0, 0]
    assert batch["targets"][0].tolist() == [9, *b"xy", EOS, 0, 0, 0, 0]
    assert batch["weights"].sum() == 4
    assert opened.decoder_inputs(row.columns)["prompts"] == [7, 9]
    assert not encode(opened, "a", "x" * 6).truncated
    long = encode(opened, "a", "x" * 7)
    assert long.truncated and long.columns["target"].tolist() == [9, *b"x" * 6, EOS]


def test_a_bucket_holds_source_and_target():
    for source, target, size in (("a" * 9, "x", 11), ("a", "x" * 6, 14)):
        row = encode(PAIR, source, target)
        assert row.size == size
        length = -(-size // 8) * 8
        batch = PAIR.batch([row.columns], length=length)
        assert batch["source"].shape == (1, length)
        assert batch["weights"].sum() == len(target) + 1
    odd = dataclasses.replace(PAIR, length=24, target_length=20)
    assert [odd.target_bucket(length) for length in (8, 16, 24)] == [8, 16, 24]


def test_long_texts_are_truncated():
    assert not encode(PAIR, "a" * 14, "x" * 7).truncated
    row = encode(PAIR, "a" * 15, "x")
    assert row.truncated
    assert row.columns["source"].tolist() == [BOS, *b"a" * 14, EOS]
    row = encode(PAIR, "a", "x" * 8)
    assert row.truncated
    assert row.columns["target"].tolist() == [*b"x" * 7, EOS]


def test_a_prompt_carries_no_loss():
    row = encode(PROMPT, "ab", "xy")
    assert row.columns["tokens"].tolist() == [BOS, *b"ab=xy", EOS]
    assert row.columns["prompt"].tolist() == [4]
    assert row.size == 6
    batch = PROMPT.batch([row.columns, None], length=8)
    assert batch["tokens"][0].tolist() == [BOS, *b"ab=xy", 0, 0]
    assert batch["targets"][0].tolist() == [*b"ab=xy", EOS, 0, 0]
    assert batch["weights"].tolist() == [[0, 0, 0, 1, 1, 1, 0, 0], [0] * 8]
    assert batch["segments"].sum(axis=1).tolist() == [6, 0]
    assert PROMPT.decoder_inputs(row.columns)["prompts"].tolist() == [BOS, *b"ab="]


def test_a_target_is_encoded_as_what_follows_its_prompt():
    class Opened(Bytes):
        """Puts a space before a text."""

        def encode_batch(self, texts):
            return super().encode_batch([f" {text}" for text in texts])

    row = encode(PROMPT, "ab", "xy", tokenizer=Opened(bos=True))
    assert row.columns["tokens"].tolist() == [BOS, *b" ab=xy", EOS]
    unknown = encode(PROMPT, "ab", tokenizer=Opened(bos=True))
    prompts = [PROMPT.decoder_inputs(r.columns)["prompts"] for r in (row, unknown)]
    assert prompts[0].tolist() == prompts[1].tolist() == [BOS, *b" ab="]


def test_a_prompt_is_cut_from_its_left_whatever_its_target():
    known, unknown = encode(PROMPT, "0123456789", "x"), encode(PROMPT, "0123456789")
    assert known.truncated and unknown.truncated
    expected = [BOS, *b"23456789="]
    for row in (known, unknown):
        assert PROMPT.decoder_inputs(row.columns)["prompts"].tolist() == expected
    assert not encode(PROMPT, "23456789", "xxxxx").truncated
    long = encode(PROMPT, "23456789", "x" * 6)
    assert long.truncated
    assert long.columns["tokens"].tolist()[10:] == [*b"x" * 5, EOS]
    assert len(long.columns["tokens"]) == 16


def test_a_prompt_without_tokens_has_an_id_to_continue():
    class Deaf(Bytes):
        def encode_batch(self, texts):
            return super().encode_batch([text.replace("-", "") for text in texts])

    bare = PromptedLMFeatures(**COMMON, template="{source}", length=16, target_length=6)
    row = encode(bare, "-", "x", tokenizer=Deaf(bos=False))
    assert row.columns["tokens"].tolist() == [EOS, ord("x"), EOS]
    assert bare.batch([row.columns], length=8)["weights"].sum() == 2


def test_a_tokenizer_must_have_an_end_of_text():
    deaf = Bytes(bos=True)
    deaf.eos_id = None
    with pytest.raises(UserError, match=r"config\.tokenizer: has no end of text"):
        encode(PAIR, "a", "x", tokenizer=deaf)


@pytest.mark.parametrize(
    ("example", "why"),
    [
        ({"source": "", "target": "x"}, "'source' is empty"),
        ({"source": "a", "target": " "}, "'target' is empty"),
        ({"source": 3, "target": "x"}, "'source' holds int, not a string"),
        (
            {"sorce": "a", "target": "x"},
            r"config\.data\.fields\.source = 'source': no such field \(did you mean "
            "'sorce'",
        ),
        ({"source": "a", "target": "\ud800"}, "half of a surrogate"),
    ],
)
def test_user_errors(example, why):
    with pytest.raises(UserError, match=why):
        PAIR.parse(example)


@pytest.mark.parametrize("kind", ["seq2seq", "prompted_lm"])
def test_batches_have_the_declared_shapes_and_padding(kind, tmp_path):
    path, model = tmp_path / "a.jsonl", {"dim": 8, "num_layers": 1, "num_heads": 1}
    lines = ({"source": "a" * n, "target": "x" * (n // 2)} for n in range(2, 40))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    model["kind"] = "encoder_decoder" if kind == "seq2seq" else "decoder"
    data = {"source": "jsonl", "path": str(path), "num_buckets": 3}
    config = parse(
        {
            "batch_size": 8,
            "num_steps": 12,
            "model": model,
            "tokenizer": {"kind": "bytes"},
            "data": {**data, "length": 48, "target_length": 24},
            "task": {"kind": kind},
        }
    )
    config = pipeline.resolve_vocabulary(config)
    datasets = pipeline.prepare(config, workdir=tmp_path / "run")
    said = tasks.build(config.task).batch_shapes(8, 48, target_length=24)
    found = [*batches.train_batches(datasets, config, start_step=0)]
    sizes = {batch["tokens"].shape for batch in found}
    assert len(sizes) == 3
    longest = max(found, key=lambda batch: batch["tokens"].shape[1])
    for name, shape in said.items():
        assert longest[name].dtype == shape.dtype
        assert longest[name].shape[1:] == shape.shape[1:]
    assert longest.keys() == said.keys()
    line = batches.describe(datasets, config, data_shards=1)
    epoch = found[
        : batches.train_schedule(datasets, config, data_shards=1).steps_per_epoch
    ]
    padding = np.sum([losses.padding(batch) for batch in epoch], axis=0)
    assert line.endswith(f"; {padding[0] / padding[1]:.1%} padding")


@pytest.mark.slow
def test_no_gradient_comes_from_the_prompt(tiny, random_params):
    row = encode(PROMPT, "ab", "xy", tokenizer=Small())
    model = tiny("llama")
    params, task = random_params(model), tasks.build(CONFIG)
    batch, same, other = (PROMPT.batch([row.columns], length=8) for _ in range(3))
    same["targets"][0, :3] += 1  # of the prompt
    other["targets"][0, 3] += 1
    grad = jax.jit(jax.grad(lambda p, b: task.loss(model, p, b, key=None)[0]))
    found, again, changed = (
        jax.tree.leaves(grad(params, b)) for b in (batch, same, other)
    )
    for a, b in zip(found, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(found, changed, strict=True))
    loss = jax.jit(lambda p, b: task.loss(model, p, b, key=None))
    _, weight, metrics, _ = loss(params, batch)
    assert weight == 3
    assert metrics["padding"] == (2, 8)


CONFIG = parse(
    {
        "model": {"kind": "decoder"},
        "data": {"source": "jsonl", "path": "x"},
        "tokenizer": {"kind": "bytes"},
        "task": {"kind": "prompted_lm"},
    }
).task


class Small(Bytes):
    """Bytes as ids of a model of 64."""

    def __init__(self):
        super().__init__(bos=True)
        self.bos_id, self.eos_id = 62, 63

    def encode_batch(self, texts):
        return [ids % 60 for ids in super().encode_batch(texts)]


@pytest.mark.parametrize(("leaf", "value"), [("start_id", 999), ("opening", (0, 999))])
def test_decoder_prefix_ids_must_be_in_the_vocabulary(leaf, value):
    model = {"kind": "encoder_decoder", "dim": 8, "num_heads": 1, "max_length": 32}
    config = parse(
        {
            "model": {**model, leaf: value},
            "tokenizer": {"kind": "bytes"},
            "data": {"source": "jsonl", "path": "x", "length": 32},
            "task": {"kind": "seq2seq"},
        }
    )
    said = rf"config\.model\.{leaf}: 999 must be below config\.model\.vocab_size = 2"
    with pytest.raises(UserError, match=said):
        pipeline.resolve_vocabulary(config)
