"""Runs of generation tasks: trained, evaluated, predicted, on any mesh."""

import dataclasses
import importlib
import json
import random

import jax
import pytest

import lmjax
from lmjax.cli import main
from lmjax.config import decoding, experiment
from lmjax.config.experiment import parse
from lmjax.errors import UserError
from lmjax.generate.text_generator import TextGenerator
from lmjax.metrics import text
from lmjax.run import workdir
from lmjax.training import loop
from lmjax.training.evaluate_workdir import evaluate_workdir

MODEL = {"dim": 32, "num_layers": 1, "num_heads": 4, "max_length": 48}
SECTIONS = {
    "num_steps": 150,
    "batch_size": 32,
    "tokenizer": {"kind": "bytes"},
    "optim": {
        "name": "muon",
        "learning_rate": 0.03,
        "schedule": "linear",
        "warmup_steps": 10,
    },
    "eval": {"every_steps": 75, "batch_size": 16},
    "checkpoint": {"best_metric": "exact_match", "best_mode": "max"},
    "log": {"every_steps": 20, "tensorboard": False},
}
KINDS = {
    "seq2seq": {
        "model": {**MODEL, "kind": "encoder_decoder", "start_id": 257},
        "data": {"length": 24, "target_length": 16},
        "task": {"template": "up: {source}"},
    },
    "prompted_lm": {
        "model": {**MODEL, "kind": "decoder"},
        "data": {"length": 40, "target_length": 16},
        "task": {"template": "{source}="},
    },
}


COUNTS = {"train": 600, "valid": 21, "test": 19}


def rows(count, seed):
    """Yield words, to be written in capitals."""
    rng = random.Random(seed)
    for _ in range(count):
        words = " ".join(rng.choices("abcd", k=rng.randint(2, 4)))
        yield {"source": words, "target": words.upper()}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("texts")
    for seed, (split, count) in enumerate(COUNTS.items()):
        lines = (json.dumps(row) + "\n" for row in rows(count, seed))
        (directory / f"{split}.jsonl").write_text("".join(lines))
    return directory


@pytest.fixture(scope="module")
def make(files):
    def build(kind, *overrides):
        own = KINDS[kind]
        names = {"path": "train", "valid_path": "valid", "test_path": "test"}
        paths = {leaf: str(files / f"{split}.jsonl") for leaf, split in names.items()}
        data = {"source": "jsonl", "num_buckets": 2, **paths, **own["data"]}
        metrics = ("bleu", "chrf", "rouge", "lead1_rouge", "exact_match")
        task = {"kind": kind, "metrics": metrics, "num_answers": 5, **own["task"]}
        sections = {"model": own["model"], "data": data, "task": task}
        return parse({**SECTIONS, **sections}, overrides)

    return build


@pytest.fixture(scope="module")
def finished(make, tmp_path_factory):
    """Return the workdir of a finished run of a kind."""
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    done = {}

    def run(kind):
        if kind not in done:
            directory = tmp_path_factory.mktemp(kind)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
                assert loop.train(make(kind), directory)
            done[kind] = directory
        return done[kind]

    return run


def metrics(directory, split):
    found = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [row for row in found if row["split"] == split]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_learns_to_generate(finished, kind):
    directory = finished(kind)
    valid, test = metrics(directory, "valid")[-1], metrics(directory, "test")[-1]
    assert test["bleu"] > 95
    assert test["chrf"] > 95
    assert test["rouge1"] > 0.95
    assert test["exact_match"] > 0.9
    assert test["lead1_rouge1"] == 1  # case does not count
    assert test["perplexity"] == pytest.approx(2.71828 ** test["loss"], rel=1e-3)
    assert valid["exact_match"] in {i / 5 for i in range(6)}  # of num_answers
    signatures = test["signatures"]
    assert "tok:13a" in signatures["bleu"]
    assert "nc:6" in signatures["chrf"]
    assert "stem:porter" in signatures["rouge"]
    train = metrics(directory, "train")
    assert all(0 <= row["padding"] < 1 for row in train)
    assert max(row.get("num_compilations", 0) for row in train) <= 2


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_is_the_same_whatever_buckets_and_mesh(
    finished, kind, capsys, monkeypatch
):
    directory = finished(kind)
    expected = metrics(directory, "test")[-1]
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:4])
    flags = ["--config.data.num_buckets=1", "--config.eval.batch_size=12"]
    flags += ["--config.mesh.data=2", "--config.mesh.fsdp=2"]
    assert main.main(["eval", f"--workdir={directory}", "--step=best", *flags]) == 0
    valid, test = map(json.loads, capsys.readouterr().out.splitlines())
    for name in ("loss", "accuracy", "bleu", "chrf", "rouge2", "exact_match"):
        assert test[name] == pytest.approx(expected[name], rel=1e-4), name
    assert {"bleu", "lead1_rougeL"} <= valid.keys()
    assert all(isinstance(v, int | float) for k, v in test.items() if k != "split")


