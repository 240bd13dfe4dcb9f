"""Metrics of texts against the libraries, and by hand."""

import dataclasses
import logging
import typing

import pytest

from lmjax.config.decoding import Metric
from lmjax.errors import UserError
from lmjax.metrics import text as text_metrics
from lmjax.metrics.text import compute_metrics, first_sentence

ANSWERS = ["the cat sat on the mat", "a dog barks loudly today", "no"]
TARGETS = ["the cat sat on a mat", "the dog barked loudly today", "no"]
SOURCES = ["The cat sat. It slept.", "A dog\nbarked", "no"]
EVERY = tuple(text_metrics.METRICS)


def found(*metrics, answers=ANSWERS, targets=TARGETS, sources=SOURCES):
    return compute_metrics(
        metrics, predictions=answers, targets=targets, sources=sources
    )


def test_bleu_and_chrf_are_of_the_whole_corpus():
    sacrebleu = pytest.importorskip("sacrebleu")
    both = found("bleu", "chrf")
    assert both["bleu"] == sacrebleu.corpus_bleu(ANSWERS, [TARGETS]).score
    assert both["chrf"] == sacrebleu.corpus_chrf(ANSWERS, [TARGETS]).score
    each = [found("bleu", answers=[a], targets=[t])["bleu"] for a, t in PAIRS]
    assert both["bleu"] != pytest.approx(sum(each) / len(each))
    assert found("bleu", answers=TARGETS)["bleu"] == pytest.approx(100)


PAIRS = list(zip(ANSWERS, TARGETS, strict=True))


def test_the_signature_is_logged_once(caplog, monkeypatch):
    pytest.importorskip("sacrebleu")
    monkeypatch.setattr(text_metrics, "_logged_signatures", set())
    with caplog.at_level(logging.INFO, logger="lmjax"):
        found("bleu", "chrf")
        found("bleu", "chrf")
    assert caplog.text.count("tok:13a") == caplog.text.count("nc:6") == 1


def test_rouge_is_the_mean_f_measure_of_stems():
    pytest.importorskip("rouge_score")
    values = found("rouge")
    # "barks" and "barked" have one stem; "a dog barks loudly today" has 4 of 5.
    assert values["rouge1"] == pytest.approx((5 / 6 + 4 / 5 + 1) / 3)
    assert values["rouge2"] == pytest.approx((3 / 5 + 3 / 4 + 0) / 3)
    assert values["rougeL"] == pytest.approx((5 / 6 + 4 / 5 + 1) / 3)
    lead = found("lead1_rouge")
    assert lead["lead1_rouge1"] == pytest.approx((2 * 3 / 9 + 2 / 7 + 1) / 3)
    assert lead.keys() == {"lead1_rouge1", "lead1_rouge2", "lead1_rougeL"}


def test_exact_match_passes_over_space_around():
    assert found("exact_match", answers=["a ", "b", "no"]) == {"exact_match": 1 / 3}


def test_the_names_are_those_of_the_values():
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    assert text_metrics.metric_names(EVERY) == tuple(found(*EVERY))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("One line. And more.\nAnother", "One line. And more."),
        ("He said 'no.' Then he left.", "He said 'no.'"),
        ("Is it 3.5? Yes.", "Is it 3.5?"),
        ("  no end ", "no end"),
        ("Ends. ", "Ends."),
        ("", ""),
    ],
)
def test_the_first_sentence(text, sentence):
    assert first_sentence(text) == sentence


def test_the_table_has_all_that_a_config_may_name():
    assert set(EVERY) == set(typing.get_args(Metric))


def test_some_metrics_need_no_predictions():
    pytest.importorskip("rouge_score")
    assert text_metrics.need_predictions(EVERY)
    assert not text_metrics.need_predictions(("lead1_rouge",))
    assert found("lead1_rouge", answers=[]) == found("lead1_rouge")


def test_a_missing_library_is_one_line(monkeypatch):
    bleu = dataclasses.replace(text_metrics.METRICS["bleu"], library="is_not_here")
    monkeypatch.setitem(text_metrics.METRICS, "bleu", bleu)
    with pytest.raises(UserError, match=r"'bleu' needs .*pip install 'lmjax\[tasks"):
        text_metrics.metric_names(("exact_match", "bleu"))
