"""Metrics of generated texts, computed by the libraries of the field.

BLEU and chrF are sacrebleu's, of the corpus of predictions, from 0 to 100; the others
are means over the predictions, from 0 to 1. ROUGE is rouge-score's F-measure: of the
stems of English words as it finds them; in other languages of whole words in any
script. Which way texts were split is in the signatures.
"""

import dataclasses
import functools
import importlib
import importlib.metadata
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmjax.config.decoding import BleuTokenizer, Metric
from lmjax.errors import ConfigError
from lmjax.metrics import words

# A sentence, with the quotes and brackets after its end. Some scripts have no space
# after it.
_QUOTES = "[\"'”’»)\\]」』）]*"
_SENTENCE = re.compile(
    rf".+?(?:[.!?…؟۔।॥።]{_QUOTES}(?=\s)|[。｡．！？។။]{_QUOTES})", re.DOTALL
)

# BLEU's tokenizers by language, as sacrebleu chooses them; and of scripts without
# spaces for which it has none but models.
_BLEU_TOKENIZERS: Mapping[str, BleuTokenizer] = {
    "zh": "zh",
    "ja": "ja-mecab",
    "ko": "ko-mecab",
    **dict.fromkeys(("th", "lo", "km", "my", "bo"), "char"),
}
_SPLIT_AT_SPACES = ("13a", "intl")
_PACKAGES = {"ja-mecab": "sacrebleu[ja]", "ko-mecab": "sacrebleu[ko]"}
_MODELS = ("flores101", "flores200")
_LEAF = "config.task.bleu_tokenizer"
_LARGE_SHARE = 0.1  # of words or texts that a metric cannot judge

_log = logging.getLogger(__name__)
_logged = set[str]()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextOptions:
    """How texts are split into words.

    Attributes:
      bleu_tokenizer: of sacrebleu; "auto": by the language, else by the script.
      language: of the targets, such as "en" or "zh-CN"; "": found by their script.
    """

    bleu_tokenizer: BleuTokenizer = "auto"
    language: str = ""


_DEFAULTS = TextOptions()


def metric_names(
    metrics: Iterable[Metric], options: TextOptions = _DEFAULTS
) -> tuple[str, ...]:
    """Return the names of the values that `compute_metrics` returns.

    Raises:
      ConfigError: a package or a file that one of them needs is not installed.
    """
    for metric in metrics:
        _import_library(metric)
        known = options.bleu_tokenizer != "auto" or options.language
        if metric == "bleu" and known:
            _make_bleu(choose_bleu_tokenizer((), options))
    return tuple(name for metric in metrics for name in METRICS[metric].names)


def need_predictions(metrics: Iterable[Metric]) -> bool:
    """Return True if any of some metrics reads the predictions."""
    return not all(METRICS[metric].of_sources for metric in metrics)


def compute_metrics(
    metrics: Iterable[Metric],
    *,
    predictions: Sequence[str],
    targets: Sequence[str],
    sources: Sequence[str],
    options: TextOptions = _DEFAULTS,
) -> dict[str, float]:
    """Compare the predictions for all examples of a split with their targets.

    Args:
      metrics: keys of `METRICS`.
      predictions: generated texts; may be empty unless the metrics `need_predictions`.
      targets: the reference texts.
      sources: the inputs of both.
      options: how texts are split into words.

    Raises:
      ConfigError: a package or a file that one of them needs is not installed.
    """
    values: dict[str, float] = {}
    for name in metrics:
        metric, texts = METRICS[name], predictions
        if metric.of_sources:
            texts = [first_sentence(source) for source in sources]
        computed = metric.compute(_import_library(name), texts, targets, options)
        values |= dict(zip(metric.names, computed, strict=True))
    for signed, signature in sign_metrics(metrics, targets, options=options).items():
        _log_once(logging.INFO, f"{signed}: {signature}")
    return values


def sign_metrics(
    metrics: Iterable[Metric],
    targets: Sequence[str],
    *,
    options: TextOptions = _DEFAULTS,
) -> dict[str, str]:
    """Return how each of some metrics is computed, by name: to be reported with it.

    BLEU's and chrF's are the signatures of sacrebleu (Post 2018).

    Raises:
      ConfigError: a package or a file that one of them needs is not installed.
    """
    return {
        name: METRICS[name].sign(_import_library(name), targets, options)
        for name in metrics
        if METRICS[name].library
    }