def predict(workdir, source, target, *flags):
    files = [f"--input={source}", f"--output={target}"]
    return main.main(["predict", f"--workdir={workdir}", *files, *flags])


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_keep_the_order(finished, files, kind, tmp_path):
    directory, source = finished(kind), files / "test.jsonl"
    whole = tmp_path / "whole.jsonl"
    assert predict(directory, source, whole, "--step=best") == 0
    answers = [*map(json.loads, whole.read_text().splitlines())]
    examples = [*map(json.loads, source.read_text().splitlines())]
    pairs = [*zip(examples, answers, strict=True)]
    right = sum(e["target"] == a["text"] for e, a in pairs) / len(pairs)
    assert right == pytest.approx(metrics(directory, "test")[-1]["exact_match"])
    assert all(a["log_prob"] < 0 and a["score"] < 0 for a in answers)


@pytest.mark.parametrize("kind", KINDS)
def test_one_beam_equals_greedy_generation(finished, kind):
    lm = lmjax.load(finished(kind), overrides=["task.write.num_beams=1"])
    sources = ["a b c d", "d d a b c a", "b"]
    template = KINDS[kind]["task"]["template"]
    prompts = [template.replace("{source}", source) for source in sources]
    greedy = lm.generate(prompts, max_tokens=16, temperature=0)
    assert [answer["text"] for answer in lm.predict(sources)] == greedy
    (alone,) = lm.predict([{"source": sources[1]}])
    assert alone["text"] == greedy[1]
    (score,) = lm.score([(prompts[0], greedy[0])], eos=True)
    assert lm.predict(sources)[0]["log_prob"] == pytest.approx(
        score["log_prob"], rel=1e-3, abs=1e-4
    )


@pytest.mark.slow
def test_a_recurrent_network_with_attention_generates_too(make, tmp_path, monkeypatch):
    pytest.importorskip("sacrebleu")
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
    sections = experiment.to_dict(make("seq2seq"))
    model = {"kind": "recurrent_encoder_decoder", "dim": 16, "max_length": 48}
    overrides = ["num_steps=20", "task.write.num_beams=1", "optim.name=adamw"]
    assert loop.train(parse(sections | {"model": model}, overrides), tmp_path)
    assert {"bleu", "rouge1"} <= metrics(tmp_path, "test")[-1].keys()
    lm, sources = lmjax.load(tmp_path), ["a b c d", "d d a b c a", "b"]
    prompts = [f"up: {source}" for source in sources]
    greedy = lm.generate(prompts, max_tokens=16, temperature=0)
    assert [answer["text"] for answer in lm.predict(sources)] == greedy


