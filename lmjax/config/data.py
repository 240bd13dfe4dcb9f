"""The config of the data: where it comes from, and how it is cut into rows."""

import codecs
import dataclasses
from collections.abc import Iterator
from encodings.aliases import aliases
from typing import Annotated, Literal

from lmjax.config.leaf_types import (
    Interval,
    NonNegativeInt,
    PositiveInt,
    runtime_field,
)
from lmjax.errors import nearest


@dataclasses.dataclass(frozen=True, kw_only=True)
class FieldsConfig:
    """The names that the fields of an example have in the data.

    Fields are the keys of a JSON object, the columns of a table or of CoNLL files, or
    the features of a TFDS record ("outer/inner" for nested ones).
    """

    text: str = "text"
    pair: str = ""  # a second text, to classify pairs; "": none
    label: str = "label"
    tokens: str = "tokens"  # the words of a sentence
    tags: str = "tags"  # one for each word
    # semantic roles: the predicate, as its word's index or 0 or 1 for each word;
    # "": none
    predicate: str = ""
    source: str = "source"
    target: str = "target"
    # of preferences: completions of a prompt, of pairs and for KTO single ones
    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    completion: str = "completion"
    messages: str = "messages"  # of a chat; also where it is `conversations`
    question: str = "question"
    context: str = "context"  # the text that contains the answers
    answers: str = "answers"  # SQuAD's: `text` and `answer_start` of each


SOURCES_WITHOUT_PATH = ("python_stdlib", "mixture", "none")

# Sources of records, whose fields have names; and those with fields of any type.
RECORDS = ("jsonl", "tsv", "csv", "parquet", "arrow", "tfds")
NESTED_RECORDS = ("jsonl", "parquet", "arrow", "tfds")

# Sources that have several examples of one text, which must not be in two splits.
SHARED_TEXT = {"props": "sentence", "squad": "context"}


