"""The task in a config: its kind, and its conflicts with other sections."""

import pytest

from lmjax.config.experiment import parse, to_dict
from lmjax.config.text_task import InfillingConfig, MaskedLMConfig
from lmjax.errors import UserError

BERT = {"kind": "encoder", "num_token_types": 2, "pooler": True, "pair_head": True}
SECTIONS = {
    "tokenizer": {"kind": "bytes"},
    "data": {"source": "python_stdlib", "length": 512},
}
MASKED = SECTIONS | {"model": BERT, "task": {"kind": "masked_lm"}}
SPANS = {
    "tokenizer": {"kind": "bytes"},
    "data": {"source": "python_stdlib", "length": 512, "isolate_documents": False},
    "model": {"kind": "encoder_decoder"},
    "task": {"kind": "span_corruption"},
}


PAIRS = {
    "tokenizer": {"kind": "bytes"},
    "data": {"source": "parallel", "path": "train", "length": 512},
    "model": {"kind": "encoder_decoder"},
    "task": {"kind": "seq2seq"},
}
PROMPTS = PAIRS | {"model": {"kind": "decoder"}, "task": {"kind": "prompted_lm"}}


def test_the_kind_picks_the_class():
    config = parse(MASKED, ["task.mask_rate=0.2"])
    assert config.task == MaskedLMConfig(mask_rate=0.2)
    config = parse(SPANS, ["task.kind=infilling", "task.sentence_permutation=true"])
    assert config.task == InfillingConfig(sentence_permutation=True)
    assert parse(to_dict(config)) == config


def test_a_recurrent_network_generates_samples_of_any_length():
    overrides = ["sample.prompts=('a',)", "sample.max_tokens=2000"]
    parse(SPANS, [*overrides, "model.kind=recurrent_encoder_decoder"])
    with pytest.raises(UserError, match=r"config.sample.max_tokens = 2000"):
        parse(SPANS, overrides)


@pytest.mark.parametrize(
    ("kind", "target_length"),
    [("span_corruption", 114), ("prefix_lm", 512), ("infilling", 512)],
)
def test_the_length_of_targets_follows(kind, target_length):
    assert parse(SPANS, [f"task.kind={kind}"]).data.target_length == target_length
    longer = parse(SPANS, [f"task.kind={kind}", "data.target_length=600"])
    assert longer.data.target_length == 600


def test_decoding_has_room_for_a_target():
    config = parse(PAIRS, ["data.length=1024"])
    assert config.data.target_length == 1024
    assert config.task.write.max_tokens == 1023  # beside the start
    config = parse(PROMPTS)
    assert config.data.target_length == config.task.write.max_tokens == 256
    assert parse(PROMPTS, ["task.write.max_tokens=9"]).task.write.max_tokens == 9
    assert parse(to_dict(config)) == config


@pytest.mark.parametrize(
    ("sections", "overrides", "parts"),
    [
        (MASKED, ["task.kind=mlm"], ["config.task.kind = 'mlm'", "masked_lm"]),
        (MASKED, ["task.mask_rat=1"], ["task.mask_rat", "did you mean 'mask_rate'"]),
        (SECTIONS, ["task.mask_rate=0.1"], ["config.task.mask_rate", "no such field"]),
        (MASKED, ["task.mask_rate=0"], ["config.task.mask_rate = 0.0", "> 0"]),
        (MASKED, ["task.mask_share=0.95"], ["random_share = 0.1", "at most 1 - "]),
        (
            MASKED,
            ["model.kind=decoder", "task.kind=causal_lm"],
            ["config.model.pooler", "no such field"],
        ),
        (
            SECTIONS,
            ["task.kind=masked_lm"],
            ["config.task.kind = 'masked_lm'", "'encoder'", "'decoder'"],
        ),
        (MASKED, ["task.kind=causal_lm"], ["'causal_lm'", "config.model.kind"]),
        (SPANS, ["task.kind=masked_lm"], ["'masked_lm'", "not 'encoder_decoder'"]),
        (
            SPANS,
            ["model.kind=recurrent_encoder_decoder", "task.kind=causal_lm"],
            ["'causal_lm'", "not 'recurrent_encoder_decoder'"],
        ),
        (
            SPANS,
            ["model.kind=recurrent"],
            ["'encoder_decoder' or 'recurrent_encoder_decoder', not 'recurrent'"],
        ),
        (MASKED, ["model.mlm_head=false"], ["config.model.mlm_head = False"]),
        (
            MASKED,
            ["task.sentence_order=true"],
            ["config.data.isolate_documents = True", "task.sentence_order = True"],
        ),
        (
            MASKED,
            ["task.sentence_order=true", "model.pair_head=false"],
            ["config.model.pair_head = False", "task.sentence_order = True"],
        ),
        (
            MASKED,
            ["task.sentence_order=true", "model.num_token_types=1"],
            ["config.model.num_token_types = 1", "at least 2"],
        ),
        (MASKED, ["data.target_length=9"], ["config.data.target_length = 9", "be 0"]),
        (MASKED, ["data.length=4"], ["config.data.length = 4", "at least 8"]),
        (
            MASKED,
            ["sample.prompts=('a',)"],
            ["config.sample.prompts = ('a',)", "empty"],
        ),
        (SPANS, ["data.target_length=9"], ["target_length = 9", "0 or at least 114"]),
        (
            SPANS,
            ["data.target_length=2000"],
            ["target_length = 2000", "config.model.max_length = 1024"],
        ),
        (SPANS, ["data.isolate_documents=true"], ["isolate_documents = True", "False"]),
        (
            PAIRS,
            ["model.kind=encoder"],
            ["'seq2seq'", "'encoder_decoder'", "'encoder'"],
        ),
        (PAIRS, ["data.source=conll"], ["data.source = 'conll'", "parallel, jsonl"]),
        (PAIRS, ["data.target_length=2000"], ["= 2000", "max_length = 1024"]),
        (PAIRS, ["data.target_length=1"], ["target_length = 1", "0 or at least 2"]),
        (PAIRS, ["data.length=2000"], ["config.data.length = 2000", "at most"]),
        (PAIRS, ["task.template=en"], ["task.template = 'en'", "contain {source}"]),
        (PAIRS, ["task.metrics=('blue',)"], ["task.metrics[0]", "mean 'bleu'"]),
        (PAIRS, ["task.write.max_tokens=1024"], ["max_tokens = 1024", "at most 1023"]),
        (
            PAIRS,
            ["task.write.min_tokens=600"],
            ["min_tokens = 600", "max_tokens = 512"],
        ),
        (PAIRS, ["task.write.num_return=5"], ["num_return = 5", "num_beams = 4"]),
        (
            PROMPTS,
            ["model.kind=encoder"],
            ["'prompted_lm'", "'decoder' or 'recurrent'"],
        ),
        (PROMPTS, ["data.target_length=511"], ["target_length = 511", "= 510"]),
        (PROMPTS, ["task.write.max_tokens=769"], ["max_tokens = 769", "at most 768"]),
        (
            PROMPTS,
            ["model.kind=recurrent", "data.order=contiguous"],
            ["data.order = 'contiguous'", "reads examples"],
        ),
    ],
)
def test_an_error_is_one_line(sections, overrides, parts):
    with pytest.raises(UserError) as error:
        parse(sections, overrides)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)
