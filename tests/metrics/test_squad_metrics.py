"""SQuAD's exact match and F1, on cases worked out by its official scripts' rules."""

import pytest

from lmjax.metrics.squad import (
    best_score,
    exact_match,
    score_answers,
    split_english,
    token_f1,
)


def test_english_is_normalized_as_by_squad():
    text = "  The U.S.A., a\tland -- an O'Neill\n"
    assert split_english(text) == ["usa", "land", "oneill"]
    assert split_english("Theatre an") == ["theatre"]
    assert split_english("the a, an!") == []
    assert split_english("Café “x”") == ["café", "“x”"]  # not ASCII: kept


@pytest.mark.parametrize(
    ("answer", "references", "exact", "words"),
    [
        ("the Denver Broncos!", ["Denver broncos"], 1.0, 1.0),
        ("Denver", ["Denver Broncos", "Carolina"], 0.0, 2 / 3),
        ("Carolina", ["Denver Broncos", "Carolina"], 1.0, 1.0),
        ("red red blue", ["red green red red"], 0.0, 2 * 2 / 7),
        ("green", ["red"], 0.0, 0.0),
        ("", [], 1.0, 1.0),
        ("x", [], 0.0, 0.0),
        ("", ["x"], 0.0, 0.0),
        ("the", ["x", "a"], 0.0, 0.0),  # a reference without words is none
        ("the", ["a"], 1.0, 1.0),
    ],
)
def test_scores(answer, references, exact, words):
    assert best_score(exact_match, answer, references) == exact
    assert best_score(token_f1, answer, references) == pytest.approx(words)


@pytest.mark.parametrize(
    ("language", "answer", "reference", "exact", "f1"),
    [
        ("", "北京市", "北京", 0.0, 4 / 5),  # by character, as in MLQA
        ("", "《北京》！", "北京", 1.0, 1.0),
        ("", "GPU 训练", "gpu训练", 1.0, 1.0),
        ("", "東京タワー", "東京", 0.0, 4 / 7),
        ("", "กรุงเทพ", "กรุง", 0.0, 8 / 11),
        ("", "новая Москва", "Москва", 0.0, 2 / 3),
        ("", "पूर्व प्रधानमन्त्री।", "पूर्व प्रधानमन्त्री", 1.0, 1.0),
        ("", "the Café", "café", 1.0, 1.0),
        ("de", "die „Straße“", "Straße", 1.0, 1.0),
        ("es", "el niño", "niño", 1.0, 1.0),
        ("vi", "những con mèo", "con mèo", 1.0, 1.0),
        ("ar", "المدرسة", "مدرسة", 1.0, 1.0),
        ("zho_Hans", "1999年", "1999", 0.0, 2 / 3),
        ("fr", "the chat", "chat", 0.0, 2 / 3),  # no French article
        ("en-GB", "the cat", "cat", 1.0, 1.0),
    ],
)
def test_answers_in_other_languages_are_scored_as_by_mlqa(
    language, answer, reference, exact, f1
):
    found = score_answers([answer], [[reference]], language=language)
    assert found == {"exact_match": exact, "f1": pytest.approx(f1)}


def test_the_script_of_all_references_decides_where_one_shows_none():
    found = score_answers(["1999年", "北京"], [["1999"], ["北京"]])
    assert found["f1"] == pytest.approx((2 / 3 + 1) / 2)
    mixed = score_answers(["the cat", "北京市"], [["cat"], ["北京"]], language="")
    assert mixed["f1"] == pytest.approx((1 + 4 / 5) / 2)
