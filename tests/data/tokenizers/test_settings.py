"""What the files around a tokenizer.json say counts as it does in transformers."""

import json

import pytest

from lmjax.config.tokenizer import TokenizerConfig
from lmjax.data.tokenizers.tokenizer import load_tokenizer, make_tokenizer
from lmjax.errors import UserError

tokenizers = pytest.importorskip("tokenizers", reason="needs lmjax[hf]")
transformers = pytest.importorskip("transformers", reason="reads the same files")

LINES = [
    f"The quick brown fox number {i} says hello world, naïve café" for i in range(200)
]
TEXTS = [
    *("quick brown", " quick  brown ", "The FOX hello, naïve", "x 日本語y", "", "a\nb"),
    *("<|im_start|>user <tool>x", "hi<|im_end|>", "hi <|endoftext|> x", "a <mask> b"),
    *("[MASK] x[SEP]", "fox </s>fox", "<s>fox", "<extra_id_3> x", "A<image>b", "▁a ▁"),
    *(
        "e\u0301 É ｆ",
        "it's 12345 I'm",
        "\ta  \n\n b",
        "<pad><unk> [UNK]",
        "x  </s>  y",
    ),
]


def train_byte_level():
    core = tokenizers.ByteLevelBPETokenizer()
    options = {"vocab_size": 300, "min_frequency": 1, "show_progress": False}
    core.train_from_iterator(LINES, special_tokens=["<|endoftext|>"], **options)
    return json.loads(core.to_str())


def train_wordpiece():
    core = tokenizers.BertWordPieceTokenizer(lowercase=True)
    core.train_from_iterator(
        LINES, vocab_size=200, min_frequency=1, show_progress=False
    )
    return json.loads(core.to_str())


def train_unigram(*special):
    core = tokenizers.Tokenizer(tokenizers.models.Unigram())
    core.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=80,
        special_tokens=[*special] or ["<pad>", "</s>", "<unk>", "<s>", "<mask>"],
        unk_token="<unk>",
        show_progress=False,
    )
    core.train_from_iterator(LINES, trainer)
    return json.loads(core.to_str())


def train_metaspace():
    core = tokenizers.SentencePieceBPETokenizer()
    core.train_from_iterator(
        LINES,
        vocab_size=200,
        show_progress=False,
        special_tokens=["<unk>", "<s>", "</s>"],
    )
    return json.loads(core.to_str())


