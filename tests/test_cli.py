"""The command line: what it prints, and how it answers mistakes."""

import json
import math

import jax
import pytest

from lmjax.cli import main

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
        (["score", "--workdir=RUN", "--input=none.txt"], "--input=none.txt"),
        (["train", "--config=C", "--workdir=w", "--profile=3"], "--profile=3"),
        (["prepare", "--config=C", "--workdir=w", "--job=3/2"], "--job=3/2"),
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
