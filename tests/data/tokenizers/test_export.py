"""Exported tokenizers give transformers the same ids, and can be imported again."""

import io
import json
import unicodedata

import pytest
import sentencepiece

from lmjax.config.tokenizer import TokenizerConfig
from lmjax.data.tokenizers.hf.export import choose_pad_id, export
from lmjax.data.tokenizers.hf.special import Template
from lmjax.data.tokenizers.tokenizer import load_tokenizer, make_tokenizer

tokenizers = pytest.importorskip("tokenizers", reason="needs lmjax[hf]")
transformers = pytest.importorskip("transformers", reason="reads what is exported")

FAMILIES = [
    "gpt2",
    "llama",
    "mistral",
    "qwen3",
    "gemma",
    "gemma2",
    "bert",
    "roberta",
    "bart",
    "marian",
    "t5",
    "mt5",
    "xlm-roberta",
    "gpt_neox",
    "distilbert",
    "modernbert",
    "phi3",
    "olmo2",
    "mbart",
    "pegasus",
]
# Of these AutoTokenizer believes no settings.
FORCED = ("qwen2",)
LINES = [
    f"the quick brown fox number {i} jumps: déjà vu, 日本語。 (x) = {i * i}\n"
    for i in range(200)
]
SPECIAL = ["</s>", "<s>", "<unk>", "<mask>", "<pad>", "[MASK]", "[SEP]", "<0x41>"]
SPECIAL += ["<extra_id_0>", "<|endoftext|>", "<unknown>"]
CORNERS = [
    *SPECIAL,
    *(f"the{token}fox {token} {token}" for token in SPECIAL),
    *("a" * 150, "aa" * 9 + "b", "ab" * 40, "na" * 30 + "n", "." * 17, "=" * 33),
    *(" " * 37, "\n" * 9, "\t" * 5, " a", "a ", "  a  b  ", "a\r\nb", " \n ", "\ta"),
    *(
        "\u2581",
        "a\u2581b",
        "\u2581\u2581",
        "a \u2581 b",
        " \u2581",
        "\u2581a",
        "a\u2581",
    ),
    *("a\u00a0b", "\u3000a", "a\u200bb", "\ufeffa", "\u00ad", "\u0301", " \u0301"),
    *("e\u0301", "cafe\u0301 nai\u0308ve", "a\u0301\u0302\u0303", "\u1112\u1161\u11ab"),
    *("\U0001f468\u200d\U0001f469", "\U0001f1e9\U0001f1ea", "\u2603\ufe0f", "한국어"),
    *("中文，标点。（全角）", "日本語。「テスト」、！", "العربية", "ไทย", "हिन्दी"),
    *("1", "12345678901234567890", "3,000.50", "-1e-5", "don't", "THE Fox"),
    *("\x00", "a\x00b", "\x1b[0m", "\x7f", "#include <x.h>", "if a:\n\tb = 1\n"),
]
SPECIAL_IDS = {"mask": True, "num_sentinels": 2}
CONFIGS = {
    "bytes": {"kind": "bytes", **SPECIAL_IDS},
    "bytes_without_bos": {"kind": "bytes", "bos": False},
    "bpe": {"vocab_size": 400, **SPECIAL_IDS},
    "bpe_lossy": {"vocab_size": 90, "lossless": False, "bos": False},
    "unigram": {"algorithm": "unigram", "vocab_size": 345, **SPECIAL_IDS},
    "unigram_lossy": {"algorithm": "unigram", "vocab_size": 75, "lossless": False},
    "char": {"algorithm": "char", "vocab_size": 302},
    "char_lossy": {"algorithm": "char", "vocab_size": 45, "lossless": False},
    "word": {"algorithm": "word", "vocab_size": 50, "lossless": False},
    "words": {"kind": "words", "vocab_size": 60, **SPECIAL_IDS},
    "words_lower": {"kind": "words", "vocab_size": 60, "lowercase": True}
    | {"split": "white_space", "stop_words": "english"},
}


