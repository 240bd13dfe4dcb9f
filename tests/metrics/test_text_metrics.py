"""Metrics of texts against the libraries, and by hand."""

import dataclasses
import importlib
import logging
import typing

import pytest

from lmjax.config.decoding import Metric
from lmjax.errors import UserError
from lmjax.metrics import text as text_metrics
from lmjax.metrics.text import TextOptions, compute_metrics, first_sentence

ANSWERS = ["the cat sat on the mat", "a dog barks loudly today", "no"]
TARGETS = ["the cat sat on a mat", "the dog barked loudly today", "no"]
SOURCES = ["The cat sat. It slept.", "A dog\nbarked", "no"]
EVERY = tuple(text_metrics.METRICS)


def found(*metrics, answers=ANSWERS, targets=TARGETS, sources=SOURCES, **options):
    return compute_metrics(
        metrics,
        predictions=answers,
        targets=targets,
        sources=sources,
        options=TextOptions(**options),
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
    monkeypatch.setattr(text_metrics, "_logged", set())
    with caplog.at_level(logging.INFO, logger="lmjax"):
        found("bleu", "chrf")
        found("bleu", "chrf")
    assert caplog.text.count("tok:13a") == caplog.text.count("nc:6") == 1


@pytest.mark.slow
def test_rouge_is_the_mean_f_measure_of_stems():
    pytest.importorskip("rouge_score")
    values = found("rouge")
    # "barks" and "barked" have one stem; "a dog barks loudly today" has 4 of 5.
    assert values["rouge1"] == pytest.approx((5 / 6 + 4 / 5 + 1) / 3)
    assert values["rouge2"] == pytest.approx((3 / 5 + 3 / 4 + 0) / 3)
    assert values["rougeL"] == pytest.approx((5 / 6 + 4 / 5 + 1) / 3)
    lead = found("lead1_rouge")
    assert lead["lead1_rouge1"] == pytest.approx((2 * 3 / 9 + 2 / 7 + 1) / 3)
    assert lead.keys() == {f"lead1_{name}" for name in values}


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
        ("今天很好。我们去玩。", "今天很好。"),
        ("彼は「行く。」と言った。", "彼は「行く。」"),
        ("यह है। वह है।", "यह है।"),
        ("هل هذا؟ نعم.", "هل هذا؟"),
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


# Near answers, and the values of sacrebleu with the tokenizer of the language.
NEAR = {
    "zh": ("今天天气很好，我们去公园散步。", "今天天气很好，我们去公园玩。"),
    "ja": ("今日は天気がとても良い。", "今日は天気がすごく良い。"),
    "ko": ("오늘 날씨가 매우 좋다.", "오늘은 날씨가 매우 좋다."),
    "th": ("วันนี้อากาศดีมาก", "วันนี้อากาศดี"),
    "my": ("မင်္ဂလာပါ", "မင်္ဂလာ"),
    "bo": ("བོད་སྐད་ནི་སྐད་ཡིག་ཅིག་ཡིན།", "བོད་སྐད་ནི་སྐད་ཡིག་གཅིག་རེད།"),
    "jv": ("ꦱꦸꦒꦼꦁꦫꦮꦸꦃ", "ꦱꦸꦒꦼꦁꦠꦼꦏ"),
    "ru": ("Мама мыла раму вчера утром.", "Мама мыла раму вчера."),
}
TOKENIZERS = {
    "zh": "zh",
    "ja": "ja-mecab",
    "ko": "ko-mecab",
    "th": "char",
    "my": "char",
    "bo": "char",
    "jv": "char",
}


@pytest.mark.parametrize("language", NEAR)
def test_bleu_is_tokenized_by_the_language_or_the_script(language):
    sacrebleu = pytest.importorskip("sacrebleu")
    tokenizer = TOKENIZERS.get(language, "13a")
    if "mecab" in tokenizer:
        pytest.importorskip("MeCab" if language == "ja" else "mecab_ko")
    answer, target = NEAR[language]
    bleu = sacrebleu.BLEU(tokenize=tokenizer).corpus_score([answer], [[target]]).score
    assert bleu > 10
    for options in ({}, {"language": language}, {"bleu_tokenizer": tokenizer}):
        values = found("bleu", answers=[answer], targets=[target], **options)
        assert values["bleu"] == pytest.approx(bleu, rel=1e-12)
        signed = text_metrics.sign_metrics(
            ("bleu",), [target], options=TextOptions(**options)
        )
        assert f"tok:{tokenizer}" in signed["bleu"]


EQUAL = [
    *(target for _, target in NEAR.values()),
    "पूर्व प्रधानमन्त्री शिंजो",
    "ذهب الولد الى المدرسة",
    "καλημέρα κόσμε",
    "שלום עולם",
    "ສະບາຍດີ",
    "សួស្តី",
    "Größe über Straßen",
    "naïve café",
]


def test_rouge_of_equal_texts_is_1_in_every_script():
    pytest.importorskip("rouge_score")
    for text in EQUAL:
        values = found("rouge", answers=[text], targets=[text])
        assert values["rouge1"] == values["rougeL"] == values["rougeLsum"] == 1, text
    mixed = [*EQUAL, *TARGETS]
    assert found("rouge", answers=mixed, targets=mixed)["rouge1"] == 1


def test_rouge_counts_words_of_spaced_scripts_and_characters_of_others():
    pytest.importorskip("rouge_score")
    pairs = {
        ("Мама мыла", "мама мыла раму"): 4 / 5,
        ("पूर्व प्रधान", "पूर्व मन्त्री"): 1 / 2,
        ("für", "fur"): 0,
        ("北京市", "北京"): 4 / 5,
        ("می‌خواهم بروم", "میخواهم بروم"): 1,  # a joiner is no space
        ("cafe\u0301 là", "café là"): 1,  # composed or not
    }
    for (answer, target), expected in pairs.items():
        value = found("rouge", answers=[answer], targets=[target])["rouge1"]
        assert value == pytest.approx(expected), target


def test_english_rouge_is_the_library_s_bit_for_bit():
    library = pytest.importorskip("rouge_score.rouge_scorer")
    targets = [
        "The naïve café owner said that “it’s fine” – the U.S. paid 3.5%.",
        "Zoë runs quickly to the barking dogs, running\nand jumped over 日本 and you.",
        "no",
    ]
    answers = ["A naive cafe owner paid.", "Zoe ran to the barked\nand jumping", "yes"]
    names = ("rouge1", "rouge2", "rougeL", "rougeLsum")
    scorer = library.RougeScorer([*names], use_stemmer=True)
    scores = [scorer.score(t, a) for t, a in zip(targets, answers, strict=True)]
    expected = {name: sum(s[name].fmeasure for s in scores) / 3 for name in names}
    assert found("rouge", answers=answers, targets=targets) == expected
    assert found("rouge", answers=answers, targets=targets, language="en") == expected
    other = found("rouge", answers=answers, targets=targets, language="fr")
    assert other["rouge1"] < expected["rouge1"]  # not stemmed


def test_a_metric_that_cannot_judge_the_texts_says_so(caplog, monkeypatch):
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    monkeypatch.setattr(text_metrics, "_logged", set())
    chinese, signs = [NEAR["zh"][1]], ["!!!", "?"]
    assert found("bleu", answers=chinese, targets=chinese, bleu_tokenizer="13a")
    assert "100% of the words of the references" in caplog.text
    found("bleu", answers=["a b c"], targets=["a b c"])
    assert "no reference has 4 words or more" in caplog.text
    found("rouge", answers=signs, targets=signs)
    assert "2 of 2 references have no words" in caplog.text


def test_what_a_bleu_tokenizer_lacks_is_one_line_at_the_start(monkeypatch, tmp_path):
    pytest.importorskip("sacrebleu")
    module = importlib.import_module("sacrebleu.tokenizers.tokenizer_ja_mecab")
    monkeypatch.setattr(module, "MeCab", None)
    monkeypatch.setattr(
        importlib.import_module("sacrebleu.utils"), "SACREBLEU_DIR", tmp_path
    )
    text_metrics._make_bleu.cache_clear()
    for options, why in (
        ({"bleu_tokenizer": "ja-mecab"}, r"'ja-mecab'.*'sacrebleu\[ja\]'"),
        ({"language": "jpn_Jpan"}, r"'ja-mecab'.*'sacrebleu\[ja\]'"),
        ({"bleu_tokenizer": "flores200"}, r"'flores200'.*models/flores200"),
    ):
        with pytest.raises(UserError, match=why):
            text_metrics.metric_names(("bleu",), TextOptions(**options))
    with pytest.raises(UserError, match=r"'sacrebleu\[ja\]'"):  # by the script
        text_metrics.sign_metrics(("bleu",), [NEAR["ja"][1]])
    text_metrics._make_bleu.cache_clear()
