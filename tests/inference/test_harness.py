"""lm-evaluation-harness on a model of ours, beside its own backend of transformers."""

import json
import types

import pytest

import lmjax
from lmjax.cli.main import main
from lmjax.inference import harness
from lmjax.interop.hf import export_hf

pytest.importorskip("lm_eval", reason="pip install 'lmjax[lm_eval]'")

SENTENCE = "the cat sat on a mat and saw that all was well in its small house"
WORDS = SENTENCE.split()
TEXT = "\n".join(" ".join(WORDS[i % 7 : i % 7 + 9]) for i in range(200))
CONFIG = {
    "num_steps": 8,
    "batch_size": 8,
    "model": {
        "dim": 32,
        "num_layers": 2,
        "num_heads": 2,
        "max_length": 48,
        "position": "learned",
        "norm": "layernorm",
        "activation": "gelu_tanh",
        "gated": False,
        "use_bias": True,
    },
    "tokenizer": {"kind": "sentencepiece", "algorithm": "bpe", "vocab_size": 300},
    "data": {"source": "text", "document": "line", "length": 32},
    "optim": {"learning_rate": 1e-2, "warmup_steps": 1},
}
TASK = """task: cats
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: answer
doc_to_choice: choices
metric_list: [{metric: acc}]
"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("harness")
    (directory / "text.txt").write_text(TEXT)
    data = CONFIG["data"] | {"path": str(directory / "text.txt")}
    lmjax.train(CONFIG | {"data": data}, directory / "run")
    questions = [
        {"question": "the cat sat on a", "choices": [" mat", " small"], "answer": 0},
        {"question": "saw that all was", "choices": [" cat", " well"], "answer": 1},
        {"question": "", "choices": ["the cat", "mat and saw"], "answer": 0},
    ]
    lines = "".join(json.dumps(question) + "\n" for question in questions)
    (directory / "tasks").mkdir()
    (directory / "tasks" / "questions.jsonl").write_text(lines)
    file = directory / "tasks" / "questions.jsonl"
    (directory / "tasks" / "cats.yaml").write_text(TASK % file)
    return directory / "run"


@pytest.fixture(scope="module")
def adaptor(workdir):
    return harness._make_adaptor(harness._import_harness(), lmjax.load(workdir))


def requests(*arguments):
    return [types.SimpleNamespace(args=args) for args in arguments]


@pytest.mark.slow
def test_it_agrees_with_the_backend_of_transformers(workdir, adaptor, tmp_path):
    pytest.importorskip("torch", reason="pip install '.[parity]'")
    from lm_eval.models.huggingface import HFLM

    export_hf(workdir, tmp_path / "hf")
    bos = adaptor.lm.tokenizer.bos_id is not None
    path = str(tmp_path / "hf")
    theirs = HFLM(pretrained=path, device="cpu", add_bos_token=bos, batch_size=2)
    long = " ".join(WORDS * 20)
    pairs = requests(
        *[("the cat sat", f" {word}") for word in WORDS[:4]],
        ("", "the cat sat on a mat"),
        ("that all was ", "well in"),  # a space at the seam
        (long, " small house"),  # no room for all of the context
    )
    ours = adaptor.loglikelihood(pairs)
    expected = theirs.loglikelihood(pairs)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in expected]
    values = [value for value, _ in ours]
    assert values == pytest.approx([value for value, _ in expected], rel=1e-5)
    # With it their windows would begin with two.
    theirs.add_bos_token = False
    texts = requests((long,), ("the cat",))
    found = adaptor.loglikelihood_rolling(texts)
    assert found == pytest.approx(theirs.loglikelihood_rolling(texts), rel=1e-5)
    theirs.add_bos_token = bos
    options = {"until": [" mat"], "max_gen_toks": 8}
    prompts = requests(("the cat sat", options), ("that all was", options))
    assert adaptor.generate_until(prompts) == theirs.generate_until(prompts)


def test_the_verb_prints_a_table_and_writes_results(workdir, tmp_path, capsys):
    results = tmp_path / "results.json"
    argv = ["lm_eval", f"--workdir={workdir}", "--tasks=cats", f"--output={results}"]
    assert main([*argv, f"--include_path={workdir.parent / 'tasks'}"]) == 0
    assert "|cats" in capsys.readouterr().out.replace(" ", "")
    found = json.loads(results.read_text())["results"]["cats"]
    assert 0 <= found["acc,none"] <= 1 and "acc_stderr,none" in found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--tasks=helaswag"], "no such task (did you mean 'hellaswag'?)"),
        (["--tasks=cats", "--include_path=nowhere"], "nowhere: no such directory"),
        (["--tasks=cats", "--num_fewshot=-1"], "--num_fewshot=-1: must be >= 0"),
        (["--tasks=cats", "--limit=0"], "--limit=0: must be >= 1"),
    ],
)
def test_bad_flags_are_one_line(workdir, capsys, argv, message):
    assert main(["lm_eval", f"--workdir={workdir}", *argv]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_task_that_cannot_be_used_is_one_line(workdir, tmp_path, capsys):
    (tmp_path / "cats.yaml").write_text(TASK % (tmp_path / "missing.jsonl"))
    argv = ["lm_eval", f"--workdir={workdir}", "--tasks=cats"]
    assert main([*argv, f"--include_path={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert "--tasks=cats: " in error and error.strip().count("\n") == 0


def test_settings_of_a_task():
    options = harness._decoding_options({"until": "\n", "do_sample": False})
    assert options == {"stop": ("\n",), "max_tokens": 256, "temperature": 0.0}
    with pytest.raises(lmjax.errors.UserError, match="penalty_alpha: not supported"):
        harness._decoding_options({"penalty_alpha": 0.5})
