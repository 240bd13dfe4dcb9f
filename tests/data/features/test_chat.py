"""Chats: their rows, packing, what is skipped, mistakes."""

import itertools
import json

import numpy as np
import pytest

from lmjax.config.experiment import parse
from lmjax.data import batches, pipeline
from lmjax.data.features.registry import make_features
from lmjax.data.formats.chats import parse_messages
from lmjax.data.stores.packed_rows import best_fit
from lmjax.data.tokenizers.chat_template import ChatTemplate
from lmjax.data.tokenizers.named_templates import NAMED_TEMPLATES
from lmjax.data.tokenizers.plain import Bytes
from lmjax.errors import ConfigError, UserError

pytest.importorskip("jinja2")
BOS, EOS = 257, 256
TOKENIZER = Bytes(bos=True)
MODEL = {"kind": "decoder", "dim": 16, "num_layers": 1, "num_heads": 2}
SECTIONS = {
    "batch_size": 2,
    "num_steps": 30,
    "model": {**MODEL, "max_length": 128},
    "tokenizer": {"kind": "bytes", "chat_template": "plain"},
    "data": {"source": "chat", "path": "chats.jsonl", "length": 64},
    "task": {"kind": "prompted_lm", "metrics": ("exact_match",)},
}
TURNS = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}


def messages(*texts, first="user"):
    others = {"user": "assistant", "assistant": "user"}
    roles = [first if i % 2 == 0 else others[first] for i in range(len(texts))]
    return [{"role": r, "content": text} for r, text in zip(roles, texts, strict=True)]


def features(**data):
    return make_features(parse({**SECTIONS, "data": {**SECTIONS["data"], **data}}))


def encode(chat, *, labelled=True, **data):
    made = features(**data)
    parsed = made.parse({"messages": chat}, labelled=labelled)
    return made, made.encode([parsed], TOKENIZER)[0][0]


def test_the_words_of_the_assistant_have_a_loss():
    made, row = encode(messages("a", "b", "c", "d"))
    text = [BOS, *b"User: a\n\nAssistant: b", EOS, *b"\n\nUser: c\n\nAssistant: d", EOS]
    assert row.columns["tokens"].tolist() == text
    batch = made.batch([row.columns, None], length=56)
    learnt = batch["targets"][batch["weights"] > 0].tolist()
    assert learnt == [*b" b", EOS, *b" d", EOS]
    assert batch["tokens"][0, : row.size].tolist() == text[:-1]
    assert batch["segments"].sum(axis=1).tolist() == [row.size, 0]
    question = [BOS, *b"User: c\n\nAssistant:"]  # in half of the length
    assert made.decoder_inputs(row.columns)["prompts"].tolist() == question


@pytest.mark.parametrize("has_blocks", [False, True])
def test_turns_of_weight_0_have_no_loss(monkeypatch, has_blocks):
    blocks = (
        "{% for m in messages %}{{ m.role }}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content + '!' }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant' }}{% endif %}"
    )
    if has_blocks:
        monkeypatch.setitem(NAMED_TEMPLATES, "plain", blocks)
    made = features()
    for weights in ((0, 1), (1, 0), (1.0, False), (0, 0), (1, True)):
        chat = messages("a", "B", "c", "D")
        chat[1]["weight"], chat[3]["weight"] = weights
        chat[0]["weight"] = 0.5  # of the user, who has no loss anyway
        ((row,),) = made.encode([made.parse({"messages": chat})], TOKENIZER)
        assert row.used_for_training == any(weights) and not row.truncated
        batch = made.batch([row.columns if any(weights) else None], length=64)
        learnt = batch["targets"][batch["weights"] > 0].tolist()
        answers = [chr(i) for i in learnt if i < 256 and chr(i).isupper()]
        assert answers == [c for c, w in zip("BD", weights, strict=True) if w]


