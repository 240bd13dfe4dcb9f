import dataclasses
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest

from lmjax.config import experiment
from lmjax.data import order, pipeline
from lmjax.data.batches import train_batches
from lmjax.data.lm import loader
from lmjax.data.lm.windows import sample_indices, train_windows
from lmjax.data.sources import line_index
from lmjax.data.stores import run_stores
from lmjax.data.tokenizers import tokenizer
from lmjax.errors import UserError


def parse(path, **sections):
    base = {
        "num_steps": 12,
        "batch_size": 6,
        "tokenizer": {"kind": "bytes"},
        "data": {"source": "text", "path": path, "length": 16, "holdout_every": 5},
        "model": {"dim": 8, "num_heads": 1},
    }
    for name, section in sections.items():
        both = {**base.get(name, {}), **section} if type(section) is dict else section
        base[name] = both
    return experiment.parse(base)


def assert_equal(batches, expected):
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


def concatenate(*hosts):
    return [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*hosts, strict=True)
    ]


def train(datasets, config, *, rows=None, **options):
    local = {} if rows is None else {"rows": lambda _: rows}
    return list(train_batches(datasets, config, **options, **local))


@pytest.fixture
def mixture(corpus):
    parts = tuple(
        {"source": "text", "path": corpus, "holdout_every": n, "weight": weight}
        for n, weight in [(5, 3.0), (7, 1.0)]
    )
    return parse(corpus, data={"source": "mixture", "path": "", "mixture": parts})


@pytest.fixture(params=["one source", "mixture"])
def config(request, corpus):
    if request.param == "mixture":
        return request.getfixturevalue("mixture")
    return parse(corpus)


@pytest.fixture
def datasets(config, tmp_path):
    return pipeline.prepare(config, workdir=tmp_path / "work")


def test_any_start_gives_the_same_steps(datasets, config):
    whole = train(datasets, config, start_step=0)
    assert len(whole) == config.num_steps
    assert whole[0]["tokens"].shape == (6, 16)
    for start in (1, 7, 12, 13):
        assert_equal(train(datasets, config, start_step=start), whole[start:])


@pytest.mark.parametrize("process_count", [2, 3])
def test_processes_divide_the_same_batches(datasets, config, process_count):
    hosts = [
        train(datasets, config, start_step=0, rows=rows)
        for rows in np.split(np.arange(config.batch_size), process_count)
    ]
    assert_equal(concatenate(*hosts), train(datasets, config, start_step=0))


@pytest.mark.slow
def test_loader_processes_give_the_same_batches(corpus, tmp_path):
    config = parse(corpus)
    datasets = pipeline.prepare(config, workdir=tmp_path / "work")
    data = dataclasses.replace(config.data, num_workers=2)
    in_processes = dataclasses.replace(config, data=data)
    batches = train_batches(datasets, in_processes, start_step=3)
    first = list(itertools.islice(batches, 5))
    batches.close()
    assert_equal(first, train(datasets, config, start_step=3)[:5])


def test_the_windows_of_any_step_can_be_looked_up(datasets, config):
    batch = train(datasets, config, start_step=4)[0]
    samples = sample_indices(config, step=4)
    stores = datasets.stores["train"]
    windows = train_windows(stores, config, samples=samples, length=16)
    places = zip(windows.stores, windows.starts, strict=True)
    for row, (source, start) in enumerate(places):
        stop = min(int(start) + 16, stores[source].num_tokens)
        expected = stores[source].read(int(start), stop)
        np.testing.assert_array_equal(batch["targets"][row, : len(expected)], expected)


def test_a_mixture_follows_its_weights(mixture, tmp_path):
    datasets = pipeline.prepare(mixture, workdir=tmp_path / "work")
    samples = np.arange(order.MIXTURE_PERIOD)
    stores = datasets.stores["train"]
    windows = train_windows(stores, mixture, samples=samples, length=16)
    assert np.bincount(windows.stores).tolist() == [3072, 1024]


