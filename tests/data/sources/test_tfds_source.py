import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from lmjax.config.data import SourceConfig
from lmjax.data.formats.registry import open_examples
from lmjax.data.sources.registry import open_splits
from lmjax.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")


def open_split(config, *, split, path="config.data"):
    return open_splits(config, splits=(split,), path=path).get(split)


def builder_class():
    """Define a dataset; in a function, so that importing reads no TFDS catalog."""

    class LmjaxTiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"text": tfds.features.Text(), "number": np.int64}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, manager):
            return {
                "train": self._generate_examples(5),
                "validation": self._generate_examples(2),
            }

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {"text": f"document {i} é", "number": i}

    return LmjaxTiny


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    builder = builder_class()(
        data_dir=tmp_path_factory.mktemp("tfds"), file_format="array_record"
    )
    builder.download_and_prepare()
    return str(builder.data_dir)


def test_a_built_dataset_is_read_without_tensorflow(built):
    config = SourceConfig(source="tfds", path=built)
    train = open_split(config, split="train")
    assert sorted(train[i] for i in range(len(train))) == [
        f"document {i} é" for i in range(5)
    ]
    assert len(open_split(config, split="valid")) == 2
    assert open_split(config, split="test") is None
    assert pickle.loads(pickle.dumps(train))[3] == train[3]
    assert "tensorflow" not in sys.modules


def test_slices_are_splits(built):
    config = SourceConfig(source="tfds", path=built, train_split="train[:60%]")
    train = open_split(config, split="train")
    assert len(train) == 3
    whole = open_split(SourceConfig(source="tfds", path=built), split="train")
    assert train.fingerprint() != whole.fingerprint()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train_split": "trian"}, "train_split = 'trian': .*did you mean 'train'"),
        ({"field": "txt"}, r"field = 'txt': no such feature \(did you mean 'text'"),
        ({"field": "number"}, "field = 'number': must be text"),
        ({"path": "lm1"}, r"path = 'lm1': .*did you mean 'lm1b'"),
        ({"path": "lm1b/no"}, "path = 'lm1b/no': .*BuilderConfig no not found"),
        ({"path": "/no/where"}, "path = '/no/where': neither a directory"),
    ],
)
def test_errors_name_the_leaf(built, fields, message):
    config = SourceConfig(**{"source": "tfds", "path": built, **fields})
    with pytest.raises(UserError, match=message) as error:
        open_split(config, split="train")
    assert "\n" not in str(error.value)


HF_INFO = '{"builder_name": "json", "features": {"text": {"dtype": "string"}}}'


@pytest.mark.parametrize("source_of", ["documents", "examples"])
def test_a_path_that_is_something_else(built, tmp_path, source_of):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    for name in ("empty", "hf", "list", "broken", "lost"):
        (tmp_path / name).mkdir()
    (tmp_path / "hf" / "dataset_info.json").write_text(HF_INFO)
    (tmp_path / "list" / "dataset_info.json").write_text("[1]")
    (tmp_path / "broken" / "dataset_info.json").write_bytes(b"\xff{")
    parent = Path(built).parent
    for name in ("dataset_info.json", "features.json"):
        shutil.copy(f"{built}/{name}", tmp_path / "lost" / name)
    for path, why in (
        (tmp_path / "a.parquet", "is a file"),
        (tmp_path / "empty", "has no dataset_info"),
        (parent, "no dataset_info.json; .*1.0.0 has one"),
        (tmp_path / "hf", "its dataset_info.json is not"),
        (tmp_path / "list", "its dataset_info.json is not"),
        (tmp_path / "broken", "its dataset_info.json is not"),
        (tmp_path / "lost", "cannot be read"),
    ):
        config = SourceConfig(source="tfds", path=str(path))
        with pytest.raises(UserError, match=rf"config\.data\.path.*{why}") as error:
            if source_of == "examples":
                open_examples(config, split="train")
            open_split(config, split="train")
        assert "\n" not in str(error.value)


def test_no_network(monkeypatch):
    def fail(self, **_):
        raise ConnectionError("Failed to resolve 'www.statmt.org'\nand more")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(UserError, match=r"'lm1b': cannot be prepared: Failed to res"):
        open_split(SourceConfig(source="tfds", path="lm1b"), split="train")
