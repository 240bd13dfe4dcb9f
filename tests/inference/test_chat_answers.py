"""Answers in a chat: in Python, from a pipe, in a terminal; mistakes."""

import io
import logging

import jax
import pytest

from lmjax import models
from lmjax.cli.main import main
from lmjax.config.experiment import parse
from lmjax.data.tokenizers.plain import Bytes
from lmjax.errors import UserError
from lmjax.inference.chat import Conversation
from lmjax.inference.language_model import LanguageModel
from lmjax.parallel import sharding

pytest.importorskip("jinja2")
MODEL = {"kind": "decoder", "dim": 16, "num_layers": 1, "num_heads": 2}
ANSWERS = {"max_tokens": 5, "temperature": 0.0}


def user(text):
    return {"role": "user", "content": text}


@pytest.fixture(scope="module")
def lm():
    """Return a model that has learnt nothing, and answers at random."""
    config = parse(
        {
            "model": {**MODEL, "max_length": 128, "vocab_size": 258},
            "tokenizer": {"kind": "bytes", "chat_template": "plain"},
            "data": {"source": "none", "length": 128},
        }
    )
    device = jax.local_devices()[:1]
    mesh = sharding.make_mesh(config.mesh, device)
    model = models.build(config.model, platform="cpu")
    params = jax.device_put(jax.jit(model.init)(jax.random.key(1)), device[0])
    return LanguageModel(config, Bytes(bos=True), model, params, mesh, 1)


@pytest.fixture
def workdir(lm, monkeypatch):
    """Return a flag for a workdir that holds the model."""
    from lmjax.inference import language_model

    monkeypatch.setattr(language_model, "load", lambda *_, **__: lm)
    return "--workdir=runs/chat"


def test_an_answer_continues_the_chat_as_its_template_writes_it(lm):
    chat = [user("aa"), {"role": "assistant", "content": "b"}, user("c")]
    prompt = b"User: aa\n\nAssistant: b\0\n\nUser: c\n\nAssistant:"
    ids = [257, *(i or 256 for i in prompt)]
    (expected,) = lm.generate([ids], **ANSWERS)
    assert lm.chat(chat, **ANSWERS) == expected.strip()
    assert "".join(lm.stream_chat(chat, **ANSWERS)).strip() == expected.strip()
    assert lm.chat(chat, seed=1, max_tokens=5) != lm.chat(chat, seed=2, max_tokens=5)
    with pytest.raises(UserError, match="prompt: holds 999"):
        lm.generate([[999]])


@pytest.mark.parametrize(
    ("messages", "options", "words"),
    [
        ([], {}, ["'messages' is empty"]),
        ("hi", {}, ["str, not a list"]),
        ([{"role": "assistant", "content": "x"}], {}, ["nothing to answer"]),
        ([user("x" * 200)], {}, ["the last turn takes", "max_length = 128"]),
        ([user("x" * 60)], {"max_tokens": 90}, ["leaves 38", "max_tokens = 90"]),
        ([user("x")], {"max_tokens": 0}, ["max_tokens = 0"]),
        ([user("x")], {"chat_template": "chatlm"}, ["'chatlm'", "'chatml'"]),
        ([user("x")], {"chat_template": "own"}, ["no chat template"]),
        ([user("x")], {"temperature": -1.0}, ["temperature"]),
        ([{"role": "user", "tool_calls": [1]}], {}, ["no tool calls"]),
    ],
)
def test_a_chat_that_cannot_be_answered_is_one_line(lm, messages, options, words):
    with pytest.raises(UserError) as error:
        lm.chat(messages, **options)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_the_oldest_turns_of_a_long_chat_are_left_out_and_that_is_said_once(lm, caplog):
    talk = Conversation(lm, system="x", **ANSWERS)
    with caplog.at_level(logging.WARNING):
        answers = ["".join(talk.answer("word")) for _ in range(8)]
    assert len(answers) == 8 and len(talk.messages) == 17
    assert len(caplog.records) == 1 and "left out" in caplog.text
    talk.reset()
    assert talk.messages == [{"role": "system", "content": "x"}]


def test_an_answer_that_is_stopped_is_kept_as_far_as_it_was(lm):
    talk = Conversation(lm, **ANSWERS)
    answer = talk.answer("aa")
    first = next(answer)
    answer.close()
    assert talk.messages[-1] == {"role": "assistant", "content": first.strip()}
    with pytest.raises(UserError):
        list(talk.answer("x" * 200))
    assert len(talk.messages) == 2


def test_each_line_of_a_pipe_is_a_turn(lm, workdir, capsys, monkeypatch):
    command = ["chat", workdir, "--temperature=0", "--max_tokens=5"]
    monkeypatch.setattr("sys.stdin", io.StringIO("aa\n\nbb\n/reset\ncc\n/exit\ndd\n"))
    assert main(command) == 0
    talk = Conversation(lm, **ANSWERS)
    expected = ["".join(talk.answer(text)) for text in ("aa", "bb")]
    talk.reset()
    expected.append("".join(talk.answer("cc")))
    assert capsys.readouterr().out == "".join(f"{text}\n" for text in expected)
    monkeypatch.setattr("sys.stdin", io.StringIO("/rest\n"))
    assert main(command) == 2
    assert "did you mean '/reset'" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\xff\n"), "utf-8"))
    assert main(command) == 2
    assert capsys.readouterr().err.startswith("error: stdin: not text")


class Terminal(io.StringIO):
    """Gives lines to `input`; an exception in their place is raised."""

    def isatty(self):
        return True


def test_a_terminal_goes_on_after_mistakes_and_interrupts(
    lm, workdir, capsys, monkeypatch
):
    lines = iter(["aa", KeyboardInterrupt, "x" * 200, "/what", "bb", EOFError])

    def read(prompt):
        line = next(lines)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("builtins.input", read)
    assert main(["chat", workdir, "--temperature=0", "--max_tokens=5"]) == 0
    said = capsys.readouterr()
    talk = Conversation(lm, **ANSWERS)
    expected = ["".join(talk.answer(text)) for text in ("aa", "bb")]
    assert said.out.strip() == "\n".join(expected).strip()
    assert said.err.count("error: ") == 2 and "/what" in said.err
