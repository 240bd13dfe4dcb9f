"""Spans in every scheme of tags, against seqeval where it knows the scheme."""

import logging
import random

import pytest

from lmjax.errors import UserError
from lmjax.metrics import spans

pytest.importorskip("seqeval")

# One sentence in each scheme: A of two words, A of one right after it, B of three.
SCHEMES = {
    "IOB1": "I-A I-A B-A O I-B I-B I-B",
    "IOB2": "B-A I-A B-A O B-B I-B I-B",
    "IOE1": "I-A E-A I-A O I-B I-B I-B",
    "IOE2": "I-A E-A E-A O I-B I-B E-B",
    "IOBES": "B-A E-A S-A O B-B I-B E-B",
    "BILOU": "B-A L-A U-A O B-B I-B L-B",
    "BMES": "B-A E-A S-A O B-B M-B E-B",
}
FOUND = {("A", 0, 1), ("A", 2, 2), ("B", 4, 6)}
SPELLINGS = (str, str.lower, lambda tags: tags.replace("-", "_"))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_spans_of_every_scheme_are_found(scheme):
    for spell in SPELLINGS:
        tags = spell(SCHEMES[scheme]).split()
        expected = FOUND if spell is not str.lower else spelled_small(FOUND)
        assert spans.find_spans(tags) == expected
        assert spans.find_spans(tags, scheme=scheme, strict=True) == expected
        labels = [*dict.fromkeys([*tags, spell("O")])]
        assert spans.find_scheme(labels, [tags, tags]) == scheme
        spans.check_labels(labels, scheme=scheme, strict=True)
        repaired = spans.repair_tags(tags, labels=labels, scheme=scheme)
        assert repaired == tags  # what is right stays


def spelled_small(found):
    return {(name.lower(), *ends) for name, *ends in found}


def test_spans_without_types_and_of_bmewo():
    assert spans.find_spans(["B", "M", "E", "O", "W"]) == {("_", 0, 2), ("_", 4, 4)}
    assert spans.find_spans(["b-x", "m-x", "e-x", "o", "w-y"]) == {
        ("x", 0, 2),
        ("y", 4, 4),
    }
    assert spans.guess_scheme(["B", "M", "E", "S"]) == "BMES"
    for none in ("S M L", "NN O", "S O", "PER-B PER-I O", "B-X U-X M-X"):
        assert spans.guess_scheme(none.split()) is None, none


@pytest.mark.parametrize("name", ["IOB1", "IOB2", "IOE1", "IOE2", "IOBES", "BILOU"])
def test_strict_scores_are_those_of_the_library(name):
    library = pytest.importorskip("seqeval.metrics")
    scheme = getattr(pytest.importorskip("seqeval.scheme"), name)
    rng = random.Random(0)
    labels = [f"{c}-{t}" for c in spans.LETTERS[name] for t in "XY" if c != "O"] + ["O"]
    true = [rng.choices(labels, k=9) for _ in range(60)]
    noisy = [[t if rng.random() < 0.7 else rng.choice(labels) for t in s] for s in true]
    found = spans.score_spans(noisy, true, scheme=name, strict=True)["f1"]
    expected = library.f1_score(true, noisy, mode="strict", scheme=scheme)
    assert found == pytest.approx(expected, rel=1e-12)


def test_repair_spells_tags_as_the_labels_do():
    labels = ("b_per", "i_per", "o")
    assert spans.repair_tags(["i_per", "i_per"], labels=labels) == ["b_per", "i_per"]
    bilou = ("B-X", "I-X", "L-X", "U-X", "O")
    tags = ["O", "I-X", "L-X"]
    fixed = spans.repair_tags(tags, labels=bilou, scheme="BILOU")
    assert fixed == ["O", "B-X", "L-X"]
    assert spans.find_spans(fixed) == spans.find_spans(tags)


def test_labels_of_no_scheme_are_one_line_or_a_warning(caplog, monkeypatch):
    monkeypatch.setattr(spans, "_warned", set())
    check = spans.check_labels
    with pytest.raises(UserError, match=r"'BILOU': has no 'S-X'; .* B, I, L, O, U"):
        check(("B-X", "S-X", "O"), scheme="BILOU", strict=False)
    with pytest.raises(UserError, match=r"B-X, L-X, M-X are tags of no one scheme"):
        check(("B-X", "L-X", "M-X"), scheme="auto", strict=False)
    with pytest.raises(UserError, match=r"strict = True: .* no tags"):
        check(("NN", "VB"), scheme="auto", strict=True)
    check(("NN", "VB"), scheme="auto", strict=False)
    assert not caplog.text
    with caplog.at_level(logging.WARNING, logger="lmjax"):
        check(("PER-B", "PER-I", "X"), scheme="auto", strict=False)
        check(("B:PER", "I:PER", "O"), scheme="auto", strict=False)
        spans.score_spans([["B-X"]], [["O"]])
    assert caplog.text.count("no spans are found in tags such as") == 2
    assert "the true tags have no spans" in caplog.text
