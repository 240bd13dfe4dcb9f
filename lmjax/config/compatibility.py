"""What keeps the sections of a config from serving its task together."""

from collections.abc import Iterator
from typing import Any

from lmjax.config.decoding import writing_mistakes
from lmjax.config.model import CAUSAL_KINDS, SOURCE_KINDS, LabelHeadConfig
from lmjax.config.task import (
    CASES,
    CausalLMConfig,
    ClassifierTask,
    GenerationTaskConfig,
    MaskedLMConfig,
    PromptedLMConfig,
    SpanQAConfig,
    TagConfig,
    WindowPairConfig,
    outputs,
    window_pair_lengths,
)

_READERS = ("encoder", "decoder", "recurrent")
_NextToken = CausalLMConfig | PromptedLMConfig

# The kinds of network that each task is for.
MODEL_KINDS = {
    "causal_lm": CAUSAL_KINDS,
    "masked_lm": ("encoder",),
    "span_corruption": SOURCE_KINDS,
    "prefix_lm": SOURCE_KINDS,
    "infilling": SOURCE_KINDS,
    "seq2seq": SOURCE_KINDS,
    "prompted_lm": CAUSAL_KINDS,
    "classify": _READERS,
    "tag": _READERS,
    "span_qa": _READERS,
}
# Where each task's examples may come from, and the sources of nothing else.
EXAMPLE_SOURCES = {
    "seq2seq": ("parallel", "jsonl", "tsv", "csv", "tfds"),
    "prompted_lm": ("parallel", "jsonl", "tsv", "csv", "tfds"),
    "classify": ("jsonl", "tsv", "csv", "tfds"),
    "tag": ("conll", "props", "jsonl", "tfds"),
    "span_qa": ("squad", "jsonl", "tfds"),
}
# The parts of an example that each task reads, no two of which may be one.
_PARTS = {
    "classify": ("text", "pair", "label"),
    "tag": ("tokens", "predicate", "tags"),
    "span_qa": ("question", "context", "answers"),
}
ONLY_EXAMPLES = ("tsv", "csv", "conll", "props", "parallel", "squad")
MOST_SPECIAL = 8  # tokens around texts; no known model has more than four
SHORTEST = 8  # tokens, of which the ends and a span still leave some


def objective_mistakes(config: Any, path: str) -> Iterator[str]:
    """Yield what keeps a `Config`'s model, data and samples from serving its task.

    Where there are no data there is nothing to learn: an imported model may be of any
    kind, but answers as one that was trained here.
    """
    task, model, data = config.task, config.model, config.data
    if isinstance(task, SpanQAConfig):
        yield from _span_qa_mistakes(config, path)
    if model.kind == "recurrent" and isinstance(task, _NextToken):
        yield from _recurrent_mistakes(config, path)
    if data.source == "none":
        return
    if model.kind not in MODEL_KINDS[task.kind]:
        kinds = " or ".join(map(repr, MODEL_KINDS[task.kind]))
        yield (
            f"{path}.task.kind = {task.kind!r}: needs {path}.model.kind = {kinds}, "
            f"not {model.kind!r}"
        )
        return
    yield from _source_mistakes(config, path)
    if model.kind == "encoder" and config.sample.prompts:
        yield (
            f"{path}.sample.prompts = {config.sample.prompts}: must be empty: an "
            "encoder does not write"
        )
    if task.kind != "causal_lm" and data.length < SHORTEST:
        yield (
            f"{path}.data.length = {data.length}: must be at least {SHORTEST} for "
            f"{path}.task.kind = {task.kind!r}"
        )
    yield from _sample_mistakes(config, path)
    if data.order == "contiguous":
        yield from _contiguous_mistakes(config, path)
    yield from _words_mistakes(config, path)
    if isinstance(model, LabelHeadConfig):
        yield from _classifier_mistakes(config, path)
    if isinstance(task, MaskedLMConfig):
        yield from _masked_lm_mistakes(config, path)
    if isinstance(task, TagConfig):
        yield from _tag_mistakes(config, path)
    if isinstance(task, WindowPairConfig):
        yield from _window_pair_mistakes(config, path)
    elif isinstance(task, GenerationTaskConfig):
        yield from writing_mistakes(config, path)
    elif data.target_length:
        yield (
            f"{path}.data.target_length = {data.target_length}: must be 0: "
            f"{path}.task.kind = {task.kind!r} has no target apart from its row"
        )