def test_seeds_change_the_order(corpus, tmp_path):
    batches = []
    for seed in (0, 1):
        config = parse(corpus, seed=seed)
        datasets = pipeline.prepare(config, workdir=tmp_path / "work")
        batches.append(train(datasets, config, start_step=0)[0]["targets"])
    assert (batches[0] != batches[1]).any()


@pytest.mark.parametrize("length", [1, 13, 16])
@pytest.mark.parametrize("batch_size", [6, 12])
@pytest.mark.parametrize("process_count", [1, 2, 3])
def test_evaluation_reads_each_token_once(
    datasets, config, length, batch_size, process_count
):
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, length=length),
        eval=dataclasses.replace(config.eval, batch_size=batch_size),
    )
    stores = datasets.stores["valid"]
    hosts = [
        list(
            loader.eval_batches(
                stores,
                config,
                tokenizer=datasets.tokenizer,
                rows=lambda _, rows=rows: rows,
            )
        )
        for rows in np.split(np.arange(batch_size), process_count)
    ]
    batches = concatenate(*hosts)
    assert {batch["tokens"].shape for batch in batches} == {(batch_size, length)}
    seen = np.concatenate([b["targets"][b["weights"] > 0] for b in batches])
    stream = np.concatenate([store.read(0, store.num_tokens) for store in stores])
    np.testing.assert_array_equal(seen, stream)
    for batch in batches:
        np.testing.assert_array_equal(batch["segments"] == 0, batch["weights"] == 0)


def test_evaluation_can_stop_early(datasets, config):
    stores = datasets.stores["valid"]
    config = dataclasses.replace(
        config, eval=dataclasses.replace(config.eval, num_batches=2)
    )
    batches = loader.eval_batches(stores, config, tokenizer=datasets.tokenizer)
    assert len(list(batches)) == 2