def test_arguments_of_calls_are_objects():
    def call(arguments):
        message = {"role": "assistant", "content": ""}
        function = {"name": "f", "arguments": arguments}
        message["tool_calls"] = [{"type": "function", "function": function}, "x"]
        (found,) = parse_messages([message], name="m")
        assert function["arguments"] is arguments and found["tool_calls"][1] == "x"
        return found["tool_calls"][0]["function"]["arguments"]

    assert call('{"a": ["é"]}') == call({"a": ["é"]}) == {"a": ["é"]}
    for other in ("{", "[1]", "", '"x"', None, 3):
        assert call(other) == other


def test_a_question_is_the_same_with_and_without_its_answer():
    chat = messages("a", "b", "c", "d")
    made, known = encode(chat, length=120, target_length=40)
    _, given = encode(chat, labelled=False, length=120, target_length=40)
    _, open_ = encode(chat[:-1], labelled=False, length=120, target_length=40)
    prompts = [
        made.decoder_inputs(row.columns)["prompts"].tolist()
        for row in (known, given, open_)
    ]
    assert prompts[0] == prompts[1] == prompts[2]
    assert prompts[0][-11:] == [*b"\nAssistant:"]


def test_a_long_chat_loses_its_end_and_a_long_question_its_oldest_turns():
    chat = messages("a", "b", "c" * 20, "d" * 40)
    made, row = encode(chat)
    assert row.truncated and row.size == 64 and row.used_for_training
    question = made.decoder_inputs(row.columns)["prompts"].tolist()
    assert question == [BOS, *(b"User: " + b"c" * 20 + b"\n\nAssistant:")[-31:]]
    _, none = encode(messages("a" * 70, "b"))
    assert not none.used_for_training and none.truncated


def test_sharegpt_is_the_same_chat():
    chat = messages("a", "b")
    given = [{"from": TURNS[m["role"]], "value": m["content"]} for m in chat]
    made = features()
    a, b = made.parse({"messages": chat}), made.parse({"conversations": given})
    assert a == b
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, "b"]}]
    assert parse_messages(parts, name="m")[0]["content"] == "ab"


@pytest.mark.parametrize(
    ("example", "words"),
    [
        ({}, ["messages", "no such field"]),
        ({"messages": []}, ["'messages' is empty"]),
        ({"messages": "hi"}, ["str, not a list"]),
        ({"messages": ["hi"]}, ["messages[0] holds str"]),
        ({"messages": [{"content": "x"}]}, ["messages[0] has no 'role'"]),
        ({"messages": [{"role": "asistant"}]}, ["'asistant'", "'assistant'"]),
        ({"messages": [{"role": 3}]}, ["role 3"]),
        ({"messages": [{"role": "user", "content": 3}]}, ["content is int"]),
        ({"messages": [{"role": "user"}]}, ["content is NoneType"]),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            ["messages[0][0]", "'image'", "text alone"],
        ),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, ["surrogate"]),
        (
            {"messages": [{"role": "assistant", "content": "", "weight": 0.5}]},
            ["messages[0]: weight 0.5: must be 0 or 1"],
        ),
        ({"messages": messages("a")}, ["no turn of the assistant"]),
        ({"messages": messages("a", "b", "c")}, ["ends with", "'user'"]),
        ({"messages": messages("a", first="assistant")}, ["no turn to answer"]),
        ({"messages": messages("a", "b"), "tools": "{"}, ["'tools' is not JSON"]),
        ({"messages": messages("a", "b"), "tools": [3]}, ["'tools' holds"]),
    ],
)
def test_a_chat_that_cannot_be_used_is_one_line(example, words):
    with pytest.raises(UserError) as error:
        features().parse(example)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def write(file, chats):
    file.write_text("".join(json.dumps({"messages": c}) + "\n" for c in chats))


