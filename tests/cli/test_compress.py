"""`lmjax compress`: what it writes, what reads it, and what it refuses."""

import json

import pytest

from lmjax.cli.main import main
from tests.cli.test_cli import run_cli


@pytest.fixture(scope="module")
def smaller(run):
    """Return the run, quantized."""
    target = run.parent / "int8"
    argv = ["compress", f"--workdir={run}", f"--to={target}", "--quantize=int8"]
    assert main(argv) == 0
    return target


@pytest.mark.slow
def test_what_was_done_is_recorded(run, smaller):
    record = json.loads((smaller / "compress.json").read_text())
    assert record["source"] == str(run)
    assert record["step"] == 4
    assert [step["method"] for step in record["steps"]] == ["rtn"]
    assert record["bytes_after"] < 0.4 * record["bytes_before"]
    assert all("norm" in name for name in record["float_parameters"])
    checkpoint = json.loads((smaller / "config.json").read_text())
    assert checkpoint["model"]["quantize"]["weights"] == "int8"


@pytest.mark.slow
def test_every_verb_reads_it(run, smaller, capsys, tmp_path):
    workdir = f"--workdir={smaller}"
    losses = []
    for directory in (run, smaller):
        code, stdout, _ = run_cli(capsys, "eval", f"--workdir={directory}")
        assert code == 0
        losses.append(json.loads(stdout)["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.005)
    texts = tmp_path / "texts.txt"
    texts.write_text("line number 3\nof the text\n")
    for argv in (
        ["generate", workdir, "--prompt=line", "--max_tokens=5"],
        ["generate", workdir, "--prompt=line", "--max_tokens=5", "--num_beams=2"],
        ["generate", f"--workdir={run}", f"--draft={smaller}", "--prompt=line"],
        ["score", workdir, f"--input={texts}"],
        ["export", workdir, f"--to={tmp_path / 'hf'}"],
    ):
        assert run_cli(capsys, *argv)[0] == 0, argv


@pytest.mark.slow
def test_adapters_are_trained_on_it_and_nothing_of_it(script, smaller, capsys):
    """QLoRA (Dettmers et al. 2023)."""
    workdir = smaller.parent / "tuned"
    leaves = (f"init_from={smaller}", "model.lora.rank=2", "optim.ema_decay=0.9")
    leaves += ("num_steps=2", "optim.trainable=('*lora*',)")
    overrides = [f"--config.{leaf}" for leaf in leaves]
    argv = ["train", f"--config={script}", f"--workdir={workdir}", *overrides]
    assert run_cli(capsys, *argv)[0] == 0
    code, stdout, _ = run_cli(capsys, "eval", f"--workdir={workdir}")
    assert code == 0
    assert json.loads(stdout)["loss"] > 0
    code, _, stderr = run_cli(
        capsys, "train", f"--config={script}", f"--workdir={smaller}"
    )
    assert code == 2
    assert "holds a compressed model" in stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--prune, --quantize or --low_rank: must be given"),
        (["--quantize=int9"], "--quantize=int9: must be int8"),
        (["--quantize=int8:64"], "--quantize=int8:64: must be int8"),
        (["--quantize=int4:3"], "--quantize=int4:3: group = 3: must be even"),
        (["--quantize=int4:6"], "quantize.group = 6: must divide config.model.dim"),
        (["--quantize=int8", "--method=gptk"], "--method=gptk: must be rtn, gptq"),
        (["--quantize=int8", "--method=gptq"], "gptq: needs --calibrate"),
        (["--quantize=int8", "--calibrate=TEXT"], "none of the steps reads a text"),
        (["--quantize=int8", "--windows=3"], "--windows=3: needs --calibrate"),
        (["--quantize=int4:8", "--activations=int8"], "needs --quantize=int8"),
        (["--quantize=int8", "--embeddings=int4"], "--embeddings=int4: must be int8"),
        (["--method=rtn"], "--method=rtn: needs --quantize"),
        (["--quantize=int8", "--cache=fp8"], "--cache=fp8: must be int8 or float"),
        (
            ["--quantize=nf4:8", "--method=smoothquant", "--calibrate=TEXT"],
            "--method=smoothquant: takes --quantize=int8, not nf4",
        ),
        (
            ["--quantize=int8", "--method=gptq", "--calibrate=TEXT"],
            "too short: 13 tokens",
        ),
        (["--quantize=int8", "--step=77"], "--step=77: not in"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(run, capsys, tmp_path, flags, message):
    text = tmp_path / "text.txt"
    text.write_text("a short text")
    flags = [flag.replace("TEXT", str(text)) for flag in flags]
    target = tmp_path / "new"
    argv = ["compress", f"--workdir={run}", f"--to={target}", *flags]
    code, _, stderr = run_cli(capsys, *argv)
    assert code == 2
    assert message in stderr
    assert len(stderr.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.txt"]


def test_a_workdir_is_quantized_once_and_none_is_written_over(run, smaller, capsys):
    new = f"--to={smaller.parent / 'twice'}"
    argv = ["compress", f"--workdir={smaller}", new, "--quantize=int8"]
    code, _, stderr = run_cli(capsys, *argv)
    assert code == 2
    assert "config.model.quantize.weights = 'int8'" in stderr
    argv = ["compress", f"--workdir={run}", f"--to={smaller}", "--quantize=int8"]
    code, _, stderr = run_cli(capsys, *argv)
    assert code == 2
    assert "exists already" in stderr
