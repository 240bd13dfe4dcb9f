"""Explanations of predictions, by each method and for each task."""

import json

import jax
import numpy as np
import pytest

from lmjax import models
from lmjax.config.experiment import MeshConfig, parse
from lmjax.data.tokenizers.plain import Bytes
from lmjax.errors import UserError
from lmjax.inference.explain import METHODS, roll_out
from lmjax.inference.explanation import ExplainedToken, Explanation
from lmjax.inference.language_model import LanguageModel
from lmjax.parallel import sharding

SIZE = {"dim": 16, "num_layers": 2, "max_length": 64, "vocab_size": 258}
HEADS = {**SIZE, "num_heads": 2}
MODELS = {
    "encoder": {**HEADS, "kind": "encoder", "pooler": True, "num_token_types": 2},
    "decoder": {**HEADS, "kind": "decoder", "tie_embeddings": False},
    "recurrent": {**SIZE, "kind": "recurrent", "hidden_dim": 12},
    "encoder_decoder": {
        **HEADS,
        "kind": "encoder_decoder",
        "num_layers": 1,
        "start_id": 0,
    },
    "recurrent_encoder_decoder": {
        **SIZE,
        "kind": "recurrent_encoder_decoder",
        "hidden_dim": 12,
        "num_layers": 1,
        "start_id": 0,
    },
}
TASKS = {
    "classify": {"kind": "classify", "labels": ("neg", "pos")},
    "tag": {"kind": "tag", "labels": ("O", "B-X", "I-X")},
    "span_qa": {
        "kind": "span_qa",
        "stride": 8,
        "max_question_tokens": 12,
        "max_answer_tokens": 4,
    },
    "seq2seq": {"kind": "seq2seq", "write": {"max_tokens": 6}},
    "causal_lm": {"kind": "causal_lm"},
}
TEXT = "nice fïlm"
EXAMPLES = {
    "classify": TEXT,
    "tag": {"tokens": ["Ann", "is", "hére"]},
    "span_qa": {"question": "who is it?", "context": "It is Ann. " * 4},
    "seq2seq": TEXT,
    "causal_lm": TEXT,
}
WRITERS = ("encoder_decoder", "recurrent_encoder_decoder")
CASES = [
    ("encoder", "classify"),
    ("recurrent", "classify"),
    ("encoder", "tag"),
    ("encoder", "span_qa"),
    ("decoder", "causal_lm"),
    pytest.param("encoder_decoder", "seq2seq", marks=pytest.mark.slow),
    pytest.param("recurrent_encoder_decoder", "seq2seq", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def make_lm(random_params):
    found = {}

    def make(kind, task):
        if (kind, task) in found:
            return found[kind, task]
        data = {"source": "jsonl", "path": "gone", "length": 32}
        if task == "causal_lm":
            data = {"source": "python_stdlib", "length": 32}
        if task == "seq2seq":
            data["target_length"] = 16
        config = parse(
            {
                "model": MODELS[kind],
                "tokenizer": {"kind": "bytes"},
                "data": data,
                "task": TASKS[task],
                "mesh": {"data": 1},
            }
        )
        model = models.build(config.model.for_inference(), platform="cpu")
        mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
        # The gates of random parameters are half open: little of a text arrives.
        scale = 4.0 if "recurrent" in kind else 1.0
        params = jax.tree.map(lambda x: scale * x, random_params(model))
        found[kind, task] = LanguageModel(
            config, Bytes(bos=True), model, params, mesh, 1
        )
        return found[kind, task]

    return make


@pytest.mark.parametrize(("kind", "task"), CASES)
def test_integrated_gradients_add_up_to_the_change_of_the_prediction(
    make_lm, kind, task
):
    lm = make_lm(kind, task)
    target = "yes" if task == "seq2seq" else None
    found = lm.explain(EXAMPLES[task], target=target)
    change = found.value - found.baseline_value
    assert abs(change) > 1e-2
    assert found.scores.sum() == pytest.approx(change, rel=1e-2)
    assert found.completeness_error < 1e-2
    assert np.count_nonzero(found.scores) > 1
    for token in found.tokens:
        assert found.texts[token.text][token.start : token.end]


def test_a_token_left_out_is_a_token_replaced(make_lm):
    """By one whose vector is zeros, put there by hand."""
    lm = make_lm("decoder", "causal_lm")
    target = "s"
    found = lm.explain(TEXT, "leave_one_out", target=target)
    ids = [lm.tokenizer.bos_id, *TEXT.encode()]
    table = lm.params["embed"]["embedding"]

    def value(place):
        params = {**lm.params, "embed": {"embedding": table.at[0].set(0.0)}}
        tokens = [0 if i == place else token for i, token in enumerate(ids)]
        logits = np.float64(jax.jit(lm.model.apply)(params, row(tokens))[0, -1])
        return logits[ord(target)] - np.log(np.exp(logits).sum())

    # Id 0 is in no text, and its vector is zeros here.
    changes = [value(-1) - value(i) for i in range(1, len(ids))]
    np.testing.assert_allclose(found.scores, changes, atol=2e-5)
    assert found.value == pytest.approx(value(-1), abs=1e-5)
    # The two bytes of one character cover the same span.
    spans = [(token.start, token.end) for token in found.tokens]
    assert spans == [(i, i + 1) for i in range(6)] + [(6, 7)] * 2 + [(7, 8), (8, 9)]


def row(tokens):
    positions = np.arange(len(tokens), dtype=np.int32)[None]
    ones = np.ones_like(positions)
    return {"tokens": np.array([tokens]), "segments": ones, "positions": positions}


def test_the_rollout_follows_the_weights_of_all_layers(make_lm):
    lm = make_lm("encoder", "classify")
    found = lm.explain(TEXT, "attention_rollout")
    ids = lm.predictor.encode_examples(lm.predictor.parse_all([TEXT])).rows[0][0]
    weights = lm.attention([ids.columns["tokens"].tolist()])
    assert weights.cross is weights.source is None
    own = np.float64(weights.own)[:, 0]
    assert own.shape == (2, 2, *[len(ids.columns["tokens"])] * 2)
    np.testing.assert_allclose(own.sum(axis=-1), 1.0, rtol=1e-6)
    first, second = (
        layer.mean(axis=0) / 2 + np.eye(len(layer[0])) / 2 for layer in own
    )
    arrived = (second @ first)[0]  # at the first token, which is pooled
    np.testing.assert_allclose(arrived, roll_out(own)[0])
    places = np.flatnonzero(np.isin(ids.columns["tokens"], [*TEXT.encode()]))
    np.testing.assert_allclose(found.scores, arrived[places], rtol=1e-4)
    labels = [
        lm.explain({"text": TEXT}, "attention_rollout", target=label)
        for label in ("neg", "pos")
    ]
    assert sum(np.exp(label.value) for label in labels) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("kind", WRITERS)
def test_attention_to_a_source_has_a_row_for_each_token_of_the_target(make_lm, kind):
    lm = make_lm(kind, "seq2seq")
    found = lm.explain(TEXT, "attention", target="abc")
    pieces = [lm.tokenizer.id_to_piece(i) for i in (*b"abc", lm.tokenizer.eos_id)]
    assert found.rows == tuple(pieces)
    ids = [*lm.model.config.decoder_prefix_ids, *b"abc"]
    suffix = [*lm.tokenizer.suffix_ids]
    source = [*lm.tokenizer.prefix_ids, *TEXT.encode(), *suffix]
    weights = lm.attention([ids, ids], source=[source, source[::-1]])
    np.testing.assert_allclose(np.asarray(weights.cross).sum(axis=-1), 1, rtol=1e-5)
    expected = np.asarray(weights.cross)[:, 0].mean(axis=(0, 1))
    kept = slice(len(lm.tokenizer.prefix_ids), len(source) - len(suffix))
    np.testing.assert_allclose(found.scores, expected[:, kept], rtol=1e-4)
    # A token's weights do not depend on those after it.
    changed = lm.explain(TEXT, "attention", target="abd").scores
    np.testing.assert_allclose(found.scores[:3], changed[:3], rtol=1e-5)
    with pytest.raises(UserError, match="layer = 7: must be from 0"):
        lm.explain(TEXT, "attention", target="abc", layer=7)


def test_the_logit_lens_ends_with_what_the_model_predicts(make_lm):
    lm = make_lm("decoder", "causal_lm")
    found = lm.explain(TEXT, "logit_lens")
    ids = [lm.tokenizer.bos_id, *TEXT.encode()]
    logits = np.float64(lm.logits([ids]))[0]
    best = [lm.tokenizer.id_to_piece(int(i)) for i in logits.argmax(axis=-1)]
    assert found.cells[-1] == tuple(best)
    assert found.target == lm.tokenizer.decode([int(logits[-1].argmax())])
    assert found.rows == ("embeddings", "layer 1", "layer 2")
    assert [token.piece for token in found.tokens][1:3] == ["<0x6E>", "<0x69>"]
    assert [(token.start, token.end) for token in found.tokens][:2] == [(0, 0), (0, 1)]
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = [log_probs[i, j] for i, j in enumerate(ids[1:])]
    np.testing.assert_allclose(found.scores[-1, :-1], expected, atol=1e-4)
    assert found.scores[-1, -1] == pytest.approx(found.value, abs=1e-5)
    # The first layer reads what the embedding alone says.
    states = lm.hidden_states([ids])
    assert states.shape == (3, 1, len(ids), 16)
    np.testing.assert_allclose(states[-1], lm.hidden([ids]), rtol=1e-5, atol=1e-6)


REFUSED = [
    ("encoder", "classify", "rollout", "did you mean 'attention_rollout'"),
    ("encoder", "classify", "logit_lens", "'classify' predicts no tokens"),
    ("encoder_decoder", "seq2seq", "attention_rollout", "has two stacks"),
    ("recurrent", "classify", "attention", "'recurrent' has no attention"),
    ("recurrent", "classify", "attention_rollout", "no layers of attention"),
    ("recurrent_encoder_decoder", "seq2seq", "logit_lens", "no blocks"),
]


@pytest.mark.parametrize(("kind", "task", "method", "why"), REFUSED)
def test_methods_that_mean_nothing_are_refused(make_lm, kind, task, method, why):
    with pytest.raises(UserError, match=why):
        make_lm(kind, task).explain(EXAMPLES[task], method)


def test_wrong_targets_and_options_are_refused(make_lm):
    cases = [
        ("encoder", "classify", {"target": "poss"}, "did you mean 'pos'"),
        ("encoder", "classify", {"baseline": "pad"}, "must be 'zero' or 'mask'"),
        ("encoder", "classify", {"baseline": "mask"}, "has no mask token"),
        ("encoder", "classify", {"layer": 1}, "method='attention' alone"),
        ("encoder", "tag", {"target": 3}, "index of a word, 0 to 2"),
        ("encoder", "span_qa", {"target": "Bob"}, "is not in the context"),
        ("decoder", "causal_lm", {"target": 5}, "must be a text"),
        ("decoder", "causal_lm", {"target": "x" * 80}, "max_length = 64"),
        ("decoder", "causal_lm", {"target": ""}, "too few tokens"),
    ]
    for kind, task, options, why in cases:
        with pytest.raises(UserError, match=why):
            make_lm(kind, task).explain(EXAMPLES[task], **options)
    lm = make_lm("recurrent", "classify")
    for read in (lm.attention, lm.hidden_states):
        with pytest.raises(UserError, match="'recurrent' has no"):
            read([[1, 2]])
    with pytest.raises(UserError, match="must be a text, not int"):
        make_lm("decoder", "causal_lm").explain(5)


def test_one_word_is_explained_by_its_index(make_lm):
    lm = make_lm("encoder", "tag")
    tags = lm.predict([EXAMPLES["tag"]])[0]["tags"]
    whole = lm.explain(EXAMPLES["tag"], "leave_one_out")
    words = [lm.explain(EXAMPLES["tag"], "leave_one_out", target=i) for i in range(3)]
    assert words[2].target == f"hére: {tags[2]}"
    assert sum(word.value for word in words) == pytest.approx(whole.value, rel=1e-5)
    covered = "".join(whole.texts[0][t.start : t.end] for t in whole.tokens)
    assert whole.texts == ("Ann is hére",)
    assert covered.replace("éé", "é").replace(" ", "") == "Annishére"


def test_an_explanation_is_shown_in_full_and_safely():
    texts = ("<b>no & good", "second")
    tokens = [ExplainedToken("<b>", 0, 3), ExplainedToken("good", 8, 12)]
    tokens += [ExplainedToken("second", 0, 6, 1)]
    scores = np.array([0.0, 2.0, -1.0])
    found = Explanation(
        method="leave_one_out",
        target="a <label>",
        value=-0.5,
        texts=texts,
        tokens=tuple(tokens),
        scores=scores,
    )
    page = found.to_html()
    assert found._repr_html_() == page
    assert "<b>no" not in page and "&lt;b&gt;" in page and "a &lt;label&gt;" in page
    assert "src=" not in page and "href" not in page and "<script" not in page
    assert "rgb(46, 160, 67)" in page  # the largest of all
    shown = found.__rich__()
    assert shown.plain.splitlines()[1:] == [texts[0], texts[1]]
    assert found.top(2) == [("good", 2.0), ("second", -1.0)]
    assert json.loads(json.dumps(found.to_dict()))["scores"] == [0.0, 2.0, -1.0]
    rows = Explanation(
        method="attention",
        target="x",
        value=0.0,
        texts=texts,
        tokens=tuple(tokens),
        scores=np.eye(2, 3),
        rows=("r<", "s"),
    )
    assert "r&lt;" in rows.to_html() and rows.to_html().count("<td") == 6


def test_every_method_is_described_where_it_is_called():
    assert all(method in LanguageModel.explain.__doc__ for method in METHODS)