def load(tmp_path, chats, **data):
    write(tmp_path / "train.jsonl", chats)
    write(tmp_path / "valid.jsonl", chats[:2])
    own = {"path": "train", "valid_path": "valid"}
    paths = {leaf: str(tmp_path / f"{name}.jsonl") for leaf, name in own.items()}
    config = parse({**SECTIONS, "data": {**SECTIONS["data"], **paths, **data}})
    return config, pipeline.prepare(config, workdir=tmp_path / "run")


def test_chats_that_the_template_refuses_are_named_by_their_line(tmp_path):
    good = messages("a", "b")
    bad = [*messages("x", first="assistant"), *good]
    with pytest.raises(UserError, match=r"train\.jsonl:2: the first turn is the"):
        load(tmp_path, [good, bad, good])
    _, datasets = load(tmp_path, [good, good, bad], on_bad_example="skip")
    (store,) = datasets.stores["train"]
    assert (len(store), store.num_skipped) == (2, 1)


def test_questions_are_written_only_where_they_are_answered(tmp_path, monkeypatch):
    asked = []

    def render(self, given, **options):
        asked.append(options.get("add_generation_prompt", False))
        return original(self, given, **options)

    original = ChatTemplate.render
    monkeypatch.setattr(ChatTemplate, "render", render)
    chats = [messages(f"{i}", "b", "c", "d") for i in range(5)]
    _, datasets = load(tmp_path, chats)
    (train,), (valid,) = (datasets.stores[split] for split in ("train", "valid"))
    assert ("question" in train[0], "question" in valid[0]) == (False, True)
    assert (len(train), len(valid)) == (5, 2)
    assert asked.count(True) == 2 * len(valid)  # the second without the oldest turns


def test_packed_chats_hold_what_they_hold_alone(tmp_path):
    chats = [messages(f"{i}" * (i % 5 + 1), "y" * (i % 7)) for i in range(1, 30)]
    config, datasets = load(tmp_path, chats, pack_examples=True, num_buckets=1)
    made = make_features(config)
    (store,) = datasets.stores["train"]
    alone = [made.batch([store[i]], length=64) for i in range(len(store))]
    found, most = [], 0
    steps = batches.train_schedule(datasets, config, data_shards=1).steps_per_epoch
    epoch = batches.train_batches(datasets, config, start_step=0)
    for batch in itertools.islice(epoch, steps):
        most = max(most, batch["segments"].max())
        for b in range(len(batch["tokens"])):
            for segment in range(1, batch["segments"][b].max() + 1):
                here = batch["segments"][b] == segment
                found.append({name: x[b][here] for name, x in batch.items()})
    assert most > 1
    wanted = {one["tokens"][one["segments"] > 0].tobytes(): one for one in alone}
    assert len(found) == len(wanted)
    for piece in found:
        one = wanted[piece["tokens"].tobytes()]
        real = one["segments"] > 0
        for name in ("targets", "weights", "positions"):
            np.testing.assert_array_equal(piece[name], one[name][real])


def test_packing_is_tight_and_loses_nothing():
    sizes = np.random.default_rng(0).integers(1, 32, 500)
    bins = best_fit(sizes, length=64)
    filled = np.bincount(bins, weights=sizes)
    assert filled.max() <= 64 and filled.sum() == sizes.sum()
    assert len(filled) <= 1.02 * sizes.sum() / 64
    assert best_fit(np.array([70, 3]), length=64).tolist() == [0, 1]


def test_only_prompts_are_packed():
    sections = {
        **SECTIONS,
        "data": {"source": "text", "path": "x", "pack_examples": True},
        "task": {"kind": "causal_lm"},
    }
    with pytest.raises(ConfigError, match=r"data\.pack_examples = True"):
        parse(sections)
    chats = {**SECTIONS, "task": {"kind": "prompted_lm", "template": "Q: {source}"}}
    with pytest.raises(ConfigError, match=r"task\.template = 'Q: \{source\}'"):
        parse(chats)
    text = {"kind": "causal_lm"}
    with pytest.raises(ConfigError, match=r"data\.source = 'chat'"):
        parse({**SECTIONS, "task": text})
