"""What a run learns from, as config sections: documents or examples, and the cuts."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Literal

from lmjax.config.model import Count, CountOrZero
from lmjax.config.parse import Range, runtime


@dataclasses.dataclass(frozen=True, kw_only=True)
class FieldsConfig:
    """What a labelled example's parts are called in its file."""

    text: str = "text"
    pair: str = ""  # a second text; "": there is none
    label: str = "label"
    tokens: str = "tokens"  # the words of a sentence
    tags: str = "tags"  # one for each of them
    predicate: str = ""  # whose arguments they are: its place, or 0 or 1 for each word
    source: str = "source"
    target: str = "target"
    question: str = "question"
    context: str = "context"  # the text that holds the answer
    answers: str = "answers"  # each a text, and the character where it begins


PATHLESS = ("python_stdlib", "mixture", "none")  # sources that have no path

# Where several examples are about one text, which must not be in two splits.
TOGETHER = {"props": "a sentence", "squad": "a context"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where documents come from."""

    source: Literal[
        "python_stdlib",
        "text",
        "jsonl",
        "tsv",
        "csv",
        "conll",
        "props",
        "parallel",
        "squad",
        "tfds",
        "mixture",
        "none",
    ] = "text"
    # files: a glob; parallel: what stands before .SOURCE and .TARGET, the names in
    # `fields`; tfds: a catalog name or a built directory
    path: str = ""
    valid_path: str = ""  # "": hold documents of `path` out
    test_path: str = ""  # "": no test split
    train_split: str = "train"  # tfds
    valid_split: str = "validation"  # tfds
    test_split: str = ""  # tfds
    field: str = "text"  # jsonl, tfds: the field that holds the text
    fields: FieldsConfig = FieldsConfig()  # of examples
    # conll; props: where the tags' name stands, each predicate has a column
    columns: tuple[str, ...] = ("tokens", "pos", "chunk", "tags")
    document: Literal["file", "line"] = "file"  # text: what one document is
    holdout_every: Annotated[int, Range(2)] = 20  # every n-th is held out for valid
    on_bad_text: Literal["error", "replace"] = "error"  # bytes that are not UTF-8
    on_bad_example: Literal["error", "skip"] = "error"  # skip: leave it out, and count
    weight: Annotated[float, Range(1e-6)] = 1.0  # share of samples in a mixture

    def mistakes(self, path: str) -> Iterator[str]:
        """Yield the errors between fields."""
        if self.source not in PATHLESS and not self.path:
            yield f"{path}.path = '': {path}.source = {self.source!r} needs one"
        if self.source in PATHLESS and self.path:
            yield f"{path}.path = {self.path!r}: {self.source!r} takes none"
        for name in dict.fromkeys(self.columns):
            if self.columns.count(name) > 1:
                yield f"{path}.columns: {name!r} is there more than once"
        names = self.fields.source, self.fields.target
        if self.source == "parallel" and len({*names}) < len(names):
            yield (
                f"{path}.fields.target = {names[1]!r}: must not be "
                f"{path}.fields.source, too"
            )
        if self.source == "props":
            yield from self._props_mistakes(path)
        if self.source in TOGETHER and not self.valid_path:
            yield (
                f"{path}.valid_path = '': {path}.source = {self.source!r} needs one: "
                f"held out are examples, and {TOGETHER[self.source]} has several"
            )

    def _props_mistakes(self, path: str) -> Iterator[str]:
        for leaf in ("tokens", "predicate", "tags"):
            if (name := getattr(self.fields, leaf)) not in self.columns:
                yield (
                    f"{path}.fields.{leaf} = {name!r}: {path}.source = 'props' needs "
                    f"it to be one of {path}.columns: {', '.join(self.columns)}"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(SourceConfig):
    """The documents, and how windows of tokens are cut from them."""

    length: Count = 1024  # tokens in a row; of an encoder-decoder, in its source
    # of an encoder-decoder, or after a prompt, in `length`; 0: what length asks for
    target_length: CountOrZero = 0
    num_buckets: Count = 4  # lengths that rows of examples are filled up to
    isolate_documents: bool = True  # no attention from one document to another
    # contiguous: each row goes on where it stopped a step before, as does the state of
    # a recurrent network; a held-out split is one row
    order: Literal["shuffled", "contiguous"] = "shuffled"
    mixture: tuple[SourceConfig, ...] = ()  # when source is "mixture"
    store: str = runtime("")  # where token stores are kept; "": WORKDIR/store
    num_store_workers: CountOrZero = runtime(0)  # 0: one for each core
    num_workers: CountOrZero = runtime(0)  # loader processes; 0: one thread
    prefetch_batches: Count = runtime(8)

    def mistakes(self, path: str) -> Iterator[str]:
        """Yield what is wrong between fields, and in each part of a mixture."""
        yield from super().mistakes(path)
        if (self.source == "mixture") != bool(self.mixture):
            yield (
                f"{path}.mixture: give its parts exactly when {path}.source = 'mixture'"
            )
        for i, part in enumerate(self.mixture):
            if part.source == "mixture":
                yield f"{path}.mixture[{i}].source = 'mixture': must not be nested"
            yield from part.mistakes(f"{path}.mixture[{i}]")
