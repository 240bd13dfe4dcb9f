"""SQuAD's exact match and F1, on cases worked out by its official scripts' rules."""

import pytest

from lmjax.metrics.squad import best_score, exact_match, normalize, token_f1


def test_normalized():
    assert normalize("  The U.S.A., a\tland -- an O'Neill\n") == "usa land oneill"
    assert normalize("Theatre an") == "theatre"
    assert normalize("the a, an!") == ""
    assert normalize("Café 日本") == "café 日本"


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
