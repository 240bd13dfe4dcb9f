"""`lmjax report`: one page about runs, tested in a browser where there is one."""

import json
import re
import shutil
import subprocess

import pytest

from lmjax.cli.main import main
from lmjax.config.experiment import parse
from lmjax.report.predictions import judge_predictions
from lmjax.report.runs import list_curves, list_differences, read_runs, shorten_names
from lmjax.run.starts import STARTS, read_starts
from lmjax.run.workdir import write_config

CONFIG = {
    "num_steps": 40,
    "batch_size": 4,
    "model": {
        "kind": "decoder",
        "vocab_size": 16,
        "dim": 8,
        "num_layers": 1,
        "num_heads": 1,
        "max_length": 64,
    },
    "tokenizer": {"kind": "bytes"},
    "data": {"source": "python_stdlib", "length": 8},
    "sample": {"prompts": ("a <b>", "c"), "max_tokens": 8},
}


@pytest.fixture
def make_run(tmp_path):
    """Return a function that writes what a run leaves."""

    def make(name="run", *, lines=None, samples=True, overrides=()):
        directory = tmp_path / name
        (directory / "samples").mkdir(parents=True)
        write_config(directory, parse(CONFIG, overrides))
        if lines is None:
            lines = [
                *(train(step, loss=4 - step / 20) for step in (10, 20)),
                {"step": 20, "split": "valid", "loss": 3.5, "perplexity": 33.1},
                *(train(step, loss=4 - step / 20) for step in (30, 40)),
                {"step": 40, "split": "valid", "loss": None, "perplexity": 21.5},
            ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (directory / "metrics.jsonl").write_text(text + '{"step": 41, "spl')
        for step in (20, 40) if samples else ():
            texts = f"a <b> & {step}\n----\nc </script> {step}\n"
            (directory / "samples" / f"{step}.txt").write_text(texts)
        start = {"step": 0, "device": "cpu", "num_devices": 2, "mesh": {"data": 2}}
        (directory / STARTS).write_text(json.dumps(start) + "\nnot JSON\n")
        return directory

    return make


def train(step, **values):
    common = {"step_seconds": 0.5, "tokens_per_second": 64.0, "learning_rate": 0.1}
    return {"step": step, "split": "train", **common, **values}


def test_curves_are_by_step_and_tokens_and_hours(make_run):
    (run,) = read_runs([str(make_run())])
    curves = list_curves(run)
    assert curves["train"]["loss"][:2] == [
        [10, 320, pytest.approx(5 / 3600, abs=1e-6), 3.5],
        [20, 640, pytest.approx(10 / 3600, abs=1e-6), 3.0],
    ]
    assert [point[:2] for point in curves["valid"]["perplexity"]] == [
        [20, 640],
        [40, 1280],
    ]
    assert len(curves["valid"]["loss"]) == 1  # the other is not finite
    assert run.samples[40] == ["a <b> & 40", "c </script> 40"]
    assert len(read_starts(run.directory)) == 1


def test_long_curves_are_thinned_out(make_run):
    lines = [train(step, loss=1 / step) for step in range(1, 9001)]
    (run,) = read_runs([str(make_run(lines=lines))])
    points = list_curves(run)["train"]["loss"]
    assert len(points) == 2000 and points[0][0] == 1 and points[-1][0] == 9000


def test_a_later_line_of_a_step_counts(make_run):
    lines = [train(10, loss=2.0), train(10, loss=1.0)]
    (run,) = read_runs([str(make_run(lines=lines))])
    assert [point[3] for point in list_curves(run)["train"]["loss"]] == [1.0]


def test_names_are_what_differs():
    assert shorten_names(["/a/b/run"]) == ["run"]
    assert shorten_names(["/a/x/run", "/a/y/run"]) == ["x", "y"]
    assert shorten_names(["/a/run1", "/a/run2/"]) == ["run1", "run2"]
    assert shorten_names(["/a/b", "/a/b/c"]) == ["/a/b", "c"]


def test_differences_of_configs(make_run):
    paths = [make_run("a"), make_run("b", overrides=["optim.learning_rate=0.5"])]
    differences = list_differences(read_runs([*map(str, paths)]))
    assert [*differences] == ["config.optim.learning_rate"]
    assert differences["config.optim.learning_rate"][1] == "0.5"


def write_predictions(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def label(gold, predicted, share):
    shares = {"yes": share, "no": round(1 - share, 6)}
    example = {"text": f"{gold} <i>", "label": gold}
    return {"input": example, "label": predicted, "probabilities": shares}


def test_predictions_of_labels(tmp_path):
    lines = [
        label("yes", "yes", 0.9),
        label("yes", "no", 0.25),
        label("yes", "no", 0.0),
        label("no", "no", 0.1),
        {"error": "is blank"},
    ]
    file = write_predictions(tmp_path / "p.jsonl", lines)
    fields = parse(CONFIG).data.fields
    judged = judge_predictions(file, fields=fields, num_worst=2)
    assert judged.counts == {("yes", "yes"): 1, ("yes", "no"): 2, ("no", "no"): 1}
    assert [round(e.loss, 3) for e in judged.worst] == [14.509, 1.386]
    lines = [{"input": {"tags": ["O", "B"], "tokens": ["a", "b"]}, "tags": ["O", "O"]}]
    file = write_predictions(tmp_path / "t.jsonl", lines)
    judged = judge_predictions(file, fields=fields, num_worst=2)
    assert judged.counts == {("O", "O"): 1, ("B", "O"): 1} and not judged.worst


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"label": "yes"}, "p.jsonl:1: has no 'input'; write it by lmjax predict"),
        ({"input": {"text": "a"}, "label": "no"}, "p.jsonl:1: its example has no 'lab"),
        ({"input": {"text": "a"}, "text": "b"}, "p.jsonl:1: predicts neither"),
        ({"input": {"tags": ["O"]}, "tags": []}, "p.jsonl:1: .*'tags' for each token"),
        (label("maybe", "yes", 0.5), "label = 'maybe' is none of the labels .*yes, no"),
        ({"error": "x"}, "p.jsonl: holds no prediction of a label"),
    ],
)
def test_bad_predictions(tmp_path, make_run, capsys, line, message):
    file = write_predictions(tmp_path / "p.jsonl", [line])
    page = tmp_path / "r.html"
    argv = ["report", str(make_run()), f"--output={page}", f"--predictions={file}"]
    check_error(argv, message, capsys)
    assert not page.exists()


