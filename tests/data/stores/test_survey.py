"""What is told of a text when its store is built."""

import logging

from lmjax.data.stores.store_manifest import read_manifest
from lmjax.data.stores.survey import Surveyor, script_of
from lmjax.data.stores.token_store_builder import (
    build_shards,
    build_token_store,
    plan_store,
)
from lmjax.data.tokenizers.plain import Bytes

TEXTS = ["one two", "", "один", "one two", " \n", "三" * 100, "one two"]


def test_the_survey_counts_what_it_names(tmp_path, caplog, texts):
    documents = texts(TEXTS)
    with caplog.at_level(logging.INFO):
        store = build_token_store(
            tmp_path, documents=documents, tokenizer=Bytes(bos=False), label="train"
        )
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("train: 7 documents, ")
    assert "longest 300 bytes; 2 empty; 2 exact duplicates; letters: Han 82%" in line
    assert not [*tmp_path.glob("*.hashes")]
    assert read_manifest(tmp_path)["survey"] == store.survey
    caplog.clear()
    build_token_store(tmp_path, documents=documents, tokenizer=Bytes(bos=False))
    assert not caplog.records  # told once


def test_shards_of_several_jobs_are_surveyed_together(tmp_path, texts):
    documents = texts(TEXTS * 2)
    plan = plan_store(tmp_path, documents=documents, tokenizer=Bytes(bos=False))
    build_shards(plan, range(plan.num_shards), num_workers=1)
    store = build_token_store(tmp_path, documents=documents, tokenizer=Bytes(bos=False))
    assert store.survey["num_duplicates"] == 14 - len({*TEXTS})
    assert store.survey["num_empty"] == 4


def test_a_long_document_is_one_document():
    surveyor = Surveyor()
    for i in range(3):
        surveyor.add("äb " * 100, is_first=i == 0, is_last=i == 2)
    assert surveyor.survey.longest_bytes == 3 * 400
    assert len(surveyor.hashes) == 1
    assert {script_of(c) for c in "aé，1 ａ"} == {"Latin", ""}
    assert [script_of(c) for c in "字カあдλع"] == [
        "Han", "Katakana", "Hiragana", "Cyrillic", "Greek", "Arabic"
    ]  # fmt: skip
