"""Print exact match and F1 of two SQuAD baselines that need no model.

    python tools/squad_baselines.py ~/.cache/lmjax-data/squad/dev.json

The answer is a sentence of the context: the first one, or the first of those that share
the most words with the question. On the 10,565 questions of dev.json:

    the first sentence: exact match 0.0003, F1 0.0974
    the sentence with the most words of the question: exact match 0.0022, F1 0.1868
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from lmjax.data.formats.squad import SquadExamples
from lmjax.metrics import squad


def first_sentence(sentences: list[str], question: str) -> str:
    """Return the first sentence."""
    return sentences[0]


def most_shared_words(sentences: list[str], question: str) -> str:
    """Return the sentence that shares the most words with the question."""
    question_words = {*squad.split_english(question)}
    shared = lambda text: len(question_words & {*squad.split_english(text)})
    return max(sentences, key=shared)


BASELINES: dict[str, Callable[[list[str], str], str]] = {
    "the first sentence": first_sentence,
    "the sentence with the most words of the question": most_shared_words,
}


def main() -> None:
    """Print the scores of each baseline on a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    path = parser.parse_args().file
    examples = SquadExamples([path], on_bad_text="error", path="FILE")
    for name, choose in BASELINES.items():
        scores = [0.0, 0.0]
        for example in examples:
            sentences = re.split(r"(?<=[.?!])\s+", example["context"].strip())
            answer = choose(sentences, example["question"])
            references = [reference["text"] for reference in example["answers"]]
            scores[0] += squad.best_score(squad.exact_match, answer, references)
            scores[1] += squad.best_score(squad.token_f1, answer, references)
        exact, f1 = (score / len(examples) for score in scores)
        print(f"{name}: exact match {exact:.4f}, F1 {f1:.4f}")


if __name__ == "__main__":
    main()