def test_a_partial_evaluation_is_spread_over_all_stores(datasets, config):
    stores = datasets.stores["valid"]
    config = dataclasses.replace(
        config, eval=dataclasses.replace(config.eval, num_batches=2)
    )
    read = []
    for batch in loader.eval_batches(stores, config, tokenizer=datasets.tokenizer):
        read += [tuple(row[row != 256]) for row in batch["targets"]]
    windows = [
        (part, tuple(tokens[tokens != 256]))
        for part, store in enumerate(stores)
        for start in range(0, store.num_tokens, 16)
        for tokens in [store.read(start, min(start + 16, store.num_tokens))]
    ]
    places = [i * len(windows) // len(read) for i in range(len(read))]
    assert len(set(places)) == len(read) == 12
    assert read == [windows[i][1] for i in places]
    assert {windows[i][0] for i in places} == set(range(len(stores)))
    assert not loader.reads_whole_split(stores, config, window=16)
    assert loader.reads_whole_split(stores, config, window=10_000)


def test_a_process_may_hold_any_rows(datasets, config):
    rows = np.array([0, 1, 4])
    whole = train(datasets, config, start_step=5)
    for batch, part in zip(
        whole, train(datasets, config, start_step=5, rows=rows), strict=True
    ):
        assert_equal([part], [{name: x[rows] for name, x in batch.items()}])


def test_a_corpus_shorter_than_a_window(tmp_path):
    for i in range(2):
        (tmp_path / f"{i}.txt").write_text("abc")
    config = parse(str(tmp_path / "*.txt"))
    datasets = pipeline.prepare(config, workdir=tmp_path / "work")
    for batch in train(datasets, config, start_step=0):
        assert (batch["weights"].sum(axis=1) == 4).all()
        assert set(np.sort(batch["targets"][:, :4]).ravel()) == {97, 98, 99, 256}


def test_a_workdir_that_cannot_be_made(corpus, tmp_path):
    (tmp_path / "work").write_text("a file is in the way")
    with pytest.raises(UserError, match="tokenizer: cannot be written: Not a dir"):
        pipeline.prepare(parse(corpus), workdir=tmp_path / "work")


def trained(corpus, **tokenizer):
    return parse(corpus, tokenizer={"kind": "sentencepiece", **tokenizer})


def test_a_trained_tokenizer_is_kept(corpus, tmp_path):
    config = trained(corpus, vocab_size=290)
    first = pipeline.prepare(config, workdir=tmp_path / "work")
    model = tmp_path / "work" / "tokenizer" / "sentencepiece.model"
    before = model.stat().st_mtime_ns
    again = pipeline.prepare(config, workdir=tmp_path / "work")
    assert model.stat().st_mtime_ns == before
    assert again.tokenizer.fingerprint() == first.tokenizer.fingerprint()
    other = pipeline.prepare(trained(corpus, vocab_size=285), workdir=tmp_path / "work")
    assert other.tokenizer.vocab_size == 285
    store = other.stores["valid"][0]
    assert store.num_tokens > first.stores["valid"][0].num_documents


def test_experiments_share_a_directory_of_stores(corpus, tmp_path):
    shared = {"store": str(tmp_path / "shared")}
    for length in (16, 8):
        config = parse(corpus, data={**shared, "length": length})
        pipeline.prepare(config, workdir=tmp_path / str(length))
    assert len(list((tmp_path / "shared").iterdir())) == 2  # train and valid
    config = parse(corpus, data={**shared, "holdout_every": 4})
    pipeline.prepare(config, workdir=tmp_path / "third")
    assert len(list((tmp_path / "shared").iterdir())) == 4


def test_held_out_counts(datasets, config):
    documents = pipeline.open_sources(config)["valid"]
    texts = [part[i] for part in documents for i in range(len(part))]
    stores = datasets.stores["valid"]
    assert pipeline.count_bytes(stores) == sum(len(t.encode()) for t in texts)
    words = sum(len(text.split()) + 1 for text in texts)
    assert pipeline.count_words(stores) == words


def snapshot(directory):
    """Return the content and time of each file except locks."""
    return {
        str(file.relative_to(directory)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in directory.rglob("*")
        if file.is_file() and file.name != ".lock"
    }


def resume(config, workdir):
    return pipeline.prepare(config, workdir=workdir, resume=True)


def model_file(path, corpus, **leaves):
    config = trained(corpus, **leaves)
    model = tokenizer.make_tokenizer(
        config.tokenizer, documents=pipeline.open_sources(config)["train"], seed=0
    )
    path.write_bytes(model.model)


@pytest.mark.parametrize("kind", ["given", "trained", "bytes"])
def test_resuming_with_other_text_changes_nothing(corpus, tmp_path, kind):
    leaves = {"kind": "bytes"} if kind == "bytes" else {"vocab_size": 290}
    config = trained(corpus, **leaves)
    if kind == "given":
        model_file(tmp_path / "a.model", corpus, vocab_size=290)
        config = trained(corpus, path=str(tmp_path / "a.model"))
    work = tmp_path / "work"
    pipeline.prepare(config, workdir=work)
    before = snapshot(work)
    assert resume(config, work).tokenizer.vocab_size == config_size(config)
    if kind == "given":
        model_file(tmp_path / "a.model", corpus, vocab_size=285)
    else:
        for file in sorted(Path(corpus).parent.glob("*.txt")):
            file.write_text(file.read_text() + "more\n")
    with pytest.raises(UserError, match="is not what this run was trained on"):
        resume(config, work)
    assert snapshot(work) == before


def config_size(config):
    return tokenizer.vocab_size(config.tokenizer)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_resuming_replaces_no_store(tmp_path, split):
    for name in ("train", "valid"):
        (tmp_path / f"{name}.txt").write_text(f"{name}\n" * 50)
    config = parse(
        str(tmp_path / "train.txt"), data={"valid_path": str(tmp_path / "valid.txt")}
    )
    work = tmp_path / "work"
    pipeline.prepare(config, workdir=work)
    before = snapshot(work)
    (tmp_path / f"{split}.txt").write_text("other\n" * 50)
    with pytest.raises(UserError, match=rf"{split}: the text of config\.data is"):
        resume(config, work)
    assert snapshot(work) == before


def test_resuming_builds_lost_files_again(corpus, tmp_path):
    config = trained(corpus, vocab_size=290)
    work = tmp_path / "work"
    first = pipeline.prepare(config, workdir=work)
    shutil.rmtree(work / "store")
    shutil.rmtree(work / "tokenizer")
    assert pipeline.fingerprints(resume(config, work)) == pipeline.fingerprints(first)


def test_a_lost_tokenizer_is_not_built_from_other_text(corpus, tmp_path):
    config = trained(corpus, vocab_size=290)
    work = tmp_path / "work"
    pipeline.prepare(config, workdir=work)
    shutil.rmtree(work / "tokenizer")
    before = snapshot(work)
    for file in sorted(Path(corpus).parent.glob("*.txt")):
        file.write_text(file.read_text() + "more\n")
    with pytest.raises(UserError, match="is not what this run was trained on"):
        resume(config, work)
    assert snapshot(work) == before


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("lmjax_tokenizer.json", b"[]"),
        ("lmjax_tokenizer.json", b""),
        ("lmjax_tokenizer.json", b'{"kind": "sentencepiece"}'),
        ("sentencepiece.model", b""),
        ("sentencepiece.model", b"\x00\xff" * 9),
    ],
)
def test_a_damaged_tokenizer_is_built_again(corpus, tmp_path, caplog, file, content):
    config = trained(corpus, vocab_size=290)
    work = tmp_path / "work"
    before = pipeline.prepare(config, workdir=work).tokenizer.fingerprint()
    for prepare in (resume, lambda c, w: pipeline.prepare(c, workdir=w)):
        (work / "tokenizer" / file).write_bytes(content)
        with pytest.raises(UserError, match=str(work / "tokenizer")):
            tokenizer.load_tokenizer(work / "tokenizer")
        caplog.clear()
        assert prepare(config, work).tokenizer.fingerprint() == before
        assert "tokenizer: damaged, will be built again" in caplog.text


