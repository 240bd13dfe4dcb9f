"""Examples from TensorFlow Datasets."""

import pickle
import sys

import numpy as np
import pytest

from lmjax.config.data import SourceConfig
from lmjax.config.experiment import parse
from lmjax.data import example_datasets, pipeline
from lmjax.data.formats.registry import open_examples
from lmjax.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")

NAMES = ("O", "B-PER", "B-LOC")


def builder_class():
    """Define a dataset; in a function, so that TFDS's catalog is not read before."""

    class LmjaxLabelled(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            kinds = tfds.features
            features = {
                "text": kinds.Text(),
                "label": kinds.ClassLabel(names=["pos", "neg"]),
                "tokens": kinds.Sequence(kinds.Text()),
                "ner": kinds.Sequence(kinds.ClassLabel(names=NAMES)),
                "number": np.int64,
                "inner": {"score": np.float32, "flag": np.bool_},
                "answers": kinds.Sequence({"text": kinds.Text(), "start": np.int32}),
                "parts": kinds.Dataset({"x": kinds.Text()}),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=kinds.FeaturesDict(features)
            )

        def _split_generators(self, manager):
            return {
                "train": self._generate_examples(5),
                "test": self._generate_examples(2, label=-1),
            }

        def _generate_examples(self, count, label=None):
            for i in range(count):
                yield (
                    i,
                    {
                        "text": f"text {i} é",
                        "label": i % 2 if label is None else label,
                        "tokens": ["Ann", "met", "Ulm"],
                        "ner": [1, 0, 2],
                        "number": i,
                        "inner": {"score": 1.5, "flag": True},
                        "answers": [{"text": "a", "start": 3}] * i,
                        "parts": [{"x": "y"}],
                    },
                )

    return LmjaxLabelled


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    builder = builder_class()(data_dir=directory, file_format="array_record")
    builder.download_and_prepare()
    return str(builder.data_dir)


def source(built, **more):
    splits = {"valid_split": "test", "test_split": "train[80%:]"}
    return {"source": "tfds", "path": built, **splits, **more}


def open_split(built, split, **more):
    return open_examples(SourceConfig(**source(built, **more)), split=split)


def test_a_record_is_an_example(built):
    examples = open_split(built, "train")
    assert len(examples) == 5
    (i,) = [i for i in range(5) if examples[i]["number"] == 3]
    assert examples[i] == {
        "text": "text 3 é",
        "label": "neg",
        "tokens": ["Ann", "met", "Ulm"],
        "ner": ["B-PER", "O", "B-LOC"],
        "number": 3,
        "inner/score": 1.5,
        "inner/flag": True,
        "answers/text": ["a"] * 3,
        "answers/start": [3] * 3,
    }
    assert examples.where(i) == f"lmjax_labelled/1.0.0 train[{i}]"
    assert pickle.loads(pickle.dumps(examples))[i] == examples[i]
    assert "tensorflow" not in sys.modules


def test_splits_and_slices(built):
    assert len(open_split(built, "test")) == 1
    assert len(open_split(built, "train", train_split="train[:80%]+test")) == 6
    assert open_split(built, "test", test_split="") is None
    prints = {open_split(built, split).fingerprint() for split in ("train", "test")}
    assert len(prints) == 2
    assert open_split(built, "valid")[0]["label"] is None


@pytest.mark.parametrize(
    ("split", "why"),
    [
        ("trian", r"no such split \(did you mean 'train'\?\); .*train, test"),
        ("train[:5x]", r"'train\[:90%\]': "),
        ("train[9:3]", r"'train\[:90%\]': .*\[9:3\] incompatible"),
        ("train[4:2]", "has no example"),
        ("train[:0]", "has no example"),
    ],
)
def test_a_split_that_does_not_exist_or_is_empty(built, split, why):
    with pytest.raises(UserError, match=why) as error:
        open_split(built, "train", train_split=split)
    assert str(error.value).startswith(f"config.data.train_split = {split!r}: ")
    assert "\n" not in str(error.value)


def config(built, task, **data):
    sections = {
        "model": {"kind": "encoder", "pooler": True},
        "tokenizer": {"kind": "bytes"},
        "data": source(built, **{"valid_split": "train[:2]", "length": 24, **data}),
        "task": {"kind": task},
    }
    return parse(sections)


def test_labels_are_the_class_names_of_the_dataset_in_its_order(
    built, tmp_path, monkeypatch
):
    found = example_datasets.resolve_labels(
        config(built, "tag", fields={"tags": "ner"})
    )
    assert found.task.labels == NAMES
    (store,) = pipeline.prepare(found, workdir=tmp_path).stores["train"]
    assert store[0]["label"].tolist() == [1, 0, 2]
    assert example_datasets.resolve_labels(config(built, "classify")).task.labels == (
        "pos",
        "neg",
    )
    numbers = config(built, "classify", fields={"label": "number"})
    assert example_datasets.resolve_labels(numbers).task.labels == (
        "0",
        "1",
        "2",
        "3",
        "4",
    )


@pytest.mark.parametrize(
    ("task", "data", "why"),
    [
        ("classify", {"fields": {"text": "txt"}}, "text = 'txt': no such.*an 'text'"),
        ("classify", {"fields": {"text": "number"}}, "'number' holds int, not a str"),
        ("classify", {"fields": {"text": "parts"}}, "parts': no such field; there are"),
        ("classify", {"fields": {"label": "inner/score"}}, "holds float, not a label"),
        ("classify", {"train_split": "test"}, "'label' holds NoneType, not a label"),
        ("tag", {"fields": {"tags": "label"}}, "'label' holds str, not a list"),
    ],
)
def test_a_feature_of_another_type(built, tmp_path, task, data, why):
    with pytest.raises(UserError, match=rf"lmjax_labelled/1.0.0 \w+\[0\]: .*{why}"):
        pipeline.prepare(config(built, task, **data), workdir=tmp_path)


def test_there_must_be_a_train_split(built, tmp_path):
    with pytest.raises(UserError, match=r"config\.data\.train_split = '': "):
        pipeline.prepare(config(built, "classify", train_split=""), workdir=tmp_path)
