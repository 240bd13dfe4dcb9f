"""`data.encoding = "auto"`, and datasets of the hub."""

import logging

import pytest

from lmjax.config.data import SourceConfig
from lmjax.data.sources.detect import detect
from lmjax.data.sources.registry import open_splits
from lmjax.errors import ConfigError

pytest.importorskip("charset_normalizer")
GERMAN = "Ein Hündchen läuft über die Straße. Größe, Übermut und Ärger. " * 20
TEXTS = {
    "utf-8": "naïve — 文字 🙂 " * 20,
    "utf-8-sig": GERMAN,
    "cp1252": GERMAN,
    "gb18030": "我喜欢学习语言模型，今天天气很好。" * 20,
    "cp1251": "Привет, как дела? Сегодня хорошая погода. " * 20,
    "shift_jis": "今日は天気がいいですね。言語モデルを勉強します。" * 20,
    "utf-16": GERMAN,
    "utf-16-le": GERMAN,
    "utf-16-be": GERMAN,
    "utf-32": GERMAN,
    "ascii": "plain words\n" * 20,
}


@pytest.mark.parametrize("encoding", TEXTS)
def test_a_text_is_read_in_its_own_encoding(encoding):
    raw = TEXTS[encoding].encode(encoding)
    found = detect([raw[:1000], raw[1000:]])
    text = raw.decode("utf-8-sig" if found == "utf-8" else found)
    assert text.removeprefix("\ufeff") == TEXTS[encoding]


@pytest.mark.parametrize("raw", [b"", b"\n", b"\xff", b"\x00", b"\x80" * 99])
def test_what_cannot_be_told_counts_as_utf8_or_can_be_decoded(raw):
    assert raw.decode(detect([raw]), "replace") is not None


def test_bytes_that_are_not_ascii_may_come_late():
    blocks = [b"a" * (1 << 16)] * 40 + [GERMAN.encode("cp1252")]
    assert b"".join(blocks).decode(detect(blocks)).endswith(GERMAN)


def test_files_of_several_encodings_are_one_corpus(tmp_path, caplog):
    for name in ("utf-8", "cp1251", "utf-16"):
        (tmp_path / f"{name}.txt").write_bytes(TEXTS[name].encode(name))
    for document in ("file", "line"):
        config = SourceConfig(
            path=str(tmp_path), encoding="auto", document=document, valid_path="x"
        )
        with caplog.at_level(logging.INFO):
            documents = open_splits(config, splits=("train",))["train"]
            read = [documents[i].strip() for i in range(len(documents))]
        assert read == [TEXTS[n].strip() for n in ("cp1251", "utf-16", "utf-8")]
    assert [record.getMessage().split()[-1] for record in caplog.records] == [
        "cp1251",
        "utf-16",
    ]
    assert documents.num_files == 3


def test_a_dataset_of_the_hub_is_a_directory(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def fetch(name, *, repo_type, allow_patterns):
        asked.append((name, repo_type, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    (tmp_path / "en").mkdir()
    for split in ("train", "test"):
        (tmp_path / f"en/{split}.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    config = SourceConfig(source="jsonl", path="hf://org/name/en")
    found = open_splits(config, splits=("train", "test"))
    assert len(found["train"]) == 1 and len(found["test"]) == 2  # one is held out
    name, kind, patterns = asked[0]
    assert (name, kind) == ("org/name", "dataset")
    assert "en/*.jsonl.zst" in patterns


@pytest.mark.parametrize("path", ["hf://name", "hf://", "hf:///x"])
def test_an_address_that_is_none_is_told(path):
    with pytest.raises(ConfigError, match="must be hf://ORG/NAME"):
        open_splits(SourceConfig(source="jsonl", path=path), splits=("train",))


def test_without_a_network_one_line_tells(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def fail(*args, **options):
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    config = SourceConfig(source="jsonl", path="hf://org/name")
    pattern = "config.data.path = 'hf://org/name': cannot be fetched: no route to host$"
    with pytest.raises(ConfigError, match=pattern):
        open_splits(config, splits=("train",))
