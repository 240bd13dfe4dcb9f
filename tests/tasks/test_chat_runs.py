"""A chat model: trained on packed chats, asked, exported with its template."""

import itertools
import json

import jax
import pytest

import lmjax
from lmjax.cli.main import main
from lmjax.config.experiment import parse
from lmjax.training import loop

pytest.importorskip("jinja2")
pytestmark = pytest.mark.slow
WORDS = ("aa", "bb", "cc", "dd")
SECTIONS = {
    "num_steps": 60,
    "batch_size": 8,
    "model": {"dim": 32, "num_layers": 1, "num_heads": 2, "max_length": 128},
    "tokenizer": {"kind": "bytes", "chat_template": "plain"},
    "data": {"source": "chat", "length": 64, "num_buckets": 1, "pack_examples": True},
    "task": {
        "kind": "prompted_lm",
        "metrics": ("exact_match",),
        "num_answers": 4,
        "write": {"num_beams": 1},
    },
    "optim": {"name": "muon", "learning_rate": 0.03, "warmup_steps": 5},
    "eval": {"every_steps": 60},
    "checkpoint": {"every_steps": 60},
    "log": {"tensorboard": False},
}


def user(text):
    return {"role": "user", "content": text}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the workdir of a model that repeats the user's word in capitals."""
    directory = tmp_path_factory.mktemp("chats")
    lines = [
        json.dumps(
            {
                "messages": [
                    turn
                    for word in words
                    for turn in (
                        user(word),
                        {"role": "assistant", "content": word.upper()},
                    )
                ]
            }
        )
        for words in [*itertools.product(WORDS, repeat=2), *itertools.product(WORDS)]
    ]
    for split, rows in (("train", lines * 12), ("valid", lines)):
        (directory / f"{split}.jsonl").write_text("\n".join(rows))
    paths = {
        "path": str(directory / "train.jsonl"),
        "valid_path": str(directory / "valid.jsonl"),
    }
    config = parse({**SECTIONS, "data": {**SECTIONS["data"], **paths}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
        assert loop.train(config, directory / "run")
    return directory / "run"


@pytest.fixture(scope="module")
def lm(run):
    return lmjax.load(run)


def test_a_run_learns_to_answer_and_to_stop(run, lm):
    *_, last = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert last["split"] == "valid" and last["exact_match"] == 1.0
    assert last["loss"] < 0.1
    assert lm.chat([user("cc")]) == "CC"
    chat = [user("aa"), {"role": "assistant", "content": "AA"}, user("dd")]
    assert lm.chat(chat) == "DD" == "".join(lm.stream_chat(chat))
    (prediction,) = lm.predict([{"messages": chat}])
    assert prediction["text"] == "DD"
    assert lm.predict(["bb"])[0]["text"] == "BB"


def test_an_export_has_the_template_and_the_end_of_a_turn(run, tmp_path):
    transformers = pytest.importorskip("transformers")
    assert main(["export", f"--workdir={run}", f"--to={tmp_path / 'hf'}"]) == 0
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = theirs.apply_chat_template(
        [user("hi")], tokenize=False, add_generation_prompt=True
    )
    assert text == "<s>User: hi\n\nAssistant:"
    workdir = tmp_path / "again"
    assert main(["import", f"--from={tmp_path / 'hf'}", f"--workdir={workdir}"]) == 0
    again = lmjax.load(workdir)
    assert (again.tokenizer.files["chat_template.jinja"]).startswith(b"{{ bos_token")
    settings = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == 256