def test_settings_of_decoding_are_overridden(finished, files, tmp_path, capsys):
    directory = finished("seq2seq")
    out = tmp_path / "out.jsonl"
    more = ["num_beams=3", "num_return=3", "max_tokens=4"]
    flags = [f"--config.task.write.{leaf}" for leaf in more]
    assert predict(directory, files / "test.jsonl", out, *flags) == 0
    for line in map(json.loads, out.read_text().splitlines()):
        texts = [line, *line["others"]]
        assert len({text["text"] for text in texts}) == 3
        scores = [text["score"] for text in texts]
        assert scores == sorted(scores, reverse=True)
        assert all(len(text["text"]) <= 4 for text in texts)
    assert predict(directory, files / "test.jsonl", out, *flags[:2]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "config.task.write.max_tokens was 4, is 16 (undo these" in said
    for flag, said in (
        ("task.template={source}", "config.task.template was 'up: {source}'"),
        ("task.write.num_beam=2", "did you mean 'num_beams'"),
        ("task.write.num_return=9", "must be at most config.task.write.num_beams = 4"),
    ):
        other = tmp_path / "other.jsonl"
        assert predict(directory, files / "test.jsonl", other, f"--config.{flag}") == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and said in error


def test_user_errors_in_sources_to_translate(finished, tmp_path, capsys, caplog):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    examples = [{"source": "a b"}, {"src": "b"}, {"source": ""}, {"source": "a " * 99}]
    source.write_text("".join(json.dumps(example) + "\n" for example in examples))
    assert predict(finished("seq2seq"), source, target) == 2
    said = capsys.readouterr().err
    assert "in.jsonl:2: config.data.fields.source = 'source': no such field" in said
    assert predict(finished("seq2seq"), source, target, "--skip_bad") == 0
    assert "4 predictions; 1 truncated" in caplog.text
    lines = [*map(json.loads, target.read_text().splitlines())]
    assert ["text" in line for line in lines] == [True, False, False, True]
    assert "in.jsonl:3: is blank" in lines[2]["error"]


def test_eval_reads_other_pairs(finished, tmp_path, monkeypatch):
    pytest.importorskip("sacrebleu")
    path = tmp_path / "other.jsonl"
    path.write_text('{"source": "a b c d", "target": "A B C D"}\n')
    overrides = [f"data.valid_path={path}", "data.test_path="]
    overrides.append("task.write.num_beams=1")
    run = finished("seq2seq")
    (row,) = evaluate_workdir(run, step=None, overrides=overrides)
    assert row["exact_match"] in (0.0, 1.0)
    overrides.append("task.metrics=('lead1_rouge',)")
    monkeypatch.setattr(TextGenerator, "generate", None)  # not called
    (row,) = evaluate_workdir(run, step=None, overrides=overrides)
    assert row["lead1_rouge1"] == 1


@pytest.mark.slow
def test_parallel_files_and_bad_lines(make, tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
    for split in ("train", "valid"):
        (tmp_path / f"{split}.en").write_text("a b\n\nc\nd e\n")
        (tmp_path / f"{split}.de").write_text("A B\nX\nC\nD E\n")
    data = {
        "source": "parallel",
        "path": tmp_path / "train",
        "valid_path": tmp_path / "valid",
        "test_path": "",
        "fields.source": "en",
        "fields.target": "de",
    }
    flags = [f"data.{leaf}={value}" for leaf, value in data.items()]
    flags += ["num_steps=1", "optim.warmup_steps=1", "batch_size=2"]
    flags += ["optim.name=adamw"]  # compiles fastest
    flags += ["eval.batch_size=2", "task.write.num_beams=1"]
    file = tmp_path / "x.py"
    sections = experiment.to_dict(make("seq2seq"))
    sections["data"]["test_path"] = ""
    file.write_text(f"def get_config():\n    return {sections!r}\n")
    flags = [f"--config.{flag}" for flag in flags]
    train = ["train", f"--config={file}", f"--workdir={tmp_path / 'run'}", *flags]
    assert main.main(train) == 2
    said = capsys.readouterr().err
    assert "train.en:2: 'en' is empty (config.data.on_bad_example='skip'" in said
    assert main.main([*train, "--config.data.on_bad_example=skip"]) == 0
    assert "left out 1 of 4 examples" in caplog.text
    (tmp_path / "train.de").write_text("A\nB\n")
    assert main.main([*train[:2], f"--workdir={tmp_path / 'two'}", *flags]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "unequal lines:" in said and "has 4" in said and "has 2" in said


@pytest.mark.parametrize("kind", KINDS)
def test_every_leaf_of_generation_is_read(make, kind, tmp_path, monkeypatch):
    pytest.importorskip("sacrebleu")
    seen = set()
    kinds = (decoding.DecodingConfig, type(make(kind).task))

    def watch(kind):
        plain = kind.__getattribute__

        def noted(self, name):
            seen.add((kind.__name__, name))
            return plain(self, name)

        monkeypatch.setattr(kind, "__getattribute__", noted)

    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
    flags = ("num_steps=1", "optim.warmup_steps=1", "data.test_path=")
    config = make(kind, *flags, "optim.name=adamw")
    monkeypatch.setattr(dataclasses, "asdict", shallow)
    for section in kinds:
        watch(section)
    assert not [*config.task.prediction_conflicts(config, "config")]  # not sampled
    loop.train(config, tmp_path)
    wanted = {(k.__name__, f.name) for k in kinds for f in dataclasses.fields(k)}
    # `max_tokens` has followed from `max_length` when the config was parsed.
    assert wanted - seen <= {("DecodingConfig", "max_length")}


def shallow(config):
    """Stand in for `dataclasses.asdict`, which would read every leaf."""
    return json.loads(json.dumps(config, default=lambda c: dict(vars(c))))


def test_what_the_language_of_the_targets_needs_is_checked_before_training(
    make, tmp_path, monkeypatch
):
    pytest.importorskip("sacrebleu")
    module = importlib.import_module("sacrebleu.tokenizers.tokenizer_ja_mecab")
    monkeypatch.setattr(module, "MeCab", None)
    text._make_bleu.cache_clear()
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
    path = tmp_path / "ja.jsonl"
    path.write_text('{"source": "a", "target": "今日は天気が良い。"}\n' * 8)
    leaves = [f"data.{split}path={path}" for split in ("", "valid_", "test_")]
    with pytest.raises(UserError, match=r"'ja-mecab'.*'sacrebleu\[ja\]'"):
        loop.train(make("seq2seq", *leaves), tmp_path / "run")
    assert not workdir.has_checkpoints(tmp_path / "run")
    text._make_bleu.cache_clear()
