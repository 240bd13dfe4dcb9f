import json
import pickle

import pytest

from lmjax.config.data import SourceConfig
from lmjax.data.sources import documents as documents_lib
from lmjax.data.sources.documents import estimate_bytes
from lmjax.data.sources.registry import open_splits
from lmjax.errors import UserError


def open_split(config, *, split, path="config.data"):
    return open_splits(config, splits=(split,), path=path).get(split)


def read(documents):
    return [documents[i] for i in range(len(documents))]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def text(path, **fields):
    return SourceConfig(source="text", path=str(path), **fields)


@pytest.mark.slow
def test_python_stdlib_splits_every_twentieth_file():
    config = SourceConfig(source="python_stdlib")
    train, valid = (open_split(config, split=s) for s in ("train", "valid"))
    assert open_split(config, split="test") is None
    assert len(valid) == -(-(len(train) + len(valid)) // 20)
    assert len(train) > 400
    assert "import" in train[5]
    assert train.fingerprint() != valid.fingerprint()


def test_held_out_documents_are_the_rest(corpus):
    config = text(corpus, holdout_every=7)
    train, valid = (open_split(config, split=s) for s in ("train", "valid"))
    number = lambda document: int(document.split()[1])
    assert list(map(number, read(valid))) == list(range(0, 40, 7))
    assert list(map(number, read(train))) == [i for i in range(40) if i % 7]


def test_given_splits_are_whole(tmp_path):
    for split in ("train", "valid", "test"):
        write(tmp_path / "deep" / split / "a.txt", f"{split}\r\n\n")
    config = text(
        tmp_path / "**" / "train" / "*.txt",
        valid_path=str(tmp_path / "**" / "valid" / "*"),
        test_path=str(tmp_path / "**" / "test" / "*"),
    )
    for split in ("train", "valid", "test"):
        assert read(open_split(config, split=split)) == [f"{split}\r\n\n"]


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.txt", "here")
    config = text("~/a.txt", valid_path="~/a.txt")
    assert read(open_split(config, split="train")) == ["here"]


def test_lines_are_documents(tmp_path):
    write(tmp_path / "a.txt", " one two \n\n \t\nthree\r\n")
    write(tmp_path / "b.txt", "")
    write(tmp_path / "c.txt", "  \nfour, no line end")
    config = text(tmp_path / "*.txt", document="line", valid_path=str(tmp_path / "a*"))
    documents = open_split(config, split="train")
    assert read(documents) == ["one two", "three", "four, no line end"]
    assert read(pickle.loads(pickle.dumps(documents))) == read(documents)


def test_json_lines(tmp_path):
    lines = [{"body": "one\ntwo"}, {"body": "é"}]
    write(tmp_path / "a.jsonl", "\n\n".join(map(json.dumps, lines)) + "\n")
    path = str(tmp_path / "a.jsonl")
    config = SourceConfig(source="jsonl", path=path, field="body", valid_path=path)
    documents = open_split(config, split="train")
    assert read(documents) == ["one\ntwo", "é"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"body": ', "a.jsonl:3: not JSON"),
        ('["body"]', "a.jsonl:3: not a JSON object"),
        ('{"bodi": "x", "n": 1}', "no such field (did you mean 'bodi'?); the line has"),
        ('{"body": 5}', "a.jsonl:3: config.data.field = 'body': holds int"),
        ('{"body": "\\ud800"}', "a.jsonl:3: half of a surrogate pair"),
    ],
)
def test_errors_name_the_json_line(tmp_path, line, message):
    write(tmp_path / "a.jsonl", f'{{"body": "fine"}}\n\n{line}\n')
    path = str(tmp_path / "a.jsonl")
    config = SourceConfig(source="jsonl", path=path, field="body", valid_path=path)
    with pytest.raises(UserError) as error:
        open_split(config, split="train")[1]
    assert message in str(error.value) and "\n" not in str(error.value)


def test_lone_surrogates_can_be_replaced(tmp_path):
    write(tmp_path / "a.jsonl", '{"text": "a\\ud800b\\ud83d\\ude00"}\n')
    path = str(tmp_path / "a.jsonl")
    config = SourceConfig(
        source="jsonl", path=path, valid_path=path, on_bad_text="replace"
    )
    assert read(open_split(config, split="train")) == ["a\ufffdb\U0001f600"]


def test_nothing_matches(tmp_path):
    with pytest.raises(UserError, match=r"config.data.path = .*: matches no file"):
        open_split(text(tmp_path / "*.txt"), split="train")
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(UserError, match="matches only directories"):
        open_split(text(tmp_path / "*.txt"), split="train")
    config = text(tmp_path / "a.txt", valid_path=str(tmp_path / "no"))
    with pytest.raises(UserError, match=r"here\[1\]\.valid_path = .*no': matches no"):
        open_split(config, split="valid", path="here[1]")


@pytest.mark.parametrize("document", ["file", "line"])
def test_unreadable_files_are_named(tmp_path, document):
    (tmp_path / "a.txt").symlink_to(tmp_path / "nowhere")
    config = text(tmp_path / "a.*", document=document, valid_path=str(tmp_path / "a.*"))
    with pytest.raises(UserError, match=r"cannot read .*a\.txt: No such file"):
        read(open_split(config, split="train"))


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_corpus(tmp_path, content):
    write(tmp_path / "a.txt", content)
    path = str(tmp_path / "a.txt")
    with pytest.raises(UserError, match="no document for train"):
        len(open_split(text(path, valid_path=path, document="line"), split="train"))


def test_only_empty_files(tmp_path):
    for i in range(4):
        write(tmp_path / f"{i}.txt", "")
    with pytest.raises(UserError, match="every document for train is empty"):
        len(open_split(text(tmp_path / "*.txt"), split="train"))


def test_a_single_document_cannot_be_split(tmp_path):
    write(tmp_path / "a.txt", "all there is")
    with pytest.raises(UserError, match=r"give config\.data\.valid_path"):
        len(open_split(text(tmp_path / "a.txt"), split="train"))


@pytest.mark.parametrize(
    ("document", "where"), [("file", "a.txt: not"), ("line", "a.txt:2: not")]
)
def test_bytes_that_are_not_utf8(tmp_path, document, where):
    write(tmp_path / "a.txt", b"fine\nb\xe9d\n")
    path = str(tmp_path / "a.txt")
    config = text(path, document=document, valid_path=path)
    with pytest.raises(UserError) as error:
        read(open_split(config, split="train"))
    assert where in str(error.value) and "at byte" in str(error.value)
    assert "config.data.on_bad_text='replace'" in str(error.value)
    config = text(path, document=document, valid_path=path, on_bad_text="replace")
    assert "b\ufffdd" in read(open_split(config, split="train"))[-1]


def test_fingerprints_follow_the_files(tmp_path):
    path = tmp_path / "a.txt"
    write(path, "one\n")
    config = text(path, valid_path=str(path))
    before = open_split(config, split="train").fingerprint()
    assert open_split(config, split="train").fingerprint() == before
    write(path, "other\n")
    assert open_split(config, split="train").fingerprint() != before


def test_bytes_are_estimated(corpus, monkeypatch):
    config = text(corpus, valid_path=corpus)
    documents = open_split(config, split="train")
    exact = sum(len(document.encode()) for document in read(documents))
    assert estimate_bytes(documents) == exact
    monkeypatch.setattr(documents_lib, "_MAX_SAMPLES", 9)
    assert abs(estimate_bytes(documents) - exact) < exact / 4
