"""Measure `lmjax clean`: near duplicates and personal data that are planted.

    python tools/bench_clean.py --documents=50000

Prints JSON lines: near duplicates by their true similarity (found, missed, or taken
below the threshold), the time and memory; personal data by kind (found, missed), false
alarms on numbers that are none, and what is found in Python's standard library.
"""

import argparse
import json
import random
import re
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.data.clean.minhash import NGRAM
from lmjax.data.clean.personal import KINDS, Redactor, is_card, is_iban, placeholder
from lmjax.data.clean.words import hash_ngrams, hash_words, normal_words

_EDGES = (0.0, 0.5, 0.7, 0.75, 0.8, 0.85, 0.9, 1.01)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=50_000)
    parser.add_argument("--planted", type=int, default=5_000)
    parser.add_argument("--similarity", type=float, default=0.8)
    args = parser.parse_args()
    print(json.dumps(measure_near(args.documents, args.planted, args.similarity)))
    for line in measure_personal():
        print(json.dumps(line))


def measure_near(count: int, planted: int, threshold: float) -> dict[str, object]:
    """Plant edited copies in random documents, clean, and count what was found."""
    rng = np.random.default_rng(0)
    words = np.array(["".join(rng.choice(list("abcdefghijklmnop"), rng.integers(2, 9)))
                      for _ in range(30_000)])  # fmt: skip
    shares = 1 / np.arange(10, len(words) + 10)
    draw = lambda n: words[rng.choice(len(words), n, p=shares / shares.sum())]
    texts = [draw(int(n)) for n in rng.integers(60, 400, count - planted)]
    pairs = {}
    for i in range(planted):
        original = int(rng.integers(len(texts)))
        copy = texts[original].copy()
        edits = rng.integers(0, max(2, int(len(copy) * 0.12)))
        places = rng.integers(0, len(copy), edits)
        copy[places] = draw(edits)
        pairs[count - planted + i] = original, copy
    similar = {i: jaccard(texts[o], copy) for i, (o, copy) in pairs.items()}
    everything = texts + [copy for _, copy in pairs.values()]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        lines = [{"text": " ".join(t), "id": i} for i, t in enumerate(everything)]
        source = directory / "in.jsonl"
        source.write_text("".join(json.dumps(line) + "\n" for line in lines))
        begin = time.perf_counter()
        flags = ("--rules=none", "--personal=none", f"--similarity={threshold}")
        subprocess.run(
            [sys.executable, "-m", "lmjax.cli", "clean", f"--input={source}"]
            + [f"--output={directory / 'out.jsonl'}", *flags],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        seconds = time.perf_counter() - begin
        kept = {json.loads(line)["id"] for line in (directory / "out.jsonl").open()}
    bins: dict[str, Counter[str]] = {}
    for i, value in similar.items():
        low = max(edge for edge in _EDGES if edge <= value)
        verdict = "stayed" if i in kept else "taken"
        bins.setdefault(f"{low:.2f}", Counter())[verdict] += 1
    return {
        "documents": count,
        "planted": planted,
        "threshold": threshold,
        "by_similarity_from": {k: dict(v) for k, v in sorted(bins.items())},
        "others_taken": len(texts) - len(kept & {*range(len(texts))}),
        "megabytes": round(sum(len(line["text"]) for line in lines) / 1e6, 1),
        "seconds": round(seconds, 1),
        **measure_children(),
    }


def measure_children() -> dict[str, float]:
    """Return CPU time of the command and its workers, and the most memory of one."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_megabytes": usage.ru_maxrss // 1024,
    }


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Return the share of 5-grams that two lists of words have in common."""
    one, two = (
        {*hash_ngrams(hash_words(normal_words(" ".join(t))), NGRAM).tolist()}
        for t in (a, b)
    )
    return len(one & two) / len(one | two)


def measure_personal(count: int = 2_000) -> list[dict[str, object]]:
    """Count the personal data that are found among others, and false alarms."""
    rng = random.Random(0)
    redactor = Redactor([*KINDS])
    lines = []
    for kind, make in MAKERS.items():
        missed: list[str] = []
        for _ in range(count):
            value = make(rng)
            text = f"{rng.choice(BEFORE)} {value}{rng.choice(AFTER)}"
            if placeholder(kind) not in redactor.redact(text)[0]:
                missed.append(value)
        found = count - len(missed)
        lines.append(
            {"kind": kind, "planted": count, "found": found, "missed": missed[:5]}
        )
    alarms = Counter[str]()
    examples: dict[str, list[str]] = {}
    for name, form in NUMBERS.items():
        for _ in range(count):
            value = write_number(form, rng)
            _, counts, _ = redactor.redact(f"{rng.choice(BEFORE)} {value}.")
            if counts:
                alarms[name] += 1
                examples.setdefault(name, []).append(value)
    lines.append({
        "numbers_that_are_none": count * len(NUMBERS),
        "false_alarms": dict(alarms),
        "examples": {k: v[:3] for k, v in examples.items()},
    })  # fmt: skip
    return [*lines, measure_library(redactor)]


def measure_library(redactor: Redactor) -> dict[str, object]:
    """Count what is found in Python's standard library."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [f for f in root.rglob("*.py") if "site-packages" not in f.parts]
    counts, found, size = Counter[str](), dict[str, Counter[str]](), 0
    for file in files:
        text = file.read_text(errors="replace")
        size += len(text)
        _, own, _ = redactor.redact(text)
        counts.update(own)
        for name, kind in KINDS.items():
            values = (m[0] for m in kind.pattern.finditer(text) if kind.test(m[0]))
            found.setdefault(name, Counter()).update(values)
    return {
        "files": len(files),
        "megabytes": round(size / 1e6, 1),
        "found": dict(counts),
        "values": {k: [v for v, _ in c.most_common(40)] for k, c in found.items()},
    }


BEFORE = ("Call me at", "Contact:", "It is", "see (", "Tel.", "The number is", "\n")
AFTER = ("", ".", ", please", ")", "\n", "; thanks", " or later")
_NAMES = ("anna", "j.smith", "max.muster+news", "o_neill", "li-wei", "x99", "user%a")
_DOMAINS = ("example.com", "mail.uni-bonn.de", "firma.co.uk", "acme.museum", "a-b.io")


def digits(rng: random.Random, count: int) -> str:
    """Return random digits, of which the first is not 0."""
    return str(rng.randint(1, 9)) + "".join(rng.choices("0123456789", k=count - 1))


def make_card(rng: random.Random) -> str:
    """Return the number of a card that does not exist."""
    prefix, length = rng.choice((("4", 16), ("52", 16), ("37", 15), ("6011", 16)))
    body = prefix + digits(rng, length - len(prefix) - 1)
    number = next(body + d for d in "0123456789" if is_card(body + d))
    if rng.random() < 0.5 and length == 16:
        mark = rng.choice((" ", "-"))
        return mark.join(number[i : i + 4] for i in range(0, 16, 4))
    return number


def make_iban(rng: random.Random) -> str:
    """Return an account that does not exist."""
    country, length = rng.choice((("DE", 22), ("FR", 27), ("GB", 22), ("NL", 18)))
    body = {"GB": "WEST", "NL": "ABNA"}.get(country, "")
    body += digits(rng, length - 4 - len(body))
    account = next(a for n in range(2, 99) if is_iban(a := f"{country}{n:02d}{body}"))
    if rng.random() < 0.5:
        return " ".join(account[i : i + 4] for i in range(0, length, 4))
    return account


def make_phone(rng: random.Random) -> str:
    """Return a phone number as people of several countries write it."""
    form = rng.choice((
        "+49 30 {3}{4}", "+1 (2{2}) 5{2}-{4}", "+44 20 7{3} {4}", "+86 138 {4} {4}",
        "(2{2}) 5{2}-{4}", "3{2}-5{2}-{4}", "415.5{2}.{4}", "030 {3} {4}", "0171/{7}",
        "+33 1 {2} {2} {2} {2}", "01 {2} {2} {2} {2}", "0049 89 {6}", "+491701234{3}",
        "(020) 7{3} {4}", "+1-800-5{2}-{4}", "089-{3}{4}",
    ))  # fmt: skip
    for size in "234567":
        while "{" + size + "}" in form:
            form = form.replace("{" + size + "}", digits(rng, int(size)), 1)
    return form


def make_ip(rng: random.Random) -> str:
    """Return an address of the public internet."""
    if rng.random() < 0.3:
        parts = [f"{rng.randrange(1, 1 << 16):x}" for _ in range(7)]
        return rng.choice((f"2a02:{':'.join(parts)}", f"2a00:{parts[0]}::{parts[1]}"))
    numbers = rng.choice((8, 62, 93, 141, 212)), *rng.choices(range(1, 255), k=3)
    return ".".join(map(str, numbers))


MAKERS = {
    "email": lambda rng: f"{rng.choice(_NAMES)}@{rng.choice(_DOMAINS)}",
    "phone": make_phone,
    "card": make_card,
    "iban": make_iban,
    "ip": make_ip,
}


def wrong_card(rng: random.Random) -> str:
    """Return digits that fail the checksum of cards."""
    while is_card(number := f"4{digits(rng, 15)}"):
        pass
    return number


# {N}: N random digits; {aN}: N hexadecimal ones; {m}: a month; {y}: a year.
NUMBERS = {
    "checksum of a card": wrong_card,
    "checksum of an account": "DE00{18}",
    "date": "{y}-{m}-2{1} 1{1}:3{1}:2{1}",
    "date, German": "1{1}.{m}.{y}",
    "decimal": "0.{9}",
    "price": "{3},{3},{3}.00",
    "version": "v{1}.{2}.{2}.{1}",
    "private address": "192.168.1{2}.1{2}",
    "UUID": "{a8}-{a4}-4{a3}-a{a3}-{a12}",
    "ISBN": "978-{1}-{4}-{4}-{1}",
    "arXiv": "arXiv:2{1}{m}.{5}",
    "range": "0{1} - {2}",
    "decorator": "@dataclasses.dataclass(frozen=True)",
    "C's integers": "+4294967296 -{10}",
}


def write_number(form: Any, rng: random.Random) -> str:
    """Return a number of a form of NUMBERS."""
    if callable(form):
        return str(form(rng))

    def fill(match: re.Match[str]) -> str:
        kind, size = match[1], match[2]
        if kind == "a":
            return "".join(rng.choices("0123456789abcdef", k=int(size)))
        if kind in ("m", "y"):
            year = rng.randint(1990, 2030)
            return f"{rng.randint(1, 12):02d}" if kind == "m" else str(year)
        return digits(rng, int(size))

    return re.sub(r"\{([a-z]?)(\d*)\}", fill, form)


if __name__ == "__main__":
    main()
