"""Chat templates: their text, the assistant's part of it, tokens, mistakes."""

import json

import pytest

from lmjax.config.decoding import DecodingConfig
from lmjax.config.tokenizer import TokenizerConfig
from lmjax.data.tokenizers.chat_template import (
    ChatTemplate,
    encode_rendered,
    end_chat_decoding,
    find_template,
    read_template,
)
from lmjax.data.tokenizers.chat_window import fit_messages
from lmjax.data.tokenizers.named_templates import NAMED_TEMPLATES
from lmjax.data.tokenizers.plain import Bytes, Ids
from lmjax.data.tokenizers.tokenizer import make_tokenizer
from lmjax.errors import ConfigError, UserError

pytest.importorskip("jinja2")
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def chat(*turns):
    """Return messages of texts, whose roles are their first letters."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    pairs = (turn.split(":", 1) for turn in turns)
    return [{"role": roles[role], "content": text} for role, text in pairs]


def template(text):
    return ChatTemplate(text=text, name="T", tokens=TOKENS)


ONE = chat("u:hi", "a:hello")
TWO = chat("u:one", "a: two\n", "u:three", "a:four\n\nfive")
SYSTEM = chat("s:Be brief.", "u:漢 🙂?", "a:🙂!", "u:bye", "a:bye")
# Templates in the manners of those that models come with.
MARKED = """\
{% for m in messages %}
{{ '<' + m.role + '>\\n' }}
{% if m.role == 'assistant' %}
{% generation %}{{ m.content + '<end>\\n' }}{% endgeneration %}
{% else %}{{ m.content + '<end>\\n' }}{% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ '<assistant>\\n' }}{% endif %}"""
BRACKETS = """\
{{ bos_token }}{% for m in messages %}
{%- if m.role == 'system' %}{% continue %}{% endif %}
{%- if m.role == 'user' %}{{ '[Q] ' + m.content | trim + ' [/Q]' }}
{%- else %}{{ ' ' + m.content | trim + eos_token }}{% endif %}
{%- endfor %}"""
# The last turn of the assistant has a thought, others have none.
THINKS = """\
{%- for m in messages %}
{%- set thought = '<think></think>' if m.role == 'assistant' and loop.last else '' %}
{{- '<' + m.role + '>' + thought + m.content + '<end>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<assistant>' }}{% endif %}"""
# The chat ends with a mark of its own.
CLOSED = """\
{%- for m in messages %}{{- '<' + m.role + '>' + m.content + '<end>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{- '<assistant>' }}
{%- else %}{{- eos_token }}{% endif %}"""
STRICT = """\
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('roles must alternate') }}{% endif %}
{{- m.role + strftime_now('%%') + m.content + '\\n\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'assistant%' }}{% endif %}"""
TEMPLATES = {
    "marked": MARKED,
    "brackets": BRACKETS,
    "thinks": THINKS,
    "closed": CLOSED,
    **NAMED_TEMPLATES,
}


def written(text, messages):
    whole, spans = template(text).render_with_spans(messages)
    return [whole[start:stop] for start, stop in spans]


@pytest.mark.parametrize(
    ("name", "expected", "end"),
    [
        ("marked", [" two\n<end>\n", "four\n\nfive<end>\n"], "<end>"),
        ("brackets", [" two</s>", " four\n\nfive</s>"], "</s>"),
        ("thinks", [" two\n<end>", "<think></think>four\n\nfive<end>"], "<end>"),
        ("closed", [" two\n<end>", "four\n\nfive<end>\n</s>"], "<end>"),
        ("chatml", [" two\n<|im_end|>", "four\n\nfive<|im_end|>"], "<|im_end|>"),
        ("llama3", ["two<|eot_id|>", "four\n\nfive<|eot_id|>"], "<|eot_id|>"),
        ("zephyr", [" two\n</s>", "four\n\nfive</s>"], "</s>"),
        ("plain", ["  two\n</s>", " four\n\nfive</s>"], "</s>"),
    ],
)
def test_the_assistant_writes_its_words_and_the_end_of_its_turn(name, expected, end):
    assert written(TEMPLATES[name], TWO) == expected
    assert template(TEMPLATES[name]).end_of_turn == end


def test_white_space_alone_ends_a_turn():
    assert written(STRICT, ONE) == ["hello\n\n"]
    assert template(STRICT).end_of_turn == ""


def test_words_that_are_also_elsewhere_are_told_by_their_place():
    again = chat("u:yes<end>", "a:yes", "u:yes", "a:yes")
    for name in ("marked", "brackets", "thinks", "chatml"):
        (first, second) = written(TEMPLATES[name], again)
        assert "yes" in first and "yes" in second and "yes<end>" not in first[4:]


@pytest.mark.parametrize("mark", ["\U000f0002", "\U000f0003"])
def test_a_text_may_have_any_character(mark):
    (turn,) = written(MARKED, chat("u:a" + mark, "a:b" + mark))
    assert turn.strip() == f"b{mark}<end>"


@pytest.mark.parametrize("name", ["marked", "brackets", "thinks", "chatml", "plain"])
def test_spans_are_told_by_their_turns(name):
    messages = chat("u:a", "a:bb", "u:c", "a:dd", "u:f", "a:ee", "a:gg")
    if name == "thinks":
        messages.pop()  # it writes the turn before otherwise
    made = template(TEMPLATES[name])
    text, spans = made.render_with_spans(messages)
    for i in [i for i, m in enumerate(messages) if m["role"] == "assistant"]:
        own = made.turn_spans((text, spans), messages, i)
        (turn,) = (text[start:stop] for start, stop in own)
        assert messages[i]["content"] in turn


@pytest.mark.parametrize(
    ("text", "messages", "words"),
    [
        (STRICT, chat("s:x", "u:a", "a:b"), ["T refuses", "roles must alternate"]),
        ("{{ 1 / 0 }}", ONE, ["T refuses", "division by zero"]),
        ("{{ messages[9].content }}", ONE, ["T refuses", "no element 9"]),
        ("{{ ''.__class__.__mro__ }}", ONE, ["T refuses", "unsafe"]),
        ("{{ messages.append(1) }}", ONE, ["T refuses", "append"]),
        ("{% for m in messages[::-1] %}{{ m.content }}{% endfor %}", TWO, ["T: where"]),
        ("{{ messages | length }}", ONE, ["T: where", "messages[1]"]),
        (NAMED_TEMPLATES["plain"], chat("a:b"), ["first turn is the assistant's"]),
    ],
)
def test_what_a_template_cannot_write_is_one_line(text, messages, words):
    with pytest.raises(UserError) as error:
        template(text).render_with_spans(messages)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["{% if %}", "{{ x", "{% generation %}", "{% z %}"])
def test_a_template_that_does_not_parse_is_named(text):
    with pytest.raises(ConfigError, match=r"T: line 1: is not Jinja"):
        template(text)


def test_the_template_of_a_tokenizer_is_found_in_its_files():
    named = [{"name": "tool", "template": "b"}, {"name": "default", "template": "a"}]
    files = {"tokenizer_config.json": json.dumps({"chat_template": named}).encode()}
    assert read_template(files) == "a"
    files["chat_template.json"] = b'{"chat_template": "c"}'
    assert read_template(files) == "c"
    files["chat_template.jinja"] = b"d"
    assert read_template(files) == "d"
    assert read_template({}) is None


@pytest.mark.parametrize(
    ("tokenizer", "words"),
    [
        (Bytes(bos=True), ["'own'", "no chat template", "chatml"]),
        (Ids(9), ["cannot spell"]),
    ],
)
def test_a_tokenizer_without_a_template_is_refused(tokenizer, words):
    with pytest.raises(ConfigError) as error:
        find_template(tokenizer, "own")
    assert all(word in str(error.value) for word in words)


def test_special_tokens_of_tokenizers_whose_text_cannot_spell_them():
    tokenizer = Bytes(bos=True)
    plain = find_template(tokenizer, "plain")
    text = plain.render(ONE)
    (encoding,) = encode_rendered(plain, tokenizer, [text])
    expected = [257, *b"User: hi\n\nAssistant: hello", 256, *b"\n\n"]
    assert encoding.ids.tolist() == expected
    assert text[slice(*encoding.offsets[-3])] == "</s>"
    ends = end_chat_decoding(DecodingConfig(), plain, tokenizer)
    assert (ends.stop_ids, ends.stop) == ((256,), ())
    chatml = find_template(tokenizer, "chatml")
    ends = end_chat_decoding(DecodingConfig(stop=("x",)), chatml, tokenizer)
    assert (ends.stop_ids, ends.stop) == ((256,), ("x", "<|im_end|>"))


def test_the_oldest_turns_are_left_out_but_not_the_system():
    tokenizer = Bytes(bos=True)
    plain = find_template(tokenizer, "plain")
    messages = [*SYSTEM[:4], {"role": "user", "content": "last"}]
    sizes = [
        len(fit_messages(messages, plain, tokenizer, room=room).ids)
        for room in (1000, 60, 45, 3)
    ]
    dropped = [
        fit_messages(messages, plain, tokenizer, room=room).num_dropped
        for room in (1000, 60, 45, 3)
    ]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 60 >= sizes[1]
    assert dropped == [0, 2, 2, 3]
    kept = tokenizer.decode(fit_messages(messages, plain, tokenizer, room=3).ids)
    assert kept == "Be brief.\n\nUser: last\n\nAssistant:"


def test_of_many_turns_few_are_encoded_to_find_those_that_fit(monkeypatch):
    tokenizer = Bytes(bos=True)
    plain = find_template(tokenizer, "plain")
    messages = chat("s:x", *["u:ab", "a:c"] * 200, "u:last")

    def slow(room):
        """Return how many messages are left out, one question after another."""
        for dropped in range(0, 401, 2):
            kept = [messages[0], *messages[1 + dropped :]]
            text = plain.render(kept, add_generation_prompt=True)
            if len(encode_rendered(plain, tokenizer, [text])[0].ids) <= room:
                break
        return dropped

    expected = {room: slow(room) for room in (0, 40, 90, 120, 3000, 9000)}
    calls = []
    original = ChatTemplate.render
    render = lambda *args, **options: calls.append(1) or original(*args, **options)
    monkeypatch.setattr(ChatTemplate, "render", render)
    for room, dropped in expected.items():
        calls.clear()
        found = fit_messages(messages, plain, tokenizer, room=room)
        assert found.num_dropped == dropped and len(calls) <= 10, room
    assert len({*expected.values()}) == 5 and expected[9000] == 0


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    """Return the directory of a byte-level tokenizer with marks."""
    tokenizers = pytest.importorskip("tokenizers")
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<end>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(["one two three four assistant user system"], trainer)
    directory = tmp_path_factory.mktemp("hf")
    core.save(str(directory / "tokenizer.json"))
    config = {**TOKENS, "tokenizer_class": "PreTrainedTokenizerFast"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("name", TEMPLATES)
def test_text_and_tokens_are_those_of_transformers(hugging_face, name):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(hugging_face)
    config = TokenizerConfig(kind="tokenizers", path=str(hugging_face))
    tokenizer = make_tokenizer(config, documents=None, seed=0)
    ours = template(TEMPLATES[name])
    for messages in (ONE, TWO, SYSTEM):
        for prompt in (False, True):
            given = messages[:-1] if prompt else messages
            options = {"chat_template": ours.text, "add_generation_prompt": prompt}
            text = ours.render(given, add_generation_prompt=prompt)
            assert text == theirs.apply_chat_template(given, tokenize=False, **options)
            ids = theirs.apply_chat_template(given, return_dict=False, **options)
            assert encode_rendered(ours, tokenizer, [text])[0].ids.tolist() == ids


def test_marks_that_are_common_pieces_are_one_token(hugging_face, tmp_path):
    content = json.loads((hugging_face / "tokenizer.json").read_text())
    kept = [token for token in content["added_tokens"] if "im_" not in token["content"]]
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({**content, "added_tokens": kept})
    )
    config = TokenizerConfig(kind="tokenizers", path=str(tmp_path))
    tokenizer = make_tokenizer(config, documents=None, seed=0)
    chatml = find_template(tokenizer, "chatml")
    text = chatml.render(ONE)
    ids = encode_rendered(chatml, tokenizer, [text])[0].ids.tolist()
    assert (ids.count(3), ids.count(4)) == (2, 2)
    assert len(tokenizer.encode(text)) > len(ids)
