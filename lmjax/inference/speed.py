"""How fast a model reads and writes."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmjax.inference.language_model import LanguageModel

NUM_RUNS = 5  # the median of so many counts, after one that compiles
NUM_TOKENS = 32  # that are written
NUM_EXAMPLES = 64
_PROMPT_CHARACTERS = 1000

Speed = Mapping[str, float | None]  # tokens a second, of "prefill" and "decode"


def measure_writing(lm: LanguageModel, text: str) -> Speed:
    """Return how fast one prompt is read, and continued greedily token by token."""
    # A recurrent network has no longest text, nor has one relative to positions.
    room = min(lm.model.config.longest_text, lm.model.config.longest_source)
    count = max(min(NUM_TOKENS, room // 4), 1)
    prompt = text[:_PROMPT_CHARACTERS]
    while len(prompt) > 1 and _num_tokens(lm, prompt) > room - count - 8:
        prompt = prompt[: len(prompt) * 3 // 4]

    def write(num_tokens: int) -> float:
        options: dict[str, Any] = {"temperature": 0.0, "num_beams": 1}
        options |= {"max_tokens": num_tokens, "min_tokens": num_tokens}
        return _median_seconds(lambda: lm.generate([prompt], **options))

    first, all = write(1), write(1 + count)
    decode = count / (all - first) if all > first else None
    return {"prefill": _num_tokens(lm, prompt) / first, "decode": decode}


def measure_predicting(lm: LanguageModel, parsed: Sequence[Any]) -> Speed:
    """Return how fast examples are read, whose prediction is one forward pass."""
    encoded = lm.predictor.encode_examples(parsed[:NUM_EXAMPLES])
    rows = [row for rows in encoded.rows for row in rows]
    seconds = _median_seconds(lambda: lm.predictor.run(lm.params, rows, mesh=lm.mesh))
    return {"prefill": sum(row.size for row in rows) / seconds, "decode": None}


def _num_tokens(lm: LanguageModel, text: str) -> int:
    return len(lm.tokenizer.encode(text))


def _median_seconds(run: Callable[[], object]) -> float:
    run()
    seconds = []
    for _ in range(NUM_RUNS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