def _source_mistakes(config: Any, path: str) -> Iterator[str]:
    """Yield what keeps the data from being what the task learns from."""
    kind, source = config.task.kind, config.data.source
    allowed = EXAMPLE_SOURCES.get(kind, ())
    if allowed and source not in allowed:
        yield (
            f"{path}.data.source = {source!r}: must be one of {', '.join(allowed)} for "
            f"{path}.task.kind = {kind!r}"
        )
    sources = [source, *(part.source for part in config.data.mixture)]
    for name in sources if not allowed else ():
        if name in ONLY_EXAMPLES:
            yield (
                f"{path}.data.source = {name!r}: holds examples, not the text "
                f"that {path}.task.kind = {kind!r} learns from"
            )


def _recurrent_mistakes(config: Any, path: str) -> Iterator[str]:
    """Yield what keeps a recurrent network from predicting each token from others."""
    model = config.model
    if model.num_labels:
        return  # it predicts none
    why = f"{path}.task.kind = {config.task.kind!r}"
    if model.bidirectional:
        yield (
            f"{path}.model.bidirectional = True: must be False for {why}, whose tokens "
            "must not see later ones"
        )
    if model.num_token_types:
        yield (
            f"{path}.model.num_token_types = {model.num_token_types}: must be 0 for "
            f"{why}: a text to go on with has none"
        )
    if model.tie_embeddings and model.hidden_dim != model.dim:
        yield (
            f"{path}.model.hidden_dim = {model.hidden_dim}: must be {path}.model.dim = "
            f"{model.dim}, unless {path}.model.tie_embeddings = False"
        )


def _classifier_mistakes(config: Any, path: str) -> Iterator[str]:
    """Yield what keeps a model's classifier from being the task's."""
    task, model = config.task, config.model
    if model.kind == "encoder" and task.kind == "classify" and not model.pooler:
        yield f"{path}.model.pooler = False: {path}.task.kind = 'classify' needs it"
    num_labels = len(outputs(task))
    if model.num_labels and model.num_labels != num_labels:
        yield (
            f"{path}.model.num_labels = {model.num_labels}: must be 0, or as many as "
            f"{path}.task has: {num_labels}"
        )
    if not isinstance(task, ClassifierTask):
        return
    yield from _parts_mistakes(config, path)
    if config.sample.prompts and model.kind != "encoder":  # said of all encoders
        yield (
            f"{path}.sample.prompts = {config.sample.prompts}: must be empty: "
            f"{path}.task.kind = {task.kind!r} does not write"
        )


def _parts_mistakes(config: Any, path: str) -> Iterator[str]:
    """Yield which parts of an example are said to be one."""
    taken: dict[str, str] = {}
    for leaf in _PARTS[config.task.kind]:
        name = getattr(config.data.fields, leaf)
        if name in taken:
            yield (
                f"{path}.data.fields.{leaf} = {name!r}: must not be "
                f"{path}.data.fields.{taken[name]}, too"
            )
        taken |= {name: leaf} if name else {}


def _tag_mistakes(config: Any, path: str) -> Iterator[str]:
    task, num_types = config.task, getattr(config.model, "num_token_types", 0)
    if task.casing and num_types < len(CASES):
        yield (
            f"{path}.task.casing = True: needs {path}.model.num_token_types of at "
            f"least {len(CASES)}, not {num_types}"
        )
    if not config.data.fields.predicate or task.mark_predicate != "token_types":
        return
    why = f"{path}.task.mark_predicate = 'token_types'"
    if task.casing:
        yield f"{why}: must be 'separators' with {path}.task.casing, which takes types"
    if num_types < 2:
        yield (
            f"{why}: needs {path}.model.num_token_types of at least 2, not {num_types};"
            " 'separators' suits any model"
        )


