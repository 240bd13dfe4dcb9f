"""The command line: what it prints, and how it answers mistakes."""

import errno
import json
import math
import shutil

import jax
import pytest

from lmjax.cli import report
from lmjax.cli.main import main
from lmjax.config.experiment import load

CONFIG = {
    "num_steps": 4,
    "batch_size": 8,
    "model": {"dim": 16, "num_layers": 2, "num_heads": 2, "max_length": 32},
    "tokenizer": {"kind": "bytes"},
    "data": {"source": "text", "document": "line", "length": 32},
    "checkpoint": {"every_steps": 2},
    "log": {"tensorboard": False},
}


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cli")
    text = directory / "text.txt"
    text.write_text("".join(f"line number {i} of the text\n" for i in range(300)))
    path = directory / "x.py"
    config = {**CONFIG, "data": {**CONFIG["data"], "path": str(text)}}
    path.write_text(f"def get_config():\n    return {config!r}\n")
    return path


@pytest.fixture(scope="module")
def run(script):
    directory = script.parent / "run"
    assert main(["train", f"--config={script}", f"--workdir={directory}"]) == 0
    return directory


def answer(capsys, *argv):
    """Return the exit code, what was printed, and what was said on stderr."""
    capsys.readouterr()
    code = main(list(argv))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_train_says_where_the_results_are(run, script, capsys):
    workdir = f"--workdir={run}"
    code, _, said = answer(capsys, "train", f"--config={script}", workdir)
    assert code == 0
    assert f"lmjax generate {workdir}" in said
    assert "perplexity" in said


def test_eval_prints_what_training_logged(run, capsys):
    code, printed, _ = answer(capsys, "eval", f"--workdir={run}")
    last = json.loads(printed.splitlines()[-1])
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    logged = next(line for line in lines if line["split"] == "valid")
    assert code == 0
    assert last.keys() == logged.keys()
    assert last["loss"] == pytest.approx(logged["loss"], rel=1e-6)