def first_sentence(text: str) -> str:
    """Return the first line of a text of several lines, else its first sentence."""
    first, *more = text.strip().splitlines() or [""]
    if any(map(str.strip, more)):
        return first
    sentence = _SENTENCE.match(first)
    return sentence.group() if sentence else first


def choose_bleu_tokenizer(
    targets: Iterable[str], options: TextOptions
) -> BleuTokenizer:
    """Return the tokenizer that is given, or that of the language, or of the script."""
    if options.bleu_tokenizer != "auto":
        return options.bleu_tokenizer
    language = words.find_language(options.language)
    if language not in _BLEU_TOKENIZERS:  # some are written in several scripts
        language = _guess_language(targets)
    return _BLEU_TOKENIZERS.get(language, "13a")


def _guess_language(targets: Iterable[str]) -> str:
    """Return the language, or a similar one, of most words; "" if spaces divide it."""
    counts = words.count_scripts(targets)
    kana = sum(counts[script] for script in words.KANA)
    han = kana + sum(counts[script] for script in words.CHINESE)
    others = sum(counts[script] for script in words.UNSPLIT) - han
    rest = counts.total() - han - others - counts["HANGUL"]
    by_language = {
        "": rest,
        "ja" if kana > _LARGE_SHARE * han else "zh": han,
        "ko": counts["HANGUL"],
        "th": others,
    }
    return max(by_language, key=lambda name: by_language[name])


@functools.cache
def _make_bleu(tokenizer: BleuTokenizer) -> Any:
    """Return sacrebleu's BLEU with a tokenizer.

    Raises:
      ConfigError: a package or a file of the tokenizer is not there.
    """
    if tokenizer in _MODELS:
        _check_bleu_model(tokenizer)
    try:
        return _import_library("bleu").BLEU(tokenize=tokenizer)
    except (ImportError, RuntimeError, AssertionError, OSError) as error:
        package = _PACKAGES.get(tokenizer, "sacrebleu")
        raise ConfigError(
            f"{_LEAF} = {tokenizer!r} (given, or chosen by the language of the "
            f"targets): needs a package that is not installed: pip install "
            f"{package!r}; 'char' needs none"
        ) from error


def _check_bleu_model(tokenizer: str) -> None:
    """Raise unless the SentencePiece model of a tokenizer is there: none is fetched."""
    _import_library("bleu")
    models = importlib.import_module("sacrebleu.tokenizers.tokenizer_spm").SPM_MODELS
    directory = importlib.import_module("sacrebleu.utils").SACREBLEU_DIR
    url = models[tokenizer]["url"]
    file = Path(directory) / "models" / Path(url).name
    if not file.exists() or not file.stat().st_size:
        raise ConfigError(f"{_LEAF} = {tokenizer!r}: needs {url} saved as {file}")


def _bleu(
    library: Any,
    predictions: Sequence[str],
    targets: Sequence[str],
    options: TextOptions,
) -> tuple[float, ...]:
    tokenizer = choose_bleu_tokenizer(targets, options)
    counts = words.count_scripts(targets) if tokenizer in _SPLIT_AT_SPACES else {}
    unspaced = sum(counts.get(script, 0) for script in words.UNSPLIT)
    if unspaced > _LARGE_SHARE * sum(counts.values()):
        _log_once(
            logging.WARNING,
            f"warning: bleu: {unspaced / sum(counts.values()):.0%} of the words of the "
            f"references are in scripts without spaces, which {tokenizer!r} does not "
            f"split: BLEU compares whole sentences there; {_LEAF} can be zh, ja-mecab, "
            "char or flores200",
        )
    metric = _make_bleu(tokenizer)
    order = metric.max_ngram_order
    if all(len(metric.tokenizer(target).split()) < order for target in targets):
        _log_once(
            logging.WARNING,
            f"warning: bleu: no reference has {order} words or more, so BLEU is 0 "
            "whatever the predictions; chrf and exact_match judge short texts",
        )
    return (float(metric.corpus_score([*predictions], [[*targets]]).score),)


def _chrf(
    library: Any,
    predictions: Sequence[str],
    targets: Sequence[str],
    options: TextOptions,
) -> tuple[float, ...]:
    return (float(library.CHRF().corpus_score([*predictions], [[*targets]]).score),)