@pytest.fixture(scope="module")
def trained(texts):
    """Return a tokenizer of each kind."""
    make = lambda **c: make_tokenizer(
        TokenizerConfig(**c), documents=[texts(LINES)], seed=0
    )
    return {name: make(**config) for name, config in CONFIGS.items()}


def template_of(tok):
    return Template(tok.prefix_ids, tok.suffix_ids, tok.pair_ids)


def write(directory, files, **config):
    directory.mkdir(exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def export_to(directory, tok, family, *, template=None, token_types=False):
    config = {"model_type": family, "vocab_size": tok.vocab_size}
    exported = export(
        tok,
        template=template or template_of(tok),
        model_config=config,
        token_types=token_types,
    )
    return write(directory, exported.files, **config)


def around(tok, *parts):
    """Return the ids of a text, or of a pair."""
    inner = [*parts[0], *(id_ for p in parts[1:] for id_ in (*tok.pair_ids, *p))]
    return [*tok.prefix_ids, *inner, *tok.suffix_ids]


def check_same(tok, reference, texts):
    for text in texts:
        ids = tok.encode(text).tolist()
        assert reference(text).input_ids == around(tok, ids), ascii(text)
    one, two = (tok.encode(text).tolist() for text in ("the fox", "x = 1"))
    assert reference("the fox", "x = 1").input_ids == around(tok, one, two)


def open_again(directory):
    config = TokenizerConfig(kind="tokenizers", path=str(directory))
    return make_tokenizer(config, documents=None, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONFIGS)
def test_transformers_reads_the_same_ids(kind, trained, tmp_path, odd_texts):
    tok = trained[kind]
    directory = export_to(tmp_path / "hf", tok, "llama")
    texts = odd_texts + CORNERS
    if "lossy" in kind:  # what differs is announced
        texts = CORNERS + [unicodedata.normalize("NFC", text) for text in odd_texts]
    check_same(tok, transformers.AutoTokenizer.from_pretrained(directory), texts)
    again = open_again(directory)
    for text in texts:
        assert again.encode(text).tolist() == tok.encode(text).tolist(), ascii(text)
    for name in ("bos_id", "eos_id", "mask_id", "sentinel_ids", "vocab_size"):
        assert getattr(again, name) == getattr(tok, name), name
    assert template_of(again) == template_of(tok)
    assert again.pad_id == choose_pad_id(tok) is not None
    if "lossy" not in kind and kind[:4] != "word":
        for text in CORNERS:
            assert again.decode(again.encode(text)) == text
    again.save(tmp_path / "saved")
    loaded = load_tokenizer(tmp_path / "saved")
    assert loaded.encode("</s>").tolist() == tok.encode("</s>").tolist()


@pytest.mark.parametrize("kind", ["bytes", "bpe", "unigram_lossy", "words"])
def test_every_family_holds_every_tokenizer(kind, trained, tmp_path):
    tok = trained[kind]
    for family in FAMILIES:
        directory = export_to(tmp_path / family, tok, family)
        reference = transformers.AutoTokenizer.from_pretrained(directory)
        check_same(tok, reference, CORNERS)
        padded = reference(["a", "the fox = 1"], padding=True)
        assert max(map(max, padded.input_ids)) < tok.vocab_size
        again = open_again(directory)
        twice = export_to(tmp_path / f"{family}-2", again, family)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            assert (twice / file).read_bytes() == (directory / file).read_bytes()


def test_families_that_hold_only_their_own_tokenizer(trained, tmp_path):
    for family in FORCED:
        directory = export_to(tmp_path / family, trained["bpe"], family)
        generic = transformers.PreTrainedTokenizerFast.from_pretrained(directory)
        check_same(trained["bpe"], generic, CORNERS)


def test_ids_around_a_text_are_those_of_the_task(trained, tmp_path):
    tok = trained["bpe"]
    template = Template((tok.bos_id,), (), (tok.bos_id,))
    directory = export_to(tmp_path / "lm", tok, "llama", template=template)
    reference = transformers.AutoTokenizer.from_pretrained(directory)
    assert reference("fox").input_ids == [tok.bos_id, *tok.encode("fox").tolist()]
    assert "token_type_ids" not in reference("fox")
    directory = export_to(tmp_path / "types", tok, "bert", token_types=True)
    reference = transformers.AutoTokenizer.from_pretrained(directory)
    types = reference("fox", "a").token_type_ids
    first = 2 + len(tok.encode("fox"))
    assert types == [0] * first + [1] * (len(types) - first)


def test_scores_of_trained_pieces_add_up_exactly(trained):
    tok = trained["unigram"]
    scores = [tok._processor.get_score(i) for i in range(tok.vocab_size)]
    assert all((64 * score).is_integer() for score in scores)


def write_wordpiece(directory, _):
    pieces = "[PAD] [UNK] [CLS] [SEP] [MASK] the fox ##es x = 1 ( ) a ##b < s / > ["
    write(directory, {"vocab.txt": "\n".join(pieces.split()).encode()})


def write_byte_level(directory, _):
    core = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    core.train_from_iterator(
        LINES, vocab_size=320, special_tokens=special, show_progress=False
    )
    core.save_model(str(directory))
    write(directory, {}, model_type="roberta")


def write_t5(directory, model):
    write(directory, {"spiece.model": model}, model_type="t5")


def write_xlmr(directory, model):
    write(directory, {"sentencepiece.bpe.model": model}, model_type="xlm-roberta")


def write_llama(directory, model):
    settings = b'{"tokenizer_class": "LlamaTokenizer", "add_bos_token": true}'
    files = {"tokenizer.model": model, "tokenizer_config.json": settings}
    write(directory, files, model_type="llama")


def train_model(**options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=model,
        vocab_size=100,
        hard_vocab_limit=False,
        minloglevel=3,
        **options,
    )
    return model.getvalue()


WRITERS = [write_wordpiece, write_byte_level, write_t5, write_xlmr, write_llama]


@pytest.mark.parametrize("write_own", WRITERS)
def test_imported_tokenizers_fit_any_family(write_own, tmp_path):
    (tmp_path / "own").mkdir()
    t5 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    write_own(tmp_path / "own", train_model(**(t5 if write_own is write_t5 else {})))
    tok = open_again(tmp_path / "own")
    for bos in (True, False):
        config = TokenizerConfig(kind="tokenizers", path=str(tmp_path / "own"), bos=bos)
        tok = make_tokenizer(config, documents=None, seed=0)
        for family in ("gpt2", "llama", "bert", "t5", "bart", "xlm-roberta"):
            directory = export_to(tmp_path / f"{family}{bos}", tok, family)
            reference = transformers.AutoTokenizer.from_pretrained(directory)
            texts = [t for t in CORNERS if "\u0301\u0302" not in t]
            check_same(tok, reference, texts)
            again = open_again(directory)
            for text in texts:
                assert again.encode(text).tolist() == tok.encode(text).tolist()
            assert template_of(again) == template_of(tok)


def test_original_files_are_kept_where_they_say_the_same(tmp_path):
    (tmp_path / "own").mkdir()
    write_wordpiece(tmp_path / "own", None)
    tok = open_again(tmp_path / "own")
    vocab = (tmp_path / "own" / "vocab.txt").read_bytes()
    for family in ("bert", "distilbert"):
        kept = export_to(tmp_path / family, tok, family)
        assert sorted(path.name for path in kept.iterdir()) == [
            "config.json",
            "vocab.txt",
        ]
        assert (kept / "vocab.txt").read_bytes() == vocab
    other = export_to(tmp_path / "other", tok, "roberta")
    assert (other / "tokenizer.json").exists()
    assert not (other / "vocab.txt").exists()
