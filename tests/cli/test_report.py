"""The reports: after training, of an evaluation, and of the size of a model."""

import json
import math
import shutil

import jax
import pytest

from lmjax.cli import report
from lmjax.config.experiment import load, parse
from lmjax.errors import UserError
from lmjax.training.evaluate_workdir import evaluate_workdir


def cells(printed, first):
    """Return the cells of the row of a table that begins with a word."""
    rows = [
        [cell.strip() for cell in line.split(line.strip()[0])[1:-1]]
        for line in printed.splitlines()
        if line.strip() and not line.strip()[0].isalnum()
    ]
    return next(row for row in rows if row and row[0] == first)


def logged(run, split):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == split]


def test_the_table_has_the_last_metrics_of_each_split(run, script, capsys):
    report.after_training(load(str(script)), run)
    printed = capsys.readouterr().err
    assert cells(printed, "split")[1:] == ["loss", "perplexity", "bits per byte"]
    last = logged(run, "valid")[-1]
    names = ("loss", "perplexity", "bits_per_byte")
    assert cells(printed, "valid")[1:] == [f"{last[name]:.4g}" for name in names]
    assert "test" not in printed.split("results:")[0]
    assert f"results: {run}/ (metrics.jsonl, checkpoints/)" in printed
    assert f"lmjax generate --workdir={run} " in printed


def test_the_last_sample_is_printed(run, script, capsys, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    samples = tmp_path / "run" / "samples"
    samples.mkdir()
    for name in ("2", "10", "notes"):
        (samples / f"{name}.txt").write_text(f"a sample of {name} [bold]")
    report.after_training(load(str(script)), tmp_path / "run")
    printed = capsys.readouterr().err
    assert "a sample of 10 [bold]" in printed
    assert "sample of 2" not in printed and "sample of notes" not in printed
    assert "samples/" in printed


def test_compressors_are_in_the_table(run, script, capsys):
    report.after_training(load(str(script), ["eval.compressors=true"]), run)
    printed = capsys.readouterr().err
    for name in ("gzip", "xz"):
        assert 0 < float(cells(printed, f"valid, {name} -9")[-1]) < 8


def test_damaged_files_are_skipped(run, script, capsys, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(run, directory)
    with (directory / "metrics.jsonl").open("ab") as log:
        log.write(b'{"half": \n\xff\n[]\n{}\n')
    (directory / "samples").write_text("a file")
    report.after_training(load(str(script)), directory)
    assert "perplexity" in capsys.readouterr().err


def test_an_evaluation_has_the_metrics_of_its_step(run):
    by_step = {line["step"]: line for line in logged(run, "valid")}
    for step in (2, None):
        (found,) = evaluate_workdir(run, step=step, overrides=())
        assert found["split"] == "valid"
        assert found["step"] == (step or 4)
        if found["step"] in by_step:
            expected = by_step[found["step"]]["loss"]
            assert found["loss"] == pytest.approx(expected, rel=1e-6)
        assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))


def test_an_evaluation_of_other_data_keeps_the_stores_of_the_run(run, tmp_path):
    earlier = shutil.ignore_patterns("eval")  # of another test
    shutil.copytree(run, tmp_path / "run", ignore=earlier)
    text = tmp_path / "other.txt"
    text.write_text("something else\n" * 50)
    stores = tmp_path / "run" / "store"
    before = {path: path.stat().st_mtime_ns for path in stores.rglob("*")}
    overrides = [f"data.path={text}"]
    (found,) = evaluate_workdir(tmp_path / "run", step=None, overrides=overrides)
    (own,) = evaluate_workdir(tmp_path / "run", step=None, overrides=())
    assert found["loss"] != own["loss"]
    files = [path for path in before if path.is_file()]
    assert all(path.stat().st_mtime_ns == before[path] for path in files)


def test_a_leaf_that_training_has_fixed_cannot_be_overridden(run):
    with pytest.raises(UserError, match=r"config\.model\.dim was 16, is 8"):
        list(evaluate_workdir(run, step=None, overrides=["model.dim=8"]))


def test_describe_counts_without_allocating(script, capsys):
    before = len(jax.live_arrays())
    report.describe(load(str(script)), num_devices=4)
    printed = capsys.readouterr().out
    # 2 layers of 4 * 16 * 16 + 3 * 16 * 64 and two norms, a norm, 258 embeddings.
    total = 2 * (4 * 16 * 16 + 3 * 16 * 64 + 2 * 16) + 16 + 258 * 16
    assert f"parameters: {total:,} " in printed
    assert "'data': 4" in printed
    assert len(jax.live_arrays()) <= before + 1


def test_describe_shards_each_parameter(small, capsys):
    data = {**small["data"], "path": "unused"}
    sections = {**small, "data": data, "mesh": {"data": 1, "fsdp": 2, "tensor": 2}}
    report.describe(parse(sections), num_devices=0)
    printed = capsys.readouterr().out
    (row,) = [line for line in printed.splitlines() if ".mlp.up.kernel" in line]
    assert "2 x 16 x 64" in row  # layers, embed, mlp
    assert row.rstrip().endswith("2 x 8 x 32")
    matrices = 2 * (4 * 16 * 16 + 3 * 16 * 64) + 258 * 16  # over both axes
    norms = 5 * 16  # not sharded
    assert f"{matrices // 4 + norms:,} parameters per device" in printed