def _sign_bleu(library: Any, targets: Sequence[str], options: TextOptions) -> str:
    return _sign(_make_bleu(choose_bleu_tokenizer(targets, options)))


def _sign_chrf(library: Any, targets: Sequence[str], options: TextOptions) -> str:
    return _sign(library.CHRF())


def _sign(metric: Any) -> str:
    metric.num_refs = 1
    return str(metric.get_signature())


_ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")


class _RougeWords:
    """A tokenizer as rouge-score takes it."""

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text in any script."""
        return words.split_words(text)


def _rouge(
    library: Any,
    predictions: Sequence[str],
    targets: Sequence[str],
    options: TextOptions,
) -> tuple[float, ...]:
    """Return the mean F-measures (Lin 2004); lines are the sentences of rougeLsum."""
    english = library.RougeScorer([*_ROUGE], use_stemmer=True)
    other = library.RougeScorer([*_ROUGE], tokenizer=_RougeWords())
    scorers = [english if is_en else other for is_en in _are_english(targets, options)]
    rows = zip(scorers, targets, predictions, strict=True)
    scores = [scorer.score(target, text) for scorer, target, text in rows]
    wordless = sum(not words.split_words(target) for target in targets)
    if wordless > _LARGE_SHARE * len(targets):
        _log_once(
            logging.WARNING,
            f"warning: rouge: {wordless:,} of {len(targets):,} references have no "
            "words, and count as 0",
        )
    return tuple(
        sum(score[name].fmeasure for score in scores) / len(scores) for name in _ROUGE
    )


def _sign_rouge(library: Any, targets: Sequence[str], options: TextOptions) -> str:
    share = sum(_are_english(targets, options)) / max(len(targets), 1)
    ways = ["tok:rouge_score,stem:porter"] * (share > 0) + ["tok:unicode"] * (share < 1)
    version = importlib.metadata.version("rouge-score")
    return f"{' or '.join(ways)}|version:{version}"


def _are_english(targets: Sequence[str], options: TextOptions) -> list[bool]:
    """Return of each target whether it is compared as English.

    A text in another script is not, wherever it stands.
    """
    language = words.find_language(options.language)
    english = language == "en" if language else words.is_english(targets)
    latin = words.are_latin([target] for target in targets)
    return [english and is_latin for is_latin in latin]


def _exact_match(
    library: None,
    predictions: Sequence[str],
    targets: Sequence[str],
    options: TextOptions,
) -> tuple[float, ...]:
    pairs = zip(predictions, targets, strict=True)
    return (sum(p.strip() == t.strip() for p, t in pairs) / len(predictions),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextMetric:
    """A metric of generated texts: the names of its values, and how to compute them."""

    names: tuple[str, ...]
    compute: Callable[..., tuple[float, ...]]  # of library, predictions, targets...
    sign: Callable[[Any, Sequence[str], TextOptions], str] = lambda *_: ""
    library: str = ""
    of_sources: bool = False  # a baseline: their first sentences are the predictions


METRICS: Mapping[Metric, TextMetric] = {
    "bleu": TextMetric(
        names=("bleu",), compute=_bleu, sign=_sign_bleu, library="sacrebleu.metrics"
    ),
    "chrf": TextMetric(
        names=("chrf",), compute=_chrf, sign=_sign_chrf, library="sacrebleu.metrics"
    ),
    "rouge": TextMetric(
        names=_ROUGE,
        compute=_rouge,
        sign=_sign_rouge,
        library="rouge_score.rouge_scorer",
    ),
    "lead1_rouge": TextMetric(
        names=tuple(f"lead1_{name}" for name in _ROUGE),
        compute=_rouge,
        sign=_sign_rouge,
        library="rouge_score.rouge_scorer",
        of_sources=True,
    ),
    "exact_match": TextMetric(names=("exact_match",), compute=_exact_match),
}


def _import_library(metric: Metric) -> Any:
    """Return the module that a metric needs; None if it needs none."""
    if not (name := METRICS[metric].library):
        return None
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"config.task.metrics: {metric!r} needs a package that is not installed: "
            "pip install 'lmjax[tasks]'"
        ) from error


def _log_once(level: int, text: str) -> None:
    if text not in _logged:
        _logged.add(text)
        _log.log(level, "%s", text)