def _encoding_fault(name: str) -> str:
    """Return why Python has no such encoding of text; "": it has."""
    if name == "auto":
        return ""
    try:
        b"text".decode(name, "replace")  # raises for base64 and the like
        codecs.getincrementaldecoder(name)
    except (LookupError, ValueError):
        known = sorted({*aliases.values(), *aliases})
        return (
            f"no encoding that Python knows{nearest(name, known)}, such as utf-8, "
            "utf-16, latin-1, cp1252, gb18030, shift_jis; auto finds that of each file"
        )
    return ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where documents or examples come from, and how they are split."""

    # documents: python_stdlib (the source code of Python's standard library), text;
    # documents or examples: jsonl (also JSON arrays), tsv, csv, parquet, arrow, tfds
    # (TensorFlow Datasets); examples: conll, props (CoNLL-2005), parallel (two aligned
    # files), squad, chat (messages in jsonl, parquet or arrow). Files of text may be
    # compressed (gzip, bzip2, xz, zstd)
    source: Literal[
        "python_stdlib",
        "text",
        "jsonl",
        "tsv",
        "csv",
        "parquet",
        "arrow",
        "conll",
        "props",
        "parallel",
        "squad",
        "chat",
        "tfds",
        "mixture",
        "none",
    ] = "text"
    # a glob of files, or a directory: of files that are all named by splits, as
    # train-00000-of-00042.parquet or test/a.txt, each split has its own;
    # hf://ORG/NAME[/FOLDER]: a dataset of the hub, read as a directory; parallel:
    # PATH of PATH.SOURCE and PATH.TARGET, where `fields` has SOURCE and TARGET; tfds:
    # a catalog name, or the directory of a built dataset
    path: str = ""
    # as path, for the other splits. valid_path "": the valid split of a directory, or
    # some of `path` is held out; test_path "": the test split of a directory, or none
    valid_path: str = ""
    test_path: str = ""
    # tfds: names of splits, also slices such as "train[:90%]"; test_split "": none
    train_split: str = "train"
    valid_split: str = "validation"
    test_split: str = ""
    field: str = "text"  # documents of records: the field, or column, with the text
    fields: FieldsConfig = FieldsConfig()  # of examples
    # conll, props: the names of the columns; for props the columns of arguments, one
    # per predicate, are together the one of the tags
    columns: tuple[str, ...] = ("tokens", "pos", "chunk", "tags")
    document: Literal["file", "line"] = "file"  # text: a document is a file or a line
    # without a valid_path, every n-th document or example is held out for validation
    holdout_every: Annotated[int, Interval(2)] = 20
    # of text files: any that Python knows, or auto: that of each, told by its bytes
    encoding: str = "utf-8"
    # documents: keep, or take the text out of HTML or Markdown
    markup: Literal["keep", "html", "markdown"] = "keep"
    # text that is not in the encoding: stop, or replace bad bytes by U+FFFD (and null,
    # where a text should be, by no text)
    on_bad_text: Literal["error", "replace"] = "error"
    # a file that is no text (binary, Parquet, UTF-16; not in the encoding, unless
    # on_bad_text replaces), damaged, or of another structure: stop, or leave it out and
    # name it
    on_bad_file: Literal["error", "skip"] = "error"
    # an example that cannot be used: stop, or skip it and report the number skipped
    on_bad_example: Literal["error", "skip"] = "error"
    weight: Annotated[float, Interval(1e-6)] = (
        1.0  # in a mixture: relative share of rows
    )

    def validate(self, path: str) -> Iterator[str]:
        """Yield the problems between fields."""
        if self.source not in SOURCES_WITHOUT_PATH and not self.path:
            yield f"{path}.path = '': must be set for {path}.source = {self.source!r}"
        if self.source in SOURCES_WITHOUT_PATH and self.path:
            yield (
                f"{path}.path = {self.path!r}: must be '' for {path}.source = "
                f"{self.source!r}"
            )
        if self.on_bad_file == "skip" and self.source in ("parallel", "tfds"):
            yield (
                f"{path}.on_bad_file = 'skip': must be 'error' for {path}.source = "
                f"{self.source!r}, which needs each of its files"
            )
        if fault := _encoding_fault(self.encoding):
            yield f"{path}.encoding = {self.encoding!r}: {fault}"
        for name in dict.fromkeys(self.columns):
            if self.columns.count(name) > 1:
                yield f"{path}.columns: {name!r} is repeated"
        names = self.fields.source, self.fields.target
        if self.source == "parallel" and len({*names}) < len(names):
            yield (
                f"{path}.fields.target = {names[1]!r}: must differ from "
                f"{path}.fields.source"
            )
        if self.source == "props":
            for leaf in ("tokens", "predicate", "tags"):
                if (name := getattr(self.fields, leaf)) not in self.columns:
                    yield (
                        f"{path}.fields.{leaf} = {name!r}: must be one of "
                        f"{path}.columns for {path}.source = 'props': "
                        f"{', '.join(self.columns)}"
                    )
        if self.source in SHARED_TEXT and not self.valid_path:
            yield (
                f"{path}.valid_path = '': must be set for {path}.source = "
                f"{self.source!r}: examples of one {SHARED_TEXT[self.source]} must "
                "not be in two splits"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(SourceConfig):
    """The source of the data, and how it is cut into rows of tokens."""

    length: PositiveInt = 1024  # tokens in a row; of an encoder-decoder: in its source
    # tokens in a target. encoder-decoder: in the decoder; prompted_lm: the part of
    # `length` that the target may take; 0: follows from `length` and the task
    target_length: NonNegativeInt = 0
    # examples: rows are padded to one of at most this many lengths
    num_buckets: PositiveInt = 4
    # prompted_lm: several examples in a row of training, which do not see each other
    pack_examples: bool = False
    isolate_documents: bool = True  # no attention between the documents of a row
    # shuffled: windows in random order; contiguous: each row continues where it ended
    # in the batch before, with the state of the recurrent network
    order: Literal["shuffled", "contiguous"] = "shuffled"
    mixture: tuple[SourceConfig, ...] = ()  # the sources, for source = "mixture"
    # directory for encoded data; "": WORKDIR/store
    store: str = runtime_field("")
    num_store_workers: NonNegativeInt = runtime_field(0)  # that encode; 0: one per core
    num_workers: NonNegativeInt = runtime_field(0)  # processes that load; 0: a thread
    prefetch_batches: PositiveInt = runtime_field(8)  # batches to load ahead

    def validate(self, path: str) -> Iterator[str]:
        """Yield the problems between fields."""
        yield from super().validate(path)
        if (self.source == "mixture") != bool(self.mixture):
            yield (
                f"{path}.mixture: has {len(self.mixture)} sources with {path}.source = "
                f"{self.source!r}; must be set for 'mixture', and only then"
            )
        for i, part in enumerate(self.mixture):
            if part.source == "mixture":
                yield f"{path}.mixture[{i}].source = 'mixture': must not be nested"