def _words_mistakes(config: Any, path: str) -> Iterator[str]:
    """Yield what keeps a vocabulary of words from serving its task."""
    task, tokenizer = config.task, config.tokenizer
    if tokenizer.kind != "words":
        return
    if task.kind == "tag" and tokenizer.split != "white_space":
        yield (
            f"{path}.tokenizer.split = {tokenizer.split!r}: must be 'white_space' for "
            f"{path}.task.kind = 'tag', whose words are given"
        )
    if task.kind != "classify" and tokenizer.stop_words:
        yield (
            f"{path}.tokenizer.stop_words = {tokenizer.stop_words!r}: must be '' for "
            f"{path}.task.kind = {task.kind!r}, which needs every word"
        )


def _span_qa_mistakes(config: Any, path: str) -> Iterator[str]:
    """Yield what would keep an answer at the seam of two windows from being in one."""
    task, length = config.task, config.data.length
    leaves = ("max_question_tokens", "stride", "max_answer_tokens")
    needed = sum(getattr(task, leaf) for leaf in leaves) + MOST_SPECIAL
    if length < needed:
        parts = " + ".join(f"{path}.task.{leaf}" for leaf in leaves)
        yield (
            f"{path}.data.length = {length}: must be at least {needed}, which is "
            f"{parts} + {MOST_SPECIAL}"
        )


def _sample_mistakes(config: Any, path: str) -> Iterator[str]:
    """Yield what would keep the trained model from continuing the prompts.

    Of other tokenizers than bytes a prompt's length is not known before they are made:
    it is at least a token, and what is too long is found before training.
    """
    sample, tokenizer, longest = config.sample, config.tokenizer, 1
    if not sample.prompts:
        return
    if tokenizer.kind == "bytes" and config.model.kind == "decoder":
        longest = tokenizer.bos + max(len(text.encode()) for text in sample.prompts)
    room = config.model.longest_text - longest
    if sample.max_tokens > room:
        yield (
            f"{path}.sample.max_tokens = {sample.max_tokens}: with a prompt of "
            f"{longest} tokens must be at most {max(room, 0)} "
            f"({path}.model.max_length = {config.model.max_length})"
        )


def _contiguous_mistakes(config: Any, path: str) -> Iterator[str]:
    """Yield what keeps the rows of a batch from going on in the next."""
    why = f"{path}.data.order = 'contiguous'"
    if (kind := config.task.kind) in EXAMPLE_SOURCES:
        yield f"{why}: {path}.task.kind = {kind!r} reads examples, not a stream"
    if config.model.kind != "recurrent":
        yield (
            f"{why}: needs {path}.model.kind = 'recurrent', not {config.model.kind!r}"
        )
    if config.data.source == "mixture":
        yield f"{why}: takes one source, not {path}.data.source = 'mixture'"
    if config.eval.num_batches:
        yield (
            f"{path}.eval.num_batches = {config.eval.num_batches}: must be 0: with "
            f"{why} a split is read from its beginning to its end"
        )


def _masked_lm_mistakes(config: Any, path: str) -> Iterator[str]:
    task, model = config.task, config.model
    if not model.mlm_head:
        yield f"{path}.model.mlm_head = False: {path}.task.kind = 'masked_lm' needs it"
    if not task.sentence_order:
        return
    why = f"{path}.task.sentence_order = True needs"
    if not model.pair_head:
        yield f"{path}.model.pair_head = False: {why} it"
    if model.num_token_types < 2:
        yield (
            f"{path}.model.num_token_types = {model.num_token_types}: {why} at least 2"
        )
    if config.data.isolate_documents:
        yield f"{path}.data.isolate_documents = True: {why} texts that see each other"


def _window_pair_mistakes(config: Any, path: str) -> Iterator[str]:
    task, model, data = config.task, config.model, config.data
    needed = window_pair_lengths(data.length, task, model.decoder_prefix_ids)[1]
    if data.target_length < needed:
        yield (
            f"{path}.data.target_length = {data.target_length}: must be 0 or at least "
            f"{needed}, for {path}.data.length = {data.length}"
        )
    if data.target_length > model.max_length:
        yield (
            f"{path}.data.target_length = {data.target_length}: must be at most "
            f"{path}.model.max_length = {model.max_length}"
        )
    if data.isolate_documents:
        yield (
            f"{path}.data.isolate_documents = True: must be False for "
            f"{path}.task.kind = {task.kind!r}: source and target are one window"
        )
