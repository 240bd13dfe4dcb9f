"""The curves of runs, and one line for each error."""

import json

import pytest
from matplotlib.figure import Figure

from tools import plot_run


def write_run(workdir, *, num_steps=6, partial_line=""):
    """Write a metrics.jsonl with a value that is not finite at step 3."""
    workdir.mkdir()
    with (workdir / "metrics.jsonl").open("w") as file:
        for step in range(1, num_steps + 1):
            loss = None if step == 3 else 10.0 - step
            speeds = {"learning_rate": step / 10, "tokens_per_second": 1000.0 * step}
            train = {"step": step, "split": "train", "loss": loss, **speeds}
            print(json.dumps(train), file=file)
            if step % 2 == 0:
                valid = {"step": step, "split": "valid", "loss": 11.0 - step}
                print(json.dumps(valid), file=file)
        file.write(partial_line)
    return workdir


@pytest.fixture
def figures(monkeypatch):
    saved = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, path: (saved.append(self), save(self, path))
    )
    return saved


def test_the_curves_of_a_run(tmp_path, figures):
    run = write_run(tmp_path / "run", partial_line='{"step": 7, "spl')
    assert plot_run.main([str(run), f"--output={tmp_path / 'x.png'}"]) == 0
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    loss, rate = figures[0].axes
    train, valid = loss.get_lines()
    assert list(train.get_xdata()) == [1, 2, 4, 5, 6]
    assert list(train.get_ydata()) == [9.0, 8.0, 6.0, 5.0, 4.0]
    assert list(valid.get_xdata()) == [2, 4, 6]
    assert list(valid.get_ydata()) == [9.0, 7.0, 5.0]
    assert list(rate.get_lines()[0].get_ydata()) == [s / 10 for s in range(1, 7)]
    assert figures[0].get_suptitle() == f"{run} (3,500 tokens/s)"
    assert (loss.get_ylabel(), rate.get_xlabel()) == ("loss (nats)", "step")
    width, _ = figures[0].get_size_inches() * figures[0].dpi
    assert width == 1800


def test_several_runs_are_overlaid(tmp_path, figures):
    runs = [write_run(tmp_path / f"run{n}", num_steps=n) for n in (2, 4)]
    assert plot_run.main([*map(str, runs), f"--output={tmp_path / 'x.svg'}"]) == 0
    loss, rate = figures[0].axes
    assert [len(line.get_xdata()) for line in loss.get_lines()] == [2, 1, 3, 2]
    assert [len(line.get_xdata()) for line in rate.get_lines()] == [2, 4]
    labels = [text.get_text() for text in loss.get_legend().get_texts()]
    assert [str(runs[0]) in labels[0], str(runs[1]) in labels[2]] == [True, True]


def test_a_line_that_is_logged_again_replaces_the_first(tmp_path):
    run = write_run(tmp_path / "run", num_steps=2)
    with (run / "metrics.jsonl").open("a") as file:
        print(json.dumps({"step": 2, "split": "train", "loss": 0.5}), file=file)
    assert plot_run.get_curve(plot_run.read_metrics(run), "train", "loss") == (
        [1, 2],
        [9.0, 0.5],
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "metrics.jsonl: cannot be read: No such file or directory"),
        (b"", "metrics.jsonl: holds no training loss"),
        (b'{"step": 1, "split": "valid", "loss": 1.0}\n', "holds no training loss"),
        (b'{"step": 1, "split": "train", "loss": null}\n', "holds no training loss"),
        (b'{"step": 1, "split": "train"}\nloss\n', "metrics.jsonl:2: not a line of m"),
        (b"[1]\n", "metrics.jsonl:1: not a line of metrics"),
        (b"\xff\n", "metrics.jsonl: not UTF-8"),
    ],
)
def test_invalid_runs(content, message, tmp_path, capsys):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_bytes(content)
    assert plot_run.main([str(tmp_path), f"--output={tmp_path / 'x.png'}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}/metrics.jsonl") and message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--output"),
        (["--output=x.foo"], "--output=x.foo: cannot be written: Format 'foo'"),
        (["--output=no/x.png"], "--output=no/x.png: cannot be written: No such file"),
        (["--outptu=x.png"], "--output"),
    ],
)
def test_invalid_flags(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "run")
    assert plot_run.main([str(run), *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert error.count("\n") == 1
