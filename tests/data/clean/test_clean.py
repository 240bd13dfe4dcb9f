"""`lmjax clean`: what each rule takes, the order, the bytes after a kill."""

import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from lmjax.cli.main import main
from lmjax.data.clean.lines import LINE_RULES, leave_out_lines
from lmjax.data.clean.measures import Measured
from lmjax.data.clean.personal import KINDS, Redactor, is_card, is_iban
from lmjax.data.clean.rules import RULES, find_broken
from lmjax.data.clean.settings import choose

RNG = random.Random(0)
LETTERS = "abcdefghijklmnop"
WORDS = ["".join(RNG.choices(LETTERS, k=RNG.randint(3, 9))) for _ in range(900)]


def prose(seed, count=80):
    """Return a text of random words that breaks no rule of Gopher."""
    rng = random.Random(seed)
    lines = []
    for _ in range(count // 10):
        words = ["the", *rng.sample(WORDS, 8), "of"]
        lines.append(" ".join(words).capitalize() + ".")
    return "\n".join(lines)


def write_jsonl(path, texts):
    rows = [{"id": i, "text": text} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def clean(source, output, *flags):
    report = output.with_name(".report.json")
    command = ["clean", f"--input={source}", f"--output={output}", "--num_workers=1"]
    assert main([*command, f"--report={report}", *flags]) == 0
    return json.loads(report.read_text())


def ids(path):
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


GOOD = prose(1)
BROKEN = {
    "min_words": "the words of a short text",
    "max_words": "the and " * 50_001,
    "min_mean_word_length": "of a b c d e f g h to " * 6 + "the and",
    "max_mean_word_length": "the of " + "abcdefghijklmnop " * 60,
    "max_hash_ratio": GOOD + " #" * 30,
    "max_ellipsis_ratio": GOOD + " well..." * 20,
    "max_bullet_lines": "\n".join(f"- {line}" for line in GOOD.split("\n")),
    "max_ellipsis_lines": GOOD.replace(".\n", "...\n"),
    "min_alphabetic_words": GOOD + " 12" * 40,
    "min_stop_words": " ".join(WORDS[:90]),
    "max_control_characters": GOOD + "\x00\x01\x02",
    "max_longest_word": GOOD + " " + "x" * 1001,
    "max_duplicate_lines": GOOD + ("\n" + GOOD.split("\n")[0]) * 5,
    "max_duplicate_paragraphs": (GOOD[:200] + "\n\n") * 2,
    "max_duplicate_line_characters": GOOD + "\n" + GOOD.split("\n")[0] * 2,
    "max_duplicate_paragraph_characters": GOOD + "\n\n" + GOOD,
    "max_top_2gram": GOOD + " alpha beta" * 30,
    "max_top_3gram": GOOD + " alpha beta gamma" * 14,
    "max_top_4gram": GOOD + " alpha beta gamma delta" * 9,
    "max_duplicate_5grams": GOOD + " " + " ".join(GOOD.split()[:5]),
    "min_sentences": "One. Two.",
    "max_curly_brackets": "if (x) { return; }",
    "max_lorem_ipsum": "Lorem ipsum dolor sit amet.",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_rule_takes_what_it_names(name):
    limit = 0.05 if name == "max_duplicate_5grams" else RULES[name].limit
    if name == "max_duplicate_line_characters":
        limit = 0.05
        text = GOOD + "\n" + GOOD.split("\n")[0]
    else:
        text = BROKEN[name]
    found = find_broken(Measured(text), {name: limit})
    assert found is not None and found[0] == name
    assert found[1] > limit if name.startswith("max_") else found[1] < limit


def test_text_that_is_fine_breaks_no_rule():
    limits = choose(rules=("characters", "gopher", "gopher_repetition", "c4")).limits
    assert {*limits} == {*RULES, *LINE_RULES}
    assert find_broken(Measured(GOOD), limits) is None
    assert leave_out_lines(GOOD, limits) == (GOOD, {})


def test_shares_of_ngrams_count_characters_once():
    """Computed by hand: two of 5 + 2 words are repeated, letters counted."""
    document = Measured("aa bbb aa bbb c")
    assert RULES["max_top_2gram"].measure(document) == pytest.approx(10 / 11)
    words = "a b c d e"
    twice = Measured(f"{words} xx {words}")
    for size in range(5, 11):
        expected = 10 / 12 if size == 5 else 0
        measured = RULES[f"max_duplicate_{size}grams"].measure(twice)
        assert measured == pytest.approx(expected)


def test_lines_are_left_out_and_the_others_stay():
    limits = choose(rules=("c4",)).limits
    keep = "This is a line of seven words."
    poor = ["no end here at all now", "Too short.", "Please turn on Javascript here."]
    poor += ["We tell of the use of cookies here."]
    text, taken = leave_out_lines("\n".join([keep, *poor, keep]), limits)
    assert text == f"{keep}\n{keep}"
    assert [*taken] == ["line_end", "min_line_words", "line_javascript", "line_policy"]


FOUND = [
    ("email", "Write to max.muster+news@mail.uni-bonn.de, please"),
    ("card", "4111 1111 1111 1111"),
    ("card", "paid by 378282246310005."),
    ("iban", "DE89 3704 0044 0532 0130 00"),
    ("iban", "GB82WEST12345698765432"),
    ("ip", "from 8.8.8.8 port 53"),
    ("ip", "at 2a02:8109:9d80:1::1, and"),
    ("phone", "Tel. +49 30 1234567"),
    ("phone", "(212) 555-0100"),
    ("phone", "01 23 45 67 89"),
    ("phone", "+491701234567"),
]
NOT_FOUND = [
    "4111 1111 1111 1112",  # checksums
    "DE89 3704 0044 0532 0130 01",
    "DE00272003471581085373",
    "at 192.168.0.1 or 127.0.0.1",  # nobody's
    "version 0.10.2",
    "2026-11-29 12:30 and 29.11.2026",
    "0.123456789 and 1,234,567.00",
    "@property and a@b",
    "4f1c2d3e-1234-4abc-8def-0123456789ab",
    "978-3-1614-1484-1",
    "0000000000 0000000000000000",
    "x = 0x1234567890; y = +4294967296; z = +6073641856.9",
    "12:30:59",
]


@pytest.mark.parametrize(("kind", "text"), FOUND)
def test_personal_data_is_replaced(kind, text):
    redacted, counts, _ = Redactor([*KINDS]).redact(text)
    assert counts == {kind: 1}
    assert f"<{kind.upper()}>" in redacted


@pytest.mark.parametrize("text", NOT_FOUND)
def test_numbers_that_are_no_personal_data_stay(text):
    assert Redactor([*KINDS]).redact(text) == (text, {}, [])


def test_checksums_are_those_of_the_standards():
    assert is_card("79927398713") is False  # right by Luhn, of no card's length
    assert is_card("4012888888881881")
    assert is_iban("FR14 2004 1010 0505 0001 3M02 606")


PIECES = ["1", "1 ", "+1 ", "a.", "a@", "a@b.", "1.", "f:", "DE1"]


@pytest.mark.parametrize("size", [10_000, 100_000])
@pytest.mark.parametrize("piece", PIECES)
def test_patterns_take_time_that_grows_with_the_text(piece, size):
    begin = time.process_time()
    Redactor([*KINDS]).redact(piece * (size // len(piece)))
    assert time.process_time() - begin < 5


def test_what_is_cleaned(tmp_path, capsys):
    """Order, other fields, and one count for each document that is left out."""
    near = GOOD.split(" ")
    near[20] = "changed"
    texts = [GOOD, prose(2), "short", prose(3), GOOD + "\n", " ".join(near), prose(4)]
    texts[3] += " Mail a@example.com, ticket TCK-17."
    held_out = write_jsonl(tmp_path / "held.jsonl", [prose(4)])
    source = write_jsonl(tmp_path / "in.jsonl", texts)
    output = tmp_path / "out.jsonl"
    flags = [r"--pattern=ticket=TCK-\d+", f"--decontaminate={held_out}"]
    report = clean(source, output, *flags)
    assert ids(output) == [0, 1, 3]
    taken = {name: noted["documents"] for name, noted in report["taken"].items()}
    counts = {"min_words": 1, "held_out": 1, "exact_duplicate": 1, "near_duplicate": 1}
    assert taken == counts
    assert report["read"]["documents"] - sum(taken.values()) == 3
    example = report["taken"]["near_duplicate"]["examples"][0]
    assert example["where"].endswith("in.jsonl:6")
    assert example["copy_of"].endswith("in.jsonl:1")
    assert 0.8 <= example["value"] < 1
    assert "<EMAIL>, ticket <TICKET>." in output.read_text()
    assert "near_duplicate" in capsys.readouterr().out
    assert not output.with_name(".out.jsonl.cleaning").exists()


def test_whatever_is_read_and_written(tmp_path):
    """Compressed text by lines, Parquet with other columns, output as lines of text."""
    texts = [prose(i).replace("\n", " ") for i in range(6)]
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("\n".join(texts).encode()))
    output = tmp_path / "out.txt.gz"
    clean(tmp_path / "a.txt.gz", output, "--config.data.document=line")
    assert gzip.decompress(output.read_bytes()).decode().splitlines() == texts
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    table = pa.table({"body": [*texts, texts[0]], "url": [*"abcdefg"]})
    (tmp_path / "set").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "set/train-0.parquet")
    (tmp_path / "set/README.md").write_text("A set.")
    output = tmp_path / "rows.jsonl"
    clean(tmp_path / "set", output, "--config.data.field=body")
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert rows == [{"body": t, "url": u} for t, u in zip(texts, "abcdef", strict=True)]


def test_the_output_may_lie_beside_the_input(tmp_path, capsys):
    """What a killed run left there is no input of the next."""
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text(prose(i))
    left = tmp_path / ".out.txt.cleaning"
    left.mkdir()
    (left / "000000.jsonl").write_text("{}")
    report = clean(tmp_path, tmp_path / "out.txt")
    assert report["read"]["documents"] == 3
    assert len((tmp_path / "out.txt").read_text().splitlines()) == 3
    command = ["clean", f"--input={tmp_path}", f"--output={tmp_path / 'out.txt'}"]
    assert main(command) == 2
    assert "out.txt: is a file of --input" in capsys.readouterr().err


def test_languages_are_told(tmp_path):
    pytest.importorskip("py3langid")
    german = "Der Hund läuft schnell über die Straße und sucht seinen Ball. " * 3
    english = "The dog runs fast across the street and looks for its ball. " * 3
    source = write_jsonl(tmp_path / "in.jsonl", [english, german])
    flags = ("--language=de", "--rules=none")
    report = clean(source, tmp_path / "out.jsonl", *flags)
    assert ids(tmp_path / "out.jsonl") == [1]
    assert report["taken"]["language"]["examples"][0]["value"] == "en"


def test_bad_documents_are_counted_by_choice(tmp_path, capsys):
    source = write_jsonl(tmp_path / "in.jsonl", [prose(1), prose(2)])
    source.write_text(source.read_text() + "{not json\n")
    command = ["clean", f"--input={source}", f"--output={tmp_path / 'o.jsonl'}"]
    assert main([*command, "--num_workers=1"]) == 2
    assert "in.jsonl:3" in capsys.readouterr().err
    report = clean(source, tmp_path / "o.jsonl", "--skip_bad")
    assert report["taken"]["unreadable"]["documents"] == 1
    assert ids(tmp_path / "o.jsonl") == [0, 1]


def test_a_killed_run_resumes_with_the_same_bytes(tmp_path):
    """Workers are processes; the second run reads the chunks of the first."""
    texts = [prose(i % 700, 100) + f" {i % 4000}" * 60 for i in range(6_000)]
    source = write_jsonl(tmp_path / "in.jsonl", texts)
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    fast = ("--rules=none", "--duplicates=exact", "--personal=email")
    clean(source, whole, *fast)
    command = [sys.executable, "-m", "lmjax.cli", "clean", f"--input={source}"]
    command += [f"--output={output}", "--num_workers=2", *fast]
    directory = tmp_path / ".out.jsonl.cleaning"
    process = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 60
    while not [*directory.glob("0*.json")] and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    first = {f.name: f.stat().st_mtime_ns for f in directory.glob("0*.json")}
    assert first and not output.exists()
    clean(source, output, *fast)
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rules=gofer"], r"--rules=gofer: .*did you mean 'gopher'"),
        (["--limit=min_word=3"], r"--limit=min_word=3: .*did you mean 'min_words'"),
        (["--limit=min_words=x"], r"--limit=min_words=x: must be a number, or off"),
        (["--personal=mail"], r"--personal=mail: .*email"),
        (["--pattern=x"], r"--pattern=x: must be NAME=REGEX"),
        (["--pattern=x=("], r"--pattern=x=\(: not a pattern"),
        (["--pattern=email=x"], r"--pattern=email=x: must be NAME=REGEX"),
        (["--similarity=7"], r"--similarity=7.0: must be from 0.3 to 1"),
        (["--duplicates=all"], r"--duplicates=all: must be one of near, exact, keep"),
        (["--output=a.parquet"], r"--output=a.parquet: must end in .jsonl or .txt"),
        (["--input=none/*.jsonl"], r"--input = 'none/\*.jsonl': matches no file"),
        (["--decontaminate=no"], r"--decontaminate = 'no': matches no file"),
        (["--config.data.feld=x"], r"config.data.feld: .*did you mean 'field'"),
        (["--config.data.source=tfds"], r"config.data.source = 'tfds': must be one"),
        (["--config.data.field=body"], r"in.jsonl:1: config.data.field = 'body'"),
        (["--report=no/r.json"], r"--report=no/r.json: must be a file in a directory"),
        (["--num_workers=-1"], r"--num_workers=-1: must be >= 0"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, capsys, flags, message):
    source = write_jsonl(tmp_path / "in.jsonl", [prose(1)])
    command = ["clean", f"--input={source}", f"--output={tmp_path / 'o.jsonl'}"]
    assert main([*command, *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"error: .*{message}", line)