def test_eval_of_an_earlier_step_and_of_other_text(run, capsys, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("something else\n" * 50)
    before = sorted(path.name for path in (run / "store").iterdir())
    code, printed, _ = answer(
        capsys, "eval", f"--workdir={run}", "--step=2", f"--config.data.path={other}"
    )
    assert code == 0
    assert json.loads(printed)["step"] == 2
    after = sorted(path.name for path in (run / "store").iterdir())
    assert after == [*sorted([*before, "eval"])]


def test_generate_is_reproducible(run, capsys):
    argv = ["generate", f"--workdir={run}", "--prompt=line", "--max_tokens=6"]
    code, first, _ = answer(capsys, *argv, "--seed=1")
    assert code == 0
    assert answer(capsys, *argv, "--seed=1")[1] == first


def test_generate_by_a_search(run, capsys):
    argv = ["generate", f"--workdir={run}", "--prompt=line", "--max_tokens=6"]
    beams = ["--num_beams=3", "--length_penalty=0.6", "--early_finish"]
    limits = ["--min_tokens=3", "--no_repeat_ngram=2"]
    code, printed, _ = answer(capsys, *argv, *beams, *limits)
    assert code == 0
    assert answer(capsys, *argv, *beams, *limits, "--seed=1")[1] == printed
    assert answer(capsys, *argv, *limits)[0] == 0


@pytest.fixture(scope="module")
def translator(script):
    directory = script.parent / "translator"
    leaves = ("model.kind=encoder_decoder", "task.kind=prefix_lm", "num_steps=1")
    leaves += ("data.isolate_documents=False",)
    overrides = [f"--config.{leaf}" for leaf in leaves]
    argv = ["train", f"--config={script}", f"--workdir={directory}", *overrides]
    assert main(argv) == 0
    return directory


def test_score_given_a_source(translator, capsys, tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text("line\t number\nline\t\n")
    argv = ["score", f"--workdir={translator}", f"--input={lines}"]
    code, printed, _ = answer(capsys, *argv)
    given, empty = map(json.loads, printed.splitlines())
    assert code == 0
    assert (given["num_tokens"], empty["num_tokens"]) == (7, 0)
    lines.write_text("line\t number\nline\n")
    code, _, said = answer(capsys, *argv)
    assert code == 2
    assert said == f"error: {lines}:2: no context: an encoder-decoder scores " + (
        "context<TAB>text, its source and what it writes\n"
    )


def test_score_follows_the_chain_rule(run, capsys, tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text("line number\nline\t number\nline\n\n")
    code, printed, _ = answer(capsys, "score", f"--workdir={run}", f"--input={lines}")
    whole, given, context, empty = map(json.loads, printed.splitlines())
    assert code == 0
    assert (whole["num_tokens"], given["num_tokens"]) == (11, 7)
    total = context["log_prob"] + given["log_prob"]
    assert whole["log_prob"] == pytest.approx(total, rel=1e-5)
    perplexity = math.exp(-whole["log_prob"] / 11)
    assert whole["perplexity"] == pytest.approx(perplexity)
    assert empty == {"log_prob": 0.0, "num_tokens": 0, "perplexity": None}


def test_score_of_the_end_of_text(run, capsys, tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text("line")
    argv = ["score", f"--workdir={run}", f"--input={lines}", "--eos"]
    _, printed, _ = answer(capsys, *argv)
    assert json.loads(printed)["num_tokens"] == 5


def test_describe_counts_without_allocating(script, capsys):
    before = len(jax.live_arrays())
    code, printed, _ = answer(capsys, "describe", f"--config={script}", "--devices=4")
    assert code == 0
    # 2 layers of 4 * 16 * 16 + 3 * 16 * 64 and two norms, a norm, 258 embeddings.
    total = 2 * (4 * 16 * 16 + 3 * 16 * 64 + 2 * 16) + 16 + 258 * 16
    assert f"parameters: {total:,}" in printed
    assert len(jax.live_arrays()) <= before + 1


def test_prepare_in_two_jobs(script, capsys, tmp_path):
    argv = ["prepare", f"--config={script}", f"--workdir={tmp_path}"]
    codes = [answer(capsys, *argv, f"--job={job}/2")[0] for job in range(2)]
    assert codes == [0, 0]
    _, printed, _ = answer(capsys, *argv)
    assert "train: 285 documents" in printed


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        ([], "which verb"),
        (["trian"], "trian"),
        (["train", "--workdir=w"], "--config"),
        (["train", "--config=none.py", "--workdir=w"], "none.py"),
        (["eval", "--workdir=nowhere"], "--workdir=nowhere: holds no run"),
        (["eval", "--workdir=RUN", "--step=3"], "--step=3"),
        (["eval", "--workdir=RUN", "--stepp=3"], "--stepp"),
        (["generate", "--workdir=RUN", "--prompt=a", "--max_tokens=99"], "max_tokens"),
        (["generate", "--workdir=RUN", "--prompt=a", "--top_p=0"], "top_p"),
        (["generate", "--workdir=RUN", "--prompt=a", "--temperature=x"], "temperature"),
        (["generate", "--workdir=RUN", "--prompt=a", "--num_beams=0"], "num_beams"),
        (
            ["generate", "--workdir=RUN", "--prompt=a", "--num_beams=2", "--top_k=3"],
            "top_k = 3: must be 0 or left out with num_beams = 2",
        ),
        (
            ["generate", "--workdir=RUN", "--prompt=a", "--min_tokens=70"],
            "min_tokens = 70: must be at most max_tokens = 3",
        ),
        (["score", "--workdir=RUN", "--input=none.txt"], "--input=none.txt"),
        (
            ["predict", "--workdir=RUN", "--input=none", "--output=none"],
            "error: config.task.kind = 'causal_lm': predict applies a task that is "
            "learnt from examples: seq2seq, ",
        ),
        (["train", "--config=C", "--workdir=w", "--profile=3"], "--profile=3"),
        (["prepare", "--config=C", "--workdir=w", "--job=3/2"], "--job=3/2"),
        (["describe", "--config=C", "--devices=-3"], "--devices=-3"),
        (
            ["train", "--config=C", "--workdir=w", "--config.num_steps", "3"],
            "--config.num_steps: is written --config.num_steps=3",
        ),
        (
            ["train", "--config.seed", "--config=C", "--workdir=w"],
            "--config.seed: is written --config.seed=VALUE",
        ),
        (
            ["eval", "--workdir=RUN", "--config.model.dim=8"],
            "config.model.dim was 16, is 8: a trained model is used as the run has it",
        ),
        (["eval", "--workdir=RUN", "--config.tokenizer.bos=False"], "bos was"),
        (["generate", "--workdir=RUN", "--prompt=a\udcff"], "prompt: not UTF-8"),
        (["generate", "--workdir=RUN", "--prompt=a", "--temperature=nan"], "nan"),
        (["generate", "--workdir=RUN", "--prompt=a", "--temperature=inf"], "inf"),
        (["generate", "--workdir=RUN", "--prompt=a", f"--seed={2**70}"], "seed = 118"),
        (["generate", "--workdir=C", "--prompt=a"], "holds no run"),
        (["train", "--config=C", "--workdir=w", "--config.num_steps={[]:1}"], "[]"),
        (["train", "--config=C", "--workdir=w", f"--config.seed={2**64}"], "seed"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run, script, capsys, argv, part):
    argv = [arg.replace("RUN", str(run)).replace("=C", f"={script}") for arg in argv]
    code, _, said = answer(capsys, *argv)
    assert code == 2
    last = said.splitlines()[-1]
    assert last.startswith("error: ")
    assert part in last
    assert "Traceback" not in said


def test_text_to_score_must_be_utf8(run, capsys, tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_bytes(b"good\nbad \xff\n")
    code, _, said = answer(capsys, "score", f"--workdir={run}", f"--input={lines}")
    assert code == 2
    assert f"error: {lines}:2: not UTF-8" in said


@pytest.mark.parametrize(
    "damage",
    ["[]", "3", "null", "{", "", "\0", '{"model": 3}', "[" * 100_000, b"\xff", None],
    ids=str,
)
def test_a_damaged_config_is_one_line(capsys, tmp_path, damage):
    file = tmp_path / "config.json"
    if damage is None:
        file.mkdir()
    else:
        file.write_bytes(damage if isinstance(damage, bytes) else damage.encode())
    code, _, said = answer(capsys, "eval", f"--workdir={tmp_path}")
    assert code == 2
    assert said.startswith(f"error: {file}")
    assert said.count("\n") == 1


@pytest.mark.parametrize("damage", ["[]", "{}", "3", '{"kind": []}', "{", "\0"])
def test_a_damaged_tokenizer_is_one_line(run, capsys, tmp_path, damage):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "tokenizer" / "lmjax_tokenizer.json").write_text(damage)
    argv = ["generate", f"--workdir={tmp_path / 'run'}", "--prompt=a"]
    code, _, said = answer(capsys, *argv)
    assert code == 2
    assert "lmjax_tokenizer.json: cannot be" in said.splitlines()[-1]


def test_what_the_system_says_is_one_line(run, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "/some/file")

    monkeypatch.setattr("lmjax.training.evaluate_workdir.evaluate_workdir", full)
    code, _, said = answer(capsys, "eval", f"--workdir={run}")
    assert (code, said) == (2, "error: /some/file: No space left on device\n")


def test_the_report_passes_over_what_is_damaged(run, script, capsys, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(run, directory)
    with (directory / "metrics.jsonl").open("ab") as log:
        log.write(b'{"half": \n\xff\n[]\n{}\n')
    (directory / "samples").mkdir()
    (directory / "samples" / "notes.txt").write_text("mine")
    report.after_training(load(str(script)), directory)
    said = capsys.readouterr().err
    assert "perplexity" in said and "tensorboard" not in said
    (directory / "samples" / "notes.txt").unlink()
    (directory / "samples").rmdir()
    (directory / "samples").write_text("a file")
    report.after_training(load(str(script)), directory)


def test_eval_needs_no_corpus(run, capsys, tmp_path, monkeypatch):
    """A workdir stands alone: from anywhere, when the text has gone or changed."""
    directory = tmp_path / "run"
    shutil.copytree(run, directory)
    config = json.loads((directory / "config.json").read_text())
    config["data"]["path"] = "gone/*.txt"
    (directory / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    _, expected, _ = answer(capsys, "eval", f"--workdir={run}")
    assert answer(capsys, "eval", "--workdir=run")[:2] == (0, expected)
    code, printed, _ = answer(
        capsys, "eval", "--workdir=run", "--config.data.length=16"
    )
    whole, cut = map(json.loads, (expected, printed))
    assert code == 0 and whole["loss"] != cut["loss"]
    options = ["--config.eval.num_batches=1", "--config.eval.batch_size=8"]
    code, printed, _ = answer(capsys, "eval", "--workdir=run", *options)
    part = json.loads(printed)
    assert code == 0 and "perplexity" in part
    assert not {"bits_per_byte", "word_perplexity"} & part.keys()
    code, _, said = answer(
        capsys, "eval", "--workdir=run", "--config.data.holdout_every=3"
    )
    assert code == 2 and "matches no file" in said


def test_eval_of_a_mixture_whose_parts_have_gone(capsys, tmp_path):
    parts = []
    for i, name in enumerate("ab"):
        text = tmp_path / f"{name}.txt"
        text.write_text(f"{name} line of text\n" * (100 + i))
        parts.append({"source": "text", "path": str(text), "document": "line"})
    data = {"source": "mixture", "mixture": tuple(parts), "length": 32}
    file = tmp_path / "x.py"
    config = {**CONFIG, "num_steps": 2, "data": data}
    file.write_text(f"def get_config():\n    return {config!r}\n")
    directory = tmp_path / "run"
    assert main(["train", f"--config={file}", f"--workdir={directory}"]) == 0
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    logged = next(m for m in map(json.loads, lines) if m["split"] == "valid")
    for name in "ab":
        (tmp_path / f"{name}.txt").unlink()
    code, printed, _ = answer(capsys, "eval", f"--workdir={directory}")
    assert code == 0
    assert json.loads(printed)["loss"] == pytest.approx(logged["loss"], rel=1e-6)