@pytest.fixture(scope="module")
def files():
    makers = {
        "bytes": train_byte_level,
        "wordpiece": train_wordpiece,
        "unigram": train_unigram,
        "metaspace": train_metaspace,
        "xlmr": lambda: train_unigram("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
    }
    return {name: make() for name, make in makers.items()}


def token(text, *, special=True, **flags):
    names = ("lstrip", "rstrip", "normalized", "single_word")
    return {"content": text, "special": special, **dict.fromkeys(names, False), **flags}


def named(*roles):
    return {f"{role}_token": "<|endoftext|>" for role in roles}


FAST = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
START = {"<|im_start|>": 300}
DECODER = {"300": token("<|im_start|>"), "301": token("<tool>", special=False)}
MAP, ADDED = "special_tokens_map", "added_tokens"
# (tokenizer.json, model_type, tokenizer_config.json, other files).
CASES = {
    "added_tokens_decoder": (
        "bytes",
        "llama",
        {**FAST, "added_tokens_decoder": DECODER},
    ),
    "added_tokens": ("bytes", "llama", FAST, {ADDED: START}),
    "additional": ("bytes", "llama", {**FAST, "additional_special_tokens": [*START]}),
    "extra": ("bytes", "llama", {**FAST, "extra_special_tokens": [*START]}),
    "extra_by_name": (
        *("bytes", "llama"),
        {**FAST, "extra_special_tokens": {"image_token": "<image>"}},
    ),
    "image_token": ("bytes", "llama", {**FAST, "image_token": "<image>"}),
    "new_eos": ("bytes", "llama", {**FAST, "eos_token": "<|im_end|>"}),
    "eos_in_the_map": ("bytes", "llama", {}, {MAP: {"eos_token": "<|im_end|>"}}),
    "map_before_config": ("bytes", "llama", FAST, {MAP: {"eos_token": "<|im_end|>"}}),
    "map_beside_decoder": (
        *("bytes", "llama", {**FAST, "added_tokens_decoder": DECODER}),
        {MAP: {"pad_token": "<|im_end|>"}},
    ),
    "mask_with_space": (
        *("bytes", "llama"),
        {
            **FAST,
            "mask_token": {**token("<mask>", lstrip=True), "__type": "AddedToken"},
        },
    ),
    "split_special": ("bytes", "llama", {**FAST, "split_special_tokens": True}),
    "prefix_space": (
        *("bytes", "gpt2"),
        {**named("bos", "eos", "unk"), "tokenizer_class": "GPT2Tokenizer"}
        | {"add_prefix_space": True},
    ),
    "gpt2": ("bytes", "gpt2", {}),
    "roberta": ("bytes", "roberta", named("cls", "sep", "bos", "eos")),
    "bart": ("bytes", "bart", {"tokenizer_class": "BartTokenizerFast"}),
    "qwen2": ("bytes", "qwen2", FAST),
    "qwen3": ("bytes", "qwen3", {"tokenizer_class": "Qwen2Tokenizer"}),
    "gpt_neox": ("bytes", "gpt_neox", {}),
    "byte_level_llama": (
        *("bytes", "llama", {"tokenizer_class": "LlamaTokenizerFast"}),
        {MAP: {"bos_token": "<|endoftext|>"}},
    ),
    "mistral": ("bytes", "mistral", {"tokenizer_class": "LlamaTokenizer"}),
    "cased": ("wordpiece", "bert", {"do_lower_case": False}),
    "uncased": ("wordpiece", "bert", {"tokenizer_class": "BertTokenizer"}),
    "accents": ("wordpiece", "distilbert", {"strip_accents": False}),
    "chinese": ("wordpiece", "bert", {"tokenize_chinese_chars": False}),
    "generic_bert": (
        *("wordpiece", "bert"),
        {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": False},
    ),
    "t5": ("unigram", "t5", {}),
    "t5_extra_ids": ("unigram", "t5", {"extra_ids": 4}),
    "t5_listed": (
        *("unigram", "t5"),
        {"tokenizer_class": "T5Tokenizer"}
        | {"additional_special_tokens": ["<extra_id_0>", "<extra_id_1>"]},
    ),
    "llama": ("metaspace", "llama", {"tokenizer_class": "LlamaTokenizer"}),
    "legacy": (
        *("metaspace", "llama", {"tokenizer_class": "LlamaTokenizer", "legacy": True}),
    ),
    "no_prefix_space": (
        *("metaspace", "llama"),
        {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False},
    ),
    "gemma": ("metaspace", "gemma", {}),
    "pegasus": ("unigram", "pegasus", {"mask_token": "<mask>"}),
    "xlm_roberta": ("xlmr", "xlm-roberta", {}),
    "mbart": ("xlmr", "mbart", {"src_lang": "de_DE"}),
    "camembert": ("xlmr", "camembert", {"add_prefix_space": False}),
}


def write(directory, core, family, config=(), other=()):
    directory.mkdir(exist_ok=True)
    vocab = len(core["model"]["vocab"]) + 120
    contents = {
        "tokenizer": core,
        "config": {"model_type": family, "vocab_size": vocab},
    }
    contents |= {"tokenizer_config": dict(config), **dict(other)}
    for name, content in contents.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


def open_tokenizer(directory):
    config = TokenizerConfig(kind="tokenizers", path=str(directory))
    return make_tokenizer(config, documents=None, seed=0)


@pytest.mark.parametrize("name", CASES)
def test_settings_count_as_in_transformers(name, files, tmp_path):
    core, family, config, *other = CASES[name]
    directory = write(tmp_path / "hf", files[core], family, config, *other)
    reference = transformers.AutoTokenizer.from_pretrained(directory)
    tok = open_tokenizer(directory)
    assert tok.vocab_size == len(reference)
    tok.save(tmp_path / "saved")
    for read in (tok, load_tokenizer(tmp_path / "saved")):
        for text in TEXTS:
            ids = [*read.prefix_ids, *read.encode(text).tolist(), *read.suffix_ids]
            assert ids == reference(text).input_ids, ascii(text)
    if reference.eos_token_id is not None:
        assert tok.eos_id == reference.eos_token_id


def test_a_token_that_cannot_have_its_id(files, tmp_path):
    for name, content in (
        ("tokenizer_config", {"added_tokens_decoder": {"305": token("<x>")}}),
        ("added_tokens", {"<x>": 7}),
    ):
        other = {name: content}
        directory = write(tmp_path / "hf", files["bytes"], "llama", (), other)
        with pytest.raises(UserError, match=rf"{name}\.json: .*'<x>' has id \d+, but"):
            open_tokenizer(directory)
        (directory / f"{name}.json").unlink()


def test_a_token_for_which_the_model_has_no_room(files, tmp_path, caplog):
    settings = {**FAST, "pad_token": "<new>"}
    directory = write(tmp_path / "hf", files["bytes"], "llama", settings)
    assert open_tokenizer(directory).vocab_size == 301
    config = {"model_type": "llama", "vocab_size": 300}
    (directory / "config.json").write_text(json.dumps(config))
    tok = open_tokenizer(directory)
    assert tok.vocab_size == 300 and tok.pad_id is None
    assert "'<new>' has no id" in caplog.text


def test_a_class_that_cannot_read_the_model(files, tmp_path):
    directory = write(tmp_path / "hf", files["bytes"], "bert")
    with pytest.raises(UserError, match=r"tokenizer\.json: .*'BPE'.*'WordPiece'"):
        open_tokenizer(directory)