@pytest.mark.parametrize("document", ["file", "line"])
def test_an_unreadable_file_is_a_read_error(corpus, tmp_path, document):
    missing = Path(corpus).parent / "99.txt"
    missing.symlink_to(tmp_path / "nowhere")
    config = parse(corpus, data={"document": document})
    with pytest.raises(UserError) as error:
        pipeline.prepare(config, workdir=tmp_path / "work")
    assert (
        str(error.value) == f"config.data: cannot read {missing}: No such file or "
        "directory"
    )


def test_a_current_store_is_found_without_an_index(corpus, tmp_path, monkeypatch):
    config = parse(corpus, data={"document": "line"})
    first = pipeline.prepare(config, workdir=tmp_path / "work")
    monkeypatch.delattr(line_index, "line_starts")
    again = pipeline.prepare(config, workdir=tmp_path / "work")
    assert pipeline.fingerprints(again) == pipeline.fingerprints(first)


def test_the_stores_of_a_workdir_are_listed_in_it(datasets, tmp_path):
    found = run_stores.open_held_out_stores(tmp_path / "work")
    expected = datasets.stores["valid"]
    assert [s.fingerprint for s in found["valid"]] == [s.fingerprint for s in expected]
    shutil.copytree(tmp_path / "work", tmp_path / "moved")
    found = run_stores.open_held_out_stores(tmp_path / "moved")
    assert all(
        (tmp_path / "moved") in store.directory.parents for store in found["valid"]
    )
    assert run_stores.open_held_out_stores(tmp_path / "none") is None


@pytest.mark.parametrize("damage", ["note", "store"])
def test_a_workdir_whose_stores_are_damaged(datasets, tmp_path, damage):
    store = datasets.stores["valid"][0].directory
    file = (
        store / "manifest.json" if damage == "store" else store.parent / "stores.json"
    )
    file.write_text("[")
    with pytest.raises(UserError, match=f"{store if damage == 'store' else file}: c"):
        run_stores.open_held_out_stores(tmp_path / "work")
