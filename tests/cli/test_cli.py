"""The command line: its output, exit codes and errors."""

import errno
import json
import math
import shutil

import pytest

from lmjax.cli.main import main


def run_cli(capsys, *argv):
    """Return the exit code, stdout and stderr."""
    capsys.readouterr()
    code = main(list(argv))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.slow
def test_train_prints_metrics_and_the_next_command(run, script, capsys):
    workdir = f"--workdir={run}"
    code, _, stderr = run_cli(capsys, "train", f"--config={script}", workdir)
    assert code == 0
    assert f"lmjax generate {workdir}" in stderr
    assert "perplexity" in stderr


def test_eval_prints_the_metrics_that_training_logged(run, capsys):
    code, stdout, _ = run_cli(capsys, "eval", f"--workdir={run}")
    last = json.loads(stdout.splitlines()[-1])
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    logged = next(line for line in lines if line["split"] == "valid")
    assert code == 0
    assert last.keys() == logged.keys()
    assert last["loss"] == pytest.approx(logged["loss"], rel=1e-6)


def test_eval_of_an_earlier_step_and_of_other_text(run, capsys, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("something else\n" * 50)
    before = sorted(path.name for path in (run / "store").iterdir())
    code, stdout, _ = run_cli(
        capsys, "eval", f"--workdir={run}", "--step=2", f"--config.data.path={other}"
    )
    assert code == 0
    assert json.loads(stdout)["step"] == 2
    after = sorted(path.name for path in (run / "store").iterdir())
    assert after == [*sorted([*before, "eval"])]


@pytest.mark.slow
def test_generate_is_reproducible(run, capsys):
    argv = ["generate", f"--workdir={run}", "--prompt=line", "--max_tokens=6"]
    code, first, _ = run_cli(capsys, *argv, "--seed=1")
    assert code == 0
    assert run_cli(capsys, *argv, "--seed=1")[1] == first


@pytest.mark.slow
def test_generate_by_beam_search(run, capsys):
    argv = ["generate", f"--workdir={run}", "--prompt=line", "--max_tokens=6"]
    beams = ["--num_beams=3", "--length_penalty=0.6", "--early_finish"]
    limits = ["--min_tokens=3", "--no_repeat_ngram=2"]
    code, stdout, _ = run_cli(capsys, *argv, *beams, *limits)
    assert code == 0
    assert run_cli(capsys, *argv, *beams, *limits, "--seed=1")[1] == stdout
    assert run_cli(capsys, *argv, *limits)[0] == 0


@pytest.fixture(scope="module")
def translator(script):
    directory = script.parent / "translator"
    leaves = ("model.kind=encoder_decoder", "task.kind=prefix_lm", "num_steps=1")
    leaves += ("data.isolate_documents=False",)
    overrides = [f"--config.{leaf}" for leaf in leaves]
    argv = ["train", f"--config={script}", f"--workdir={directory}", *overrides]
    assert main(argv) == 0
    return directory


@pytest.mark.slow
def test_score_of_an_encoder_decoder_needs_a_context(translator, capsys, tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text("line\t number\nline\t\n")
    argv = ["score", f"--workdir={translator}", f"--input={lines}"]
    code, stdout, _ = run_cli(capsys, *argv)
    given, empty = map(json.loads, stdout.splitlines())
    assert code == 0
    assert (given["num_tokens"], empty["num_tokens"]) == (7, 0)
    lines.write_text("line\t number\nline\n")
    code, _, stderr = run_cli(capsys, *argv)
    assert code == 2
    assert stderr.startswith(f"error: {lines}:2: ")
    assert "<TAB>" in stderr


def test_score_follows_the_chain_rule(run, capsys, tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text("line number\nline\t number\nline\n\n")
    code, stdout, _ = run_cli(capsys, "score", f"--workdir={run}", f"--input={lines}")
    whole, given, context, empty = map(json.loads, stdout.splitlines())
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
    _, stdout, _ = run_cli(capsys, *argv)
    assert json.loads(stdout)["num_tokens"] == 5


def test_prepare_in_two_jobs(script, capsys, tmp_path):
    argv = ["prepare", f"--config={script}", f"--workdir={tmp_path}"]
    codes = [run_cli(capsys, *argv, f"--job={job}/2")[0] for job in range(2)]
    assert codes == [0, 0]
    _, stdout, _ = run_cli(capsys, *argv)
    assert "train: 285 documents" in stdout


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        ([], "lmjax --help"),
        (["trian"], "trian: no such verb (did you mean 'train'?)"),
        (["train", "--workdir=w"], "--config"),
        (["train", "--config=none.py", "--workdir=w"], "none.py"),
        (["eval", "--workdir=nowhere"], "--workdir=nowhere: "),
        (["eval", "--workdir=RUN", "--step=3"], "--step=3: "),
        (["eval", "--workdir=RUN", "--step=last"], "--step=last: "),
        (
            ["eval", "--workdir=RUN", "--stepp=3"],
            "--stepp=3: no such flag of lmjax eval (did you mean '--step'?)",
        ),
        (["generate", "--workdir=RUN", "--prompt=a", "--max_tokens=99"], "max_tokens"),
        (["generate", "--workdir=RUN", "--prompt=a", "--top_p=0"], "top_p"),
        (
            ["generate", "--workdir=RUN", "--prompt=a", "--temperature=x"],
            "--temperature=x: must be a number",
        ),
        (["generate", "--workdir=RUN", "--prompt=a", "--num_beams=0"], "num_beams"),
        (
            ["generate", "--workdir=RUN", "--prompt=a", "--num_beams=2", "--top_k=3"],
            "top_k = 3: ",
        ),
        (
            ["generate", "--workdir=RUN", "--prompt=a", "--min_tokens=70"],
            "min_tokens = 70: ",
        ),
        (["score", "--workdir=RUN", "--input=none.txt"], "--input=none.txt"),
        (
            ["predict", "--workdir=RUN", "--input=none", "--output=none"],
            "config.task.kind = 'causal_lm': ",
        ),
        (["train", "--config=C", "--workdir=w", "--profile=3"], "--profile=3: "),
        (["prepare", "--config=C", "--workdir=w", "--job=3/2"], "--job=3/2: "),
        (["describe", "--config=C", "--devices=-3"], "--devices=-3: "),
        (
            ["train", "--config=C", "--workdir=w", "--config.num_steps", "3"],
            "--config.num_steps: expected --config.num_steps=3",
        ),
        (
            ["train", "--config.seed", "--config=C", "--workdir=w"],
            "--config.seed: expected --config.seed=VALUE",
        ),
        (
            ["eval", "--workdir=RUN", "--config.model.dim=8"],
            "config.model.dim was 16, is 8: ",
        ),
        (
            ["score", "--workdir=RUN", "--input=C", "--config.seed=1"],
            "--config.seed: lmjax score takes no overrides",
        ),
        (
            ["eval", "--workdir=RUN", "--config.tokenizer.bos=False"],
            "tokenizer.bos was",
        ),
        (["generate", "--workdir=RUN", "--prompt=a\udcff"], "prompt: not UTF-8"),
        (["generate", "--workdir=RUN", "--prompt=a", "--temperature=nan"], "nan"),
        (["generate", "--workdir=RUN", "--prompt=a", "--temperature=inf"], "inf"),
        (["generate", "--workdir=RUN", "--prompt=a", f"--seed={2**70}"], "seed = 118"),
        (["generate", "--workdir=C", "--prompt=a"], "--workdir="),
        (["train", "--config=C", "--workdir=w", "--config.num_steps={[]:1}"], "[]"),
        (["train", "--config=C", "--workdir=w", "rest"], "rest: unexpected"),
        (
            ["train", "--config=C", "--workdir=w", "--learning_rate=1"],
            "--config.a.b=VALUE",
        ),
        (["train", "--config=C", "--workdir=w", f"--config.seed={2**64}"], "seed"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(run, script, capsys, argv, part):
    argv = [arg.replace("RUN", str(run)).replace("=C", f"={script}") for arg in argv]
    code, _, stderr = run_cli(capsys, *argv)
    assert code == 2
    last = stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert part in last
    assert "Traceback" not in stderr


def test_text_to_score_must_be_utf8(run, capsys, tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_bytes(b"good\nbad \xff\n")
    code, _, stderr = run_cli(capsys, "score", f"--workdir={run}", f"--input={lines}")
    assert code == 2
    assert f"error: {lines}:2: not UTF-8" in stderr


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
    code, _, stderr = run_cli(capsys, "eval", f"--workdir={tmp_path}")
    assert code == 2
    assert stderr.startswith(f"error: {file}")
    assert stderr.count("\n") == 1


@pytest.mark.parametrize("damage", ["[]", "{}", "3", '{"kind": []}', "{", "\0"])
def test_a_damaged_tokenizer_is_one_line(run, capsys, tmp_path, damage):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "tokenizer" / "lmjax_tokenizer.json").write_text(damage)
    argv = ["generate", f"--workdir={tmp_path / 'run'}", "--prompt=a"]
    code, _, stderr = run_cli(capsys, *argv)
    assert code == 2
    assert "lmjax_tokenizer.json:" in stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_draft_writes_the_same_text_and_its_errors_name_its_flag(run, capsys):
    argv = ["generate", f"--workdir={run}", "--prompt=a", "--max_tokens=6"]
    argv += ["--temperature=0"]
    code, stdout, _ = run_cli(capsys, *argv)
    assert run_cli(capsys, *argv, f"--draft={run}")[:2] == (code, stdout) == (0, stdout)
    for flag, said in (("--draft=none", "holds no run"), ("--num_draft=0", ">= 1")):
        code, _, stderr = run_cli(capsys, *argv, f"--draft={run}", flag)
        assert code == 2
        assert stderr.splitlines()[-1].startswith(f"error: {flag}: ") and said in stderr


def test_an_error_of_the_system_is_one_line(run, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "/some/file")

    monkeypatch.setattr("lmjax.training.evaluate_workdir.evaluate_workdir", full)
    code, _, stderr = run_cli(capsys, "eval", f"--workdir={run}")
    assert (code, stderr) == (2, "error: /some/file: No space left on device\n")


def test_eval_needs_no_corpus(run, capsys, tmp_path, monkeypatch):
    """A workdir can be used from anywhere, when the text is gone or has changed."""
    directory = tmp_path / "run"
    shutil.copytree(run, directory)
    config = json.loads((directory / "config.json").read_text())
    config["data"]["path"] = "gone/*.txt"
    (directory / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    _, expected, _ = run_cli(capsys, "eval", f"--workdir={run}")
    assert run_cli(capsys, "eval", "--workdir=run")[:2] == (0, expected)
    code, stdout, _ = run_cli(
        capsys, "eval", "--workdir=run", "--config.data.length=16"
    )
    whole, cut = map(json.loads, (expected, stdout))
    assert code == 0 and whole["loss"] != cut["loss"]
    options = ["--config.eval.num_batches=1", "--config.eval.batch_size=8"]
    code, stdout, _ = run_cli(capsys, "eval", "--workdir=run", *options)
    part = json.loads(stdout)
    assert code == 0 and "perplexity" in part
    assert not {"bits_per_byte", "word_perplexity"} & part.keys()
    code, _, stderr = run_cli(
        capsys, "eval", "--workdir=run", "--config.data.holdout_every=3"
    )
    assert code == 2 and "config.data.path = 'gone/*.txt'" in stderr


@pytest.mark.slow
def test_eval_of_a_mixture_whose_files_have_gone(small, capsys, tmp_path):
    parts = []
    for i, name in enumerate("ab"):
        text = tmp_path / f"{name}.txt"
        text.write_text(f"{name} line of text\n" * (100 + i))
        parts.append({"source": "text", "path": str(text), "document": "line"})
    data = {"source": "mixture", "mixture": tuple(parts), "length": 32}
    file = tmp_path / "x.py"
    config = {**small, "num_steps": 2, "data": data}
    file.write_text(f"def get_config():\n    return {config!r}\n")
    directory = tmp_path / "run"
    assert main(["train", f"--config={file}", f"--workdir={directory}"]) == 0
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    logged = next(m for m in map(json.loads, lines) if m["split"] == "valid")
    for name in "ab":
        (tmp_path / f"{name}.txt").unlink()
    code, stdout, _ = run_cli(capsys, "eval", f"--workdir={directory}")
    assert code == 0
    assert json.loads(stdout)["loss"] == pytest.approx(logged["loss"], rel=1e-6)
