"""Settings of generation: lmjax writes what transformers writes with them."""

import json

import numpy as np
import pytest
from references import save_reference

import lmjax
from lmjax.config.experiment import parse
from lmjax.config.text_task import CausalLMConfig
from lmjax.errors import UserError
from lmjax.interop import hf
from lmjax.interop.generation import read_decoding, write_settings
from lmjax.training import init_from

torch = pytest.importorskip("torch", reason="the reference runs on torch")
pytest.importorskip("transformers", reason="is the reference")

STOPS = [2, 4, *range(7, 67, 5)]
MANY = [[i] for i in range(3, 40, 2)]
SEARCH = {"num_beams": 3, "eos_token_id": STOPS}
CASES = [
    (
        "gpt2",
        {"bad_words_ids": [*MANY, [2], [8, 30], [30, 8], [1, 2, 3]]}
        | {"repetition_penalty": 3.0, "begin_suppress_tokens": [*range(30, 60)]},
    ),
    ("gpt2", {**SEARCH, "repetition_penalty": 1.8, "min_length": 14}),
    ("gpt2", {"forced_eos_token_id": [6, 2], "max_length": 15, "eos_token_id": [2]}),
    ("bart", {"forced_bos_token_id": None, "min_new_tokens": 3, "eos_token_id": STOPS}),
    (
        "bart",
        {**SEARCH, "forced_bos_token_id": 9, "forced_eos_token_id": 2}
        | {"no_repeat_ngram_size": 2, "min_length": 6, "max_length": 12}
        | {"early_stopping": True, "length_penalty": 2.0}
        | {"begin_suppress_tokens": [*range(30)], "suppress_tokens": [40, 41]},
    ),
    ("marian", {**SEARCH, "bad_words_ids": [[66], *MANY], "renormalize_logits": True}),
    ("marian", {"bad_words_ids": [[66]]}),
    ("t5_v11_new", {**SEARCH, "early_stopping": "never", "length_penalty": 1.7}),
]


def save(directory, name, settings):
    """Save a reference whose generation_config.json has some settings."""
    model = save_reference(name, directory)
    if name == "marian":  # padding is the most likely, as in published models
        with torch.no_grad():
            model.final_logits_bias[0, 66] = 9.0
        model.save_pretrained(directory)
    file = directory / "generation_config.json"
    values = json.loads(file.read_text())
    for key, value in settings.items():
        values[key] = value
    file.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return type(model)


def generate(model_class, directory, sources, **options):
    """Return the ids that transformers generates, without the stop id."""
    model = model_class.from_pretrained(directory).eval()
    with torch.no_grad():
        rows = model.generate(torch.tensor(sources), **options).numpy()
    config = model.generation_config
    is_decoder = not model.config.is_encoder_decoder
    start = len(sources[0]) if is_decoder else 1
    stops = np.atleast_1d(-1 if config.eos_token_id is None else config.eos_token_id)
    texts = []
    for row in rows[:, start:].tolist():
        end = next((i for i, token in enumerate(row) if token in stops), len(row))
        forced = not is_decoder and row[:1] == [config.forced_bos_token_id]
        texts.append(row[forced:end])
    return texts


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
def test_texts_are_those_of_transformers(tmp_path, name, settings):
    model_class = save(tmp_path / "hf", name, settings)
    sources = np.random.default_rng(3).integers(5, 60, (3, 7)).tolist()
    fixed = {} if "max_length" in settings else {"max_new_tokens": 12}
    expected = generate(model_class, tmp_path / "hf", sources, **fixed)
    hf.import_hf(tmp_path / "hf", tmp_path / "run")
    lm = lmjax.load(tmp_path / "run")
    limit = {"max_tokens": 12} if fixed else {}
    prompts = [" ".join(map(str, source)) for source in sources]
    found = [[*map(int, text.split())] for text in lm.generate(prompts, **limit)]
    assert found == expected
    assert [*map(int, "".join(lm.stream(prompts[0], **limit)).split())] == expected[0]
    hf.export_hf(tmp_path / "run", tmp_path / "again")
    assert generate(model_class, tmp_path / "again", sources, **fixed) == expected