def check_error(argv, message, capsys):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1, error


def test_bad_runs(tmp_path, make_run, capsys):
    page, run = f"--output={tmp_path / 'r.html'}", str(make_run())
    empty = str(make_run("empty", lines=[]))
    other = str(make_run("other", lines=[{"step": 1, "split": "valid", "f1": 1.0}]))
    check_error(["report", str(tmp_path / "none"), page], "none: holds no run", capsys)
    check_error(["report", empty, page], "metrics.jsonl: holds no metrics", capsys)
    check_error(["report", run, run, page], "run: is given twice", capsys)
    check_error(["report", run, other, page], r"no metric in common .*\(f1; ", capsys)
    check_error(["report", run], "--output", capsys)
    nowhere = f"--output={run}/config.json/r.html"
    check_error(["report", run, nowhere], "config.json/r.html: cannot be wri", capsys)


@pytest.fixture
def page(tmp_path, make_run):
    file, runs = tmp_path / "r.html", [make_run("a<b"), make_run("two")]
    lines = [label("yes", "no", 0.25), label("no", "no", 0.1)]
    predictions = write_predictions(tmp_path / "p.jsonl", lines)
    argv = ["report", *map(str, runs), f"--output={file}"]
    assert main([*argv, f"--predictions={predictions}"]) == 0
    return file


def test_the_page_stands_alone_and_escapes_texts(page):
    text = page.read_text()
    assert not re.search(
        r"(src|href)=|@import|url\(|https?://(?!www.w3.org/2000)", text
    )
    assert "a &lt;b&gt; &amp; 40" in text and "yes &lt;i&gt;" in text
    assert text.count("</script>") == 1


def test_the_page_in_a_browser(page, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs chromium")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=2000",
    ]
    home = f"--user-data-dir={tmp_path / 'browser'}"
    done = subprocess.run(
        [browser, *flags, home, "--dump-dom", f"file://{page}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    charts = re.findall(r'data-metric="(\w+)".*?</figure>', done.stdout, re.DOTALL)
    assert charts[:3] == ["loss", "perplexity", "learning_rate"]
    drawn = re.findall(r"<figure.*?</figure>", done.stdout, re.DOTALL)
    assert [chart.count("<path") for chart in drawn[:3]] == [4, 2, 2]
    assert "NaN" not in done.stdout and "Infinity" not in done.stdout
