"""Preferences: losses against TRL's, the reference, microbatches, a run, mistakes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import models, tasks
from lmjax.config.experiment import parse
from lmjax.config.preference import PreferenceConfig
from lmjax.data import pipeline
from lmjax.data.features.registry import make_features
from lmjax.data.tokenizers.named_templates import NAMED_TEMPLATES
from lmjax.data.tokenizers.plain import Bytes
from lmjax.errors import ConfigError, UserError
from lmjax.tasks.distill import Teacher
from lmjax.tasks.preference_losses import Completions, kto_losses, pair_losses
from lmjax.training import loop
from lmjax.training.teacher import needs_copy

# Log-probabilities of four pairs under a model and its reference, and the tokens of
# their completions. What TRL 1.16 makes of them was computed by its own lines in
# float64: `trainer/dpo_trainer.py` (sigmoid, ipo), `trainer/kto_trainer.py` (kto, with
# an estimated divergence of 0.4; the first two are desirable, the others weigh 1.5),
# `experimental/orpo` (odds_ratio_loss of means; with it the mean loss of each chosen
# completion, as in the paper, not TRL's mean over the tokens of a batch),
# `experimental/cpo` (simpo with gamma 0.5; sigmoid of log ratios for smoothed dpo).
CHOSEN = [-12.3, -3.0, -40.5, -0.7], [-13.0, -2.0, -41.0, -1.5], [6, 2, 20, 1]
REJECTED = [-14.1, -2.5, -60.0, -9.0], [-13.5, -4.0, -58.0, -8.0], [7, 3, 25, 4]
TRL = {
    "dpo": ({}, [0.5170404, 1.13687101, 0.38687101, 0.45916274]),
    "dpo smoothed": (
        {"label_smoothing": 0.1},
        [0.5560404, 1.06187101, 0.46187101, 0.51316274],
    ),
    "ipo": ({}, [2.14413265, 7.11111111, 2.43880278, 0.38027778]),
    "orpo": ({}, [2.26417255, 1.89056492, 2.17633796, 0.73384786]),
    "simpo": ({}, [0.98075967, 1.10318605, 0.90555044, 0.7108003]),
    "simpo smoothed": (
        {"label_smoothing": 0.1},
        [0.92968824, 1.03318605, 0.86680044, 0.7073003],
    ),
}
TRL_KTO = [0.47751518, 0.60348325, 0.76124916, 0.79494608]


def completions(values):
    return Completions(*(jnp.array(x, jnp.float32) for x in values))


@pytest.mark.parametrize("name", TRL)
def test_losses_are_those_of_trl(name):
    leaves, expected = TRL[name]
    config = PreferenceConfig(loss=name.split()[0], beta=0.3, **leaves)
    losses = pair_losses(completions(CHOSEN), completions(REJECTED), config)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)


def test_the_loss_of_single_completions_is_that_of_trl():
    config = PreferenceConfig(loss="kto", beta=0.3, undesirable_weight=1.5)
    labels = jnp.array([1.0, 1.0, 0.0, 0.0])
    losses = kto_losses(completions(CHOSEN), labels, jnp.float32(0.4), config)
    np.testing.assert_allclose(losses, TRL_KTO, rtol=1e-5, atol=1e-5)


def test_a_completion_that_is_certain_has_a_finite_loss_and_gradient():
    config = PreferenceConfig(loss="orpo")

    def loss(*log_probs):
        pair = (Completions(x, 0 * x, jnp.ones_like(x)) for x in log_probs)
        return pair_losses(*pair, config).sum()

    for value in (0.0, -1e-9, -1e-7, -0.69, -0.7, -50.0, -1e4):
        for values in ((value, -2.0), (-2.0, value), (value, value)):
            for dtype in (jnp.float32, jnp.bfloat16):  # exp(-1e-7) may be 1
                given = (jnp.array([x], dtype) for x in values)
                found = jax.grad(loss, (0, 1))(*given)
                assert np.isfinite(jnp.array(found)).all(), (values, dtype)
    sure = Completions(*(jnp.array([x]) for x in (0.0, 0.0, 3.0)))
    other = Completions(*(jnp.array([x]) for x in (-9.0, 0.0, 3.0)))
    for pair in ((sure, other), (other, sure), (sure, sure)):
        assert np.isfinite(pair_losses(*pair, config)).all()


SECTIONS = {
    "batch_size": 8,
    "num_steps": 30,
    "model": {
        "kind": "decoder",
        "dim": 16,
        "num_layers": 1,
        "num_heads": 2,
        "max_length": 32,
    },
    "tokenizer": {"kind": "bytes", "chat_template": "plain"},
    "data": {"source": "jsonl", "path": "x.jsonl", "length": 24, "num_buckets": 1},
    "task": {"kind": "preference"},
    "optim": {"name": "adamw", "learning_rate": 0.01, "warmup_steps": 2},
    "log": {"tensorboard": False, "every_steps": 5},
    "checkpoint": {"every_steps": 0},
    "eval": {"every_steps": 0},
}
PAIR = {"prompt": "ab", "chosen": "cd", "rejected": "efg"}
USER = {"role": "user", "content": "ab"}


def answer(text):
    return {"role": "assistant", "content": text}


def make(task=(), **sections):
    merged = {**SECTIONS, **sections}
    return parse({**merged, "task": {"kind": "preference", **dict(task)}})


def rows_of(config, examples):
    features = make_features(config)
    parsed = [features.parse(example) for example in examples]
    encoded = features.encode(parsed, Bytes(bos=True))
    return features, [row.columns for (row,) in encoded]


def test_a_pair_is_two_rows_of_the_same_prompt():
    features, rows = rows_of(make(), [PAIR])
    batch = features.batch([*rows, None], length=8)
    for name, text in (("", b"cd"), ("rejected_", b"efg")):
        tokens = [257, *b"ab", *text]
        assert batch[f"{name}tokens"][0].tolist()[: len(tokens)] == tokens
        learnt = batch[f"{name}targets"][batch[f"{name}weights"] > 0]
        assert learnt.tolist() == [*text, 256]
    shapes = tasks.build(make().task).batch_shapes(2, 8)
    assert {name: x.shape for name, x in shapes.items()} == {
        name: x.shape for name, x in batch.items()
    }


def test_messages_are_pairs_too():
    given = {"prompt": [USER], "chosen": [answer("cd")], "rejected": [answer("e")]}
    whole = {"chosen": [USER, answer("cd")], "rejected": [USER, answer("e")]}
    prompts = ({}, {"prompt": None}, {"prompt": "ab"}, {"prompt": [USER]})
    others = [{**whole, **prompt} for prompt in prompts]
    _, (one, *rest) = rows_of(make(), [given, *others])
    for other in rest:
        for name, array in one.items():
            assert array.tolist() == other[name].tolist()
    kto = {"completion": whole["chosen"], "label": True, "prompt": "ab\n"}
    parsed = make_features(make({"loss": "kto"})).parse(kto)
    assert parsed.chosen[0]["content"] == "cd" and len(parsed.prompt) == 1
    start = int(one["prompt"][0])
    assert (
        one["tokens"][0] == 257
        and bytes(one["tokens"][1:start].tolist()) == b"\nAssistant:"
    )
    assert one["tokens"][start:].tolist() == [*b" cd", 256]


@pytest.mark.parametrize(
    ("prompt", "chosen", "truncated"),
    [
        ("a" * 11, "b" * 11, False),  # with their ends 12, half of the row
        ("a" * 12, "b" * 11, True),
        ("a" * 11, "b" * 12, True),
        ([{**USER, "content": ""}], [answer("c" * 10)], True),  # the template's words
    ],
)
def test_what_is_cut_is_counted(prompt, chosen, truncated):
    rejected = "x" if isinstance(prompt, str) else [answer("x")]
    features = make_features(make())
    given = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    ((row,),) = features.encode([features.parse(given)], Bytes(bos=True))
    assert row.truncated == truncated and row.used_for_training
    tokens, size = row.columns["tokens"], int(row.columns["prompt"][0])
    assert size == 12 and tokens[0] == 257 and len(tokens) == 24
    assert (tokens[-1] == 256) == (len(chosen) < 12)


# A turn is two blocks, with a mark between; what is empty has none.
BLOCKS = """\
{%- for m in messages %}{{- m.role[0] + ':' }}
{%- if m.role == 'assistant' %}
{%- set parts = m.content.split('|') %}
{%- generation %}{{- parts[0] }}{% endgeneration %}
{%- if parts | length > 1 %}{{- '-' }}
{%- generation %}{{- parts[1] }}{% endgeneration %}{% endif %}
{%- else %}{{- m.content }}{% endif %}
{{- ';' }}{% endfor %}
{%- if add_generation_prompt %}{{- 'a:' + start }}{% endif %}"""


@pytest.mark.parametrize("start", ["", "<"])  # that an answer may begin otherwise
def test_all_blocks_of_a_completion_are_learnt_and_no_others(monkeypatch, start):
    text = BLOCKS.replace("start", repr(start))
    monkeypatch.setitem(NAMED_TEMPLATES, "plain", text)
    prompt = [USER, answer("no"), USER]
    pair = {"prompt": prompt, "chosen": [answer("one|two")], "rejected": [answer("x")]}
    data = {**SECTIONS["data"], "length": 32, "target_length": 8}
    features, rows = rows_of(make(data=data), [pair])
    assert bytes(rows[0]["tokens"].tolist()) == b"u:ab;a:no;u:ab;a:one-two"
    batch = features.batch(rows, length=32)
    assert bytes(batch["targets"][batch["weights"] > 0].tolist()) == b"onetwo"
    weights = batch["rejected_weights"]
    assert bytes(batch["rejected_targets"][weights > 0].tolist()) == b"x"
    with pytest.raises(UserError, match="writes nothing for a completion"):
        rows_of(make(data=data), [{**pair, "chosen": [answer("")]}])


def single(prompt, text, label=True):
    return {"prompt": prompt, "completion": text, "label": label}


CHAT = [USER], [answer("b")]


@pytest.mark.parametrize(
    ("examples", "others"),
    [
        ([single(*"ax"), single(*"by"), single(*"cz")], "zxy"),
        # neighbours answer the same prompt
        ([single(*"au"), single(*"av"), single(*"bw"), single(*"bx")], "xxvv"),
        ([single(*"bu"), single(*"av"), single(*"aw")], "wuu"),
        ([single(*"au"), single(*"av")], [None, None]),
        ([single(*"au")], [None]),
        # texts and messages
        ([single(*"ax"), single(*CHAT), single(*"cz")], ["z", None, "x"]),
        ([], []),
    ],
)
def test_kto_reads_the_completion_of_another_prompt(examples, others):
    features = make_features(make({"loss": "kto"}))
    parsed = [features.parse(example) for example in examples]
    rows = [row for (row,) in features.encode(parsed, Bytes(bos=True))]
    found = [
        chr(row.columns["rejected_tokens"][2]) if row.used_for_training else None
        for row in rows
    ]
    assert found == [*others]


def test_kto_reads_labels():
    labels = (True, "false", 1)
    examples = [
        single(prompt, "x", label) for prompt, label in zip("abc", labels, strict=True)
    ]
    features, rows = rows_of(make({"loss": "kto"}), examples)
    assert features.batch(rows, length=8)["is_desirable"].tolist() == [1, 0, 1]


def test_single_completions_of_one_prompt_are_refused(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text(f"{json.dumps(single(*'ax'))}\n" * 8)
    config = make({"loss": "kto"}, data={**SECTIONS["data"], "path": str(file)})
    with pytest.raises(UserError, match=r"no example can be used; .* have one prompt"):
        pipeline.prepare(config, workdir=tmp_path / "run")


def test_an_example_that_is_left_out_leaves_the_others_as_they_are(tmp_path):
    calls = [{**USER, "tool_calls": [{"function": {"name": "f"}}]}]  # refused
    good = [single(*"ax"), single(*"by"), single(*"cz")]
    lines = [good[0], single(calls, [answer("b")]), *good[1:]]
    for name, examples in (("some", lines), ("good", good)):
        text = "".join(f"{json.dumps(example)}\n" for example in examples)
        (tmp_path / name).write_text(text)
    stores = []
    for name in ("some", "good"):
        path = str(tmp_path / name)
        given = {"path": path, "valid_path": path, "on_bad_example": "skip"}
        config = make({"loss": "kto"}, data={**SECTIONS["data"], **given})
        datasets = pipeline.prepare(config, workdir=tmp_path / f"{name}.run")
        stores += datasets.stores["train"]
    some, whole = stores
    assert (len(some), some.num_skipped, len(whole)) == (3, 1, 3)
    for i in range(3):
        for column, values in whole[i].items():
            assert some[i][column].tolist() == values.tolist(), column


BOTH = {"chosen": [USER, answer("b")], "rejected": [USER, answer("c")]}


@pytest.mark.parametrize(
    ("example", "words"),
    [
        ({"prompt": "a", "chosen": "b"}, ["fields.rejected", "no such field"]),
        ({"chosen": "b", "rejected": "c"}, ["fields.prompt", "no such field"]),
        ({**PAIR, "rejected": "cd"}, ["'chosen' and 'rejected' are the same"]),
        ({**PAIR, "chosen": ""}, ["'chosen' is empty"]),
        ({**PAIR, "chosen": [answer("x")]}, ["list and str", "must be texts"]),
        ({**PAIR, "chosen": 3}, ["int"]),
        (
            {"prompt": [USER], "chosen": [USER], "rejected": [answer("x")]},
            ["'chosen' must be one turn of the assistant"],
        ),
        (
            {"chosen": [answer("b")], "rejected": [answer("c")]},
            ["'prompt' has no last turn to answer"],
        ),
        ({"prompt": [], "chosen": [answer("b")], "rejected": []}, ["is empty"]),
        (
            {**BOTH, "prompt": "ba"},
            ["'chosen' and 'rejected' must begin alike, and with 'prompt'"],
        ),
        ({**BOTH, "prompt": [USER, answer("a"), USER]}, ["must begin alike"]),
        ({**BOTH, "prompt": []}, ["'prompt' is empty"]),
        ({**BOTH, "prompt": 3}, ["'prompt' holds int"]),
        ({**BOTH, "chosen": [answer("b")]}, ["'rejected' must be one turn"]),
        ({**BOTH, "chosen": [USER]}, ["'chosen' must be one turn"]),
        ({**BOTH, "chosen": []}, ["'chosen' is empty"]),
        ({**BOTH, "prompt": "ab", "chosen": "b"}, ["list and str"]),
    ],
)
def test_a_preference_that_cannot_be_used_is_one_line(example, words):
    with pytest.raises(UserError) as error:
        make_features(make()).parse(example)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("label", [None, "yes", 2, [1], 0.5])
def test_a_label_is_true_or_false(label):
    features = make_features(make({"loss": "kto"}))
    with pytest.raises(UserError, match=r"'label' = .* must be true or false"):
        features.parse({"prompt": "a", "completion": "b", "label": label})


@pytest.mark.parametrize(
    ("task", "sections", "words"),
    [
        ({"loss": "dop"}, {}, ["task.loss", "'dpo'"]),
        ({"margin": 1.0}, {}, ["task.margin = 1.0", "'dpo'"]),
        ({"loss": "ipo", "label_smoothing": 0.1}, {}, ["task.label_smoothing"]),
        ({"z_loss": 0.1}, {}, ["task.z_loss"]),
        ({"beta": 0.0}, {}, ["task.beta"]),
        ({"loss": "kto"}, {"num_microbatches": 2}, ["num_microbatches = 2", "'kto'"]),
        ({"distill": {"teacher": "x"}}, {}, ["task.distill.teacher"]),
        (
            {},
            {"data": {**SECTIONS["data"], "target_length": 23}},
            ["data.target_length = 23", "= 22"],
        ),
        ({}, {"data": {**SECTIONS["data"], "source": "text"}}, ["data.source"]),
    ],
)
def test_settings_that_a_loss_does_not_heed_are_refused(task, sections, words):
    with pytest.raises(ConfigError) as error:
        make(task, **sections)
    assert all(word in str(error.value) for word in words), error.value


@pytest.fixture(scope="module")
def setting():
    """Return a model, two sets of parameters, and a batch of ragged pairs."""
    config = make(model={**SECTIONS["model"], "vocab_size": 258})
    examples = [
        {"prompt": "ab" * i, "chosen": "x" * (i % 3 + 1), "rejected": "y" * (4 - i % 3)}
        for i in range(1, 8)
    ]
    features, rows = rows_of(config, examples)
    batch = features.batch([*rows, None], length=24)
    model = models.build(config.model, platform="cpu")
    init = jax.jit(model.init)
    params, other = (init(jax.random.key(i)) for i in range(2))
    return model, params, other, jax.tree.map(jnp.asarray, batch)


def test_the_sums_of_parts_are_those_of_the_whole(setting):
    model, params, other, batch = setting
    teacher = Teacher(model=model, params=other)
    task = tasks.TASKS["preference"](PreferenceConfig(beta=0.5), teacher)

    @jax.jit
    def loss(params, batch):
        return task.loss(model, params, batch, key=None)

    whole = loss(params, batch)
    assert float(whole.weight_sum) == 7.0
    halves = [loss(params, {k: x[i::2] for k, x in batch.items()}) for i in range(2)]
    for name in ("loss", "accuracy", "margin", "chosen_log_prob"):
        total = sum(float(half.metrics[name][0]) for half in halves)
        np.testing.assert_allclose(total, whole.metrics[name][0], rtol=1e-5)
    same = loss(other, batch)
    np.testing.assert_allclose(same.loss_sum / 7, np.log(2.0), rtol=1e-6)
    tiled = PreferenceConfig(beta=0.5, logits_gigabytes=1e-5)
    task = tasks.TASKS["preference"](tiled, teacher)
    again = jax.jit(lambda p, b: task.loss(model, p, b, key=None).loss_sum)
    np.testing.assert_allclose(again(params, batch), whole.loss_sum, rtol=1e-5)


def test_without_a_copy_the_reference_is_the_model_without_adapters():
    lora = {"lora": {"rank": 2, "targets": ("*",)}}
    config = make(model={**SECTIONS["model"], "vocab_size": 258, **lora})
    features, rows = rows_of(config, [PAIR])
    batch = jax.tree.map(jnp.asarray, features.batch(rows, length=24))
    model = models.build(config.model, platform="cpu")
    params = jax.jit(model.init)(jax.random.key(0))
    task = tasks.build(config.task)
    loss = jax.jit(lambda p: task.loss(model, p, batch, key=None).loss_sum)
    np.testing.assert_allclose(loss(params), np.log(2.0), rtol=1e-6)
    moved = jax.tree.map(lambda x: x + 0.1, params)
    assert abs(float(loss(moved)) - np.log(2.0)) > 1e-4
    plain = models.build(config.model.without_adapters(), platform="cpu")
    with pytest.raises(UserError, match="reference model"):
        jax.eval_shape(lambda p: task.loss(plain, p, batch, key=None), plain.shapes)


LORA = {"rank": 2, "targets": ("*",)}


def test_a_copy_is_needed_where_more_than_adapters_is_trained():
    adapted = {**SECTIONS["model"], "vocab_size": 258, "lora": LORA}
    plain = {**SECTIONS["model"], "vocab_size": 258}
    trained = lambda *patterns: {**SECTIONS["optim"], "trainable": patterns}
    assert needs_copy(make(model=plain))
    assert not needs_copy(make({"loss": "simpo"}, model=plain))
    assert not needs_copy(make(model=adapted))
    assert not needs_copy(make(model=adapted, optim=trained("*lora*")))
    assert needs_copy(make(model=adapted, optim=trained("*norm*")))
    assert needs_copy(make(model=adapted, optim=trained("*")))


@pytest.mark.slow
@pytest.mark.parametrize("trainable", [(), ("*norm*",)])
def test_a_run_begins_at_its_reference(tmp_path, monkeypatch, trainable):
    """Also if it begins with a run whose adapters have learned something."""
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
    file = tmp_path / "train.jsonl"
    file.write_text(f"{json.dumps(PAIR)}\n" * 16)
    shared = {
        "data": {**SECTIONS["data"], "path": str(file), "valid_path": str(file)},
        "num_steps": 3,
        "log": {"tensorboard": False, "every_steps": 1},
        "checkpoint": {"every_steps": 3},
        "eval": {"every_steps": 3},
    }
    model = {**SECTIONS["model"], "lora": LORA}
    assert loop.train(make({"loss": "simpo"}, model=model, **shared), tmp_path / "a")
    optim = {**SECTIONS["optim"], "trainable": trainable}
    init = {"init_from": str(tmp_path / "a")}
    again = make({"beta": 2.0}, model=model, optim=optim, **shared, **init)
    assert loop.train(again, tmp_path / "b")
    lines = (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()
    losses = [m["loss"] for m in map(json.loads, lines) if m["split"] == "train"]
    assert losses[0] == pytest.approx(np.log(2.0), abs=1e-6)
    assert abs(losses[-1] - np.log(2.0)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_a_run_learns_what_is_preferred(tmp_path, loss, monkeypatch):
    """And `eval` of its checkpoint finds the same."""
    from lmjax.training.evaluate_workdir import evaluate_workdir

    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
    words = ["ab", "ba", "aa", "bb"] * 8
    lines = [
        {"prompt": w, "completion": c, "label": c == "x"} for w in words for c in "xy"
    ]
    if loss == "dpo":
        lines = [{"prompt": w, "chosen": "x", "rejected": "y"} for w in words]
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = {**SECTIONS["data"], "path": str(file), "valid_path": str(file)}
    assert loop.train(make({"loss": loss}, data=data), tmp_path / "run")
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in metrics]
    first = next(m for m in found if m["split"] == "train")
    *_, last = (m for m in found if m["split"] == "valid")
    assert last["accuracy"] == 1.0 and last["margin"] > 0.3
    assert last["loss"] < first["loss"]
    (again,) = evaluate_workdir(tmp_path / "run", step=None, overrides=())
    assert again["loss"] == pytest.approx(last["loss"], rel=1e-5)