def test_settings_of_sampling_come_and_go(tmp_path):
    directory = tmp_path / "hf"
    for settings, leaves in (
        ({"do_sample": True}, (1.0, 50, 1.0, 0.0)),
        ({"do_sample": True, "temperature": 0.6, "top_k": 0, "min_p": 0.1},)
        + ((0.6, 0, 1.0, 0.1),),
        ({"temperature": 0.6}, (0.0, 0, 1.0, 0.0)),  # not sampled: greedy
    ):
        save(directory, "gpt2", settings)
        model = hf.open_hf(directory).config.model
        write = read_decoding(directory, model=model)
        assert (write.temperature, write.top_k, write.top_p, write.min_p) == leaves
        text = json.dumps(write_settings(write, model=model, values={}))
        (directory / "generation_config.json").write_text(text)
        assert read_decoding(directory, model=model) == write


def test_without_generation_config_the_settings_are_those_of_config_json(tmp_path):
    save(tmp_path, "bart", {})
    (tmp_path / "generation_config.json").unlink()
    file = tmp_path / "config.json"
    more = {"num_beams": 5, "force_bos_token_to_be_generated": True, "bos_token_id": 0}
    file.write_text(json.dumps({**json.loads(file.read_text()), **more}))
    write = hf.open_hf(tmp_path).config.task.write
    assert (write.num_beams, write.force_first) == (5, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"num_beam_groups": 2, "diversity_penalty": 0.5},
            "diversity_penalty = 0.5",
        ),
        ({"sequence_bias": [[[3], 1.5]]}, "sequence_bias = "),
        ({"do_sample": True, "num_beams": 2}, "num_beams = 2"),
        ({"do_sample": True, "typical_p": 0.3}, "typical_p = 0.3"),
        ({"encoder_no_repeat_ngram_size": 3}, "encoder_no_repeat_ngram_size = 3"),
    ],
)
def test_settings_that_are_not_supported_are_refused(
    tmp_path, caplog, settings, message
):
    save(tmp_path / "hf", "gpt2", settings)
    with pytest.raises(UserError, match=rf"hf.generation_config.json: .*{message}"):
        hf.import_hf(tmp_path / "hf", tmp_path / "run")
    assert not (tmp_path / "run").exists()
    hf.import_hf(tmp_path / "hf", tmp_path / "run", ignore_generation=True)
    assert message.split(" = ")[0] in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bad_words_ids": [[67]]}, r"json\.bad_words: holds 67; vocab_size = 67"),
        ({"bad_words_ids": [[]]}, r"json\.bad_words: a sequence is empty"),
        ({"bad_words_ids": [5]}, r"json\.bad_words\[0\] = 5: must be a tuple"),
        ({"suppress_tokens": [-1]}, r"json\.suppress\[0\] = -1: must be"),
        ({"repetition_penalty": 0}, r"json\.repetition_penalty = 0"),
        ({"num_beams": "4"}, r"json\.num_beams = '4': must be an integer"),
        ({"forced_bos_token_id": 1.5}, r"json\.force_first = 1\.5: must be an integer"),
    ],
)
def test_wrong_settings_are_named(tmp_path, settings, message):
    save(tmp_path, "gpt2", {})
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=message):
        hf.open_hf(tmp_path)


def test_a_fine_tuned_model_keeps_the_ids_it_must_not_write(tmp_path):
    save(tmp_path / "hf", "marian", {"bad_words_ids": [[66]], "num_beams": 6})
    source = {"init_from": str(tmp_path / "hf"), "data": {"source": "none"}}
    more = ["data.length=16", "model.max_length=64"]
    for kind in ("seq2seq", "prefix_lm"):
        config = parse(
            source, [*more, f"task.kind={kind}"], defaults=init_from.sections
        )
        assert config.task.write.bad_words == ((66,),)
        assert config.task.write.num_beams in (1, 4)  # a choice of the run
    other = ["tokenizer.kind=bytes", "task.write.bad_words=()"]
    config = parse(source, [*more, *other], defaults=init_from.sections)
    assert config.task == CausalLMConfig()
