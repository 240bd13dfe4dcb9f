"""Cross-section validation: the needs of the task, in model, data and tokenizer."""

from collections.abc import Iterator
from typing import Any

from lmjax.config.decoding import id_conflicts
from lmjax.config.model import CAUSAL_KINDS, LabelHeadConfig

# Sources that hold nothing but examples.
ONLY_EXAMPLES = ("conll", "props", "parallel", "squad", "chat")
MIN_LENGTH = 8  # tokens; special ones and a span leave some of them


def find_conflicts(config: Any, path: str) -> Iterator[str]:
    """Yield the conflicts of the task of a `Config` with its other sections.

    Where there are no data nothing is trained: an imported model may be of any kind,
    but it predicts as one that was trained here.
    """
    task, model, data = config.task, config.model, config.data
    yield from task.prediction_conflicts(config, path)
    yield from id_conflicts(config, path)
    if model.kind == "recurrent" and task.model_kinds == CAUSAL_KINDS:
        yield from _recurrent_conflicts(config, path)
    if data.source == "none":
        return
    if model.kind not in task.model_kinds:
        kinds = " or ".join(map(repr, task.model_kinds))
        yield (
            f"{path}.task.kind = {task.kind!r}: needs {path}.model.kind = {kinds}, "
            f"not {model.kind!r}"
        )
        return
    if not getattr(model, "lm_head", True) and not task.uses_classifier:
        yield (
            f"{path}.model.lm_head = False: must be True for {path}.task.kind = "
            f"{task.kind!r}, which predicts tokens"
        )
    yield from _source_conflicts(config, path)
    yield from _distill_conflicts(config, path)
    if model.kind == "encoder" and config.sample.prompts:
        yield (
            f"{path}.sample.prompts = {config.sample.prompts}: must be empty: an "
            "encoder does not generate text"
        )
    if task.kind != "causal_lm" and data.length < MIN_LENGTH:
        yield (
            f"{path}.data.length = {data.length}: must be at least {MIN_LENGTH} for "
            f"{path}.task.kind = {task.kind!r}"
        )
    yield from _sample_conflicts(config, path)
    if data.order == "contiguous":
        yield from _contiguous_conflicts(config, path)
    yield from _words_conflicts(config, path)
    yield from _packing_conflicts(config, path)
    if isinstance(model, LabelHeadConfig):
        yield from _classifier_conflicts(config, path)
    yield from task.conflicts(config, path)
    if data.target_length and not task.has_target:
        yield (
            f"{path}.data.target_length = {data.target_length}: must be 0: "
            f"{path}.task.kind = {task.kind!r} has no targets of their own length"
        )


def _packing_conflicts(config: Any, path: str) -> Iterator[str]:
    """Yield what does not allow several examples in a row."""
    if config.data.pack_examples and not config.task.packs_examples:
        yield (
            f"{path}.data.pack_examples = True: must be False for {path}.task.kind = "
            f"{config.task.kind!r}"
        )


def _distill_conflicts(config: Any, path: str) -> Iterator[str]:
    """Yield the conflicts of a teacher with the task and its data."""
    teacher = config.task.distill.teacher
    where = f"{path}.task.distill.teacher = {teacher!r}"
    if teacher and not config.task.can_distill:
        yield f"{where}: must be '' for {path}.task.kind = {config.task.kind!r}"
    if teacher and config.data.order == "contiguous":
        yield (
            f"{where}: must be '' with {path}.data.order = 'contiguous', where a "
            "teacher would not know the windows before"
        )


def _source_conflicts(config: Any, path: str) -> Iterator[str]:
    """Yield the conflicts of the task with the sources of its data."""
    kind, source = config.task.kind, config.data.source
    allowed = config.task.example_sources
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
                f"that {path}.task.kind = {kind!r} is trained on"
            )


def _recurrent_conflicts(config: Any, path: str) -> Iterator[str]:
    """Yield the settings of a recurrent network that do not suit the next token."""
    model = config.model
    if model.num_labels:
        return  # it predicts labels
    why = f"{path}.task.kind = {config.task.kind!r}"
    if model.bidirectional:
        yield (
            f"{path}.model.bidirectional = True: must be False for {why}, whose tokens "
            "must not depend on later ones"
        )
    if model.num_token_types:
        yield (
            f"{path}.model.num_token_types = {model.num_token_types}: must be 0 for "
            f"{why}: text to continue has none"
        )
    if model.tie_embeddings and model.hidden_dim != model.dim:
        yield (
            f"{path}.model.hidden_dim = {model.hidden_dim}: must be {path}.model.dim = "
            f"{model.dim}, unless {path}.model.tie_embeddings = False"
        )


def _classifier_conflicts(config: Any, path: str) -> Iterator[str]:
    """Yield the conflicts of the task with a model that can have a classifier."""
    task, model = config.task, config.model
    num_labels = len(task.output_names)
    if model.num_labels and model.num_labels != num_labels:
        yield (
            f"{path}.model.num_labels = {model.num_labels}: must be 0, or as many as "
            f"{path}.task has: {num_labels}"
        )
    if not task.uses_classifier:
        return
    yield from _field_conflicts(config, path)
    if config.sample.prompts and model.kind != "encoder":  # reported for all encoders
        yield (
            f"{path}.sample.prompts = {config.sample.prompts}: must be empty: "
            f"{path}.task.kind = {task.kind!r} does not generate text"
        )


def _field_conflicts(config: Any, path: str) -> Iterator[str]:
    """Yield fields of an example that are given as two of its parts."""
    leaf_of: dict[str, str] = {}
    for leaf in config.task.example_fields:
        name = getattr(config.data.fields, leaf)
        if name in leaf_of:
            yield (
                f"{path}.data.fields.{leaf} = {name!r}: must not be "
                f"{path}.data.fields.{leaf_of[name]}, too"
            )
        leaf_of |= {name: leaf} if name else {}


def _words_conflicts(config: Any, path: str) -> Iterator[str]:
    """Yield the conflicts of the task with a vocabulary of words."""
    task, tokenizer = config.task, config.tokenizer
    if tokenizer.kind != "words":
        return
    if task.kind == "tag" and tokenizer.split != "white_space":
        yield (
            f"{path}.tokenizer.split = {tokenizer.split!r}: must be 'white_space' for "
            f"{path}.task.kind = 'tag', whose examples are split into words"
        )
    if task.kind != "classify" and tokenizer.stop_words:
        yield (
            f"{path}.tokenizer.stop_words = {tokenizer.stop_words!r}: must be '' for "
            f"{path}.task.kind = {task.kind!r}, which needs every word"
        )


def _sample_conflicts(config: Any, path: str) -> Iterator[str]:
    """Yield the conflicts of the sample prompts with the model.

    Only bytes tell the length of a prompt before there is a tokenizer; with others it
    has at least one token, and one that is too long is found before training.
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


def _contiguous_conflicts(config: Any, path: str) -> Iterator[str]:
    """Yield the conflicts of contiguous order with other sections."""
    why = f"{path}.data.order = 'contiguous'"
    if config.task.reads_examples:
        kind = config.task.kind
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
            f"{why} a split is read from its start to its end"
        )
