"""A text after a context has the ids that it has within the whole."""

import io

import pytest
import sentencepiece

from lmjax.config.tokenizer import TokenizerConfig
from lmjax.data.tokenizers import tokenizer as tokenizers
from lmjax.data.tokenizers import words
from lmjax.data.tokenizers.continuation import encode_continuations
from lmjax.data.tokenizers.plain import Bytes, Ids
from lmjax.data.tokenizers.sentencepiece import SentencePiece
from lmjax.generate.prompts import decode_continuation

TEXT = [
    f"The quick brown fox jumps over the lazy dog number {i}; import sys {i * 7}"
    for i in range(100)
]
PAIRS = [
    ("The quick", " brown fox"),
    ("The quick\n", "brown"),
    ("number 1", "23"),
    ("The quick ", "brown"),
    ("import ", "sys"),
    ("", "The fox"),
    ("The fox", ""),
    ("The qui", "ck brown"),
]


def train(**options):
    """Return a SentencePiece model that puts a space before a text."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT),
        model_writer=model,
        minloglevel=3,
        hard_vocab_limit=False,
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        split_digits=True,
        **options,
    )
    return SentencePiece(model.getvalue(), bos=True)


def prepending():
    """Return a tokenizer.json that puts a space before a text, as Llama's does."""
    library = pytest.importorskip("tokenizers")
    core = library.Tokenizer(library.models.BPE(unk_token="<unk>", fuse_unk=True))
    core.normalizer = library.normalizers.Sequence(
        [library.normalizers.Prepend("▁"), library.normalizers.Replace(" ", "▁")]
    )
    decoders = library.decoders
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = library.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "</s>"], show_progress=False
    )
    core.train_from_iterator(TEXT, trainer)
    return core


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    made = {
        "bytes": Bytes(bos=True),
        "dummy prefix": train(remove_extra_whitespaces=False),
        "no prefix": train(remove_extra_whitespaces=False, add_dummy_prefix=False),
    }
    path = tmp_path_factory.mktemp("prepend") / "tokenizer.json"
    prepending().save(str(path))
    config = TokenizerConfig(kind="tokenizers", path=str(path))
    made["prepend"] = tokenizers.make_tokenizer(config, documents=None, seed=0)
    return made


@pytest.mark.parametrize("kind", ["bytes", "dummy prefix", "no prefix", "prepend"])
def test_a_text_has_the_ids_that_it_has_within_the_whole(kinds, kind):
    tokenizer = kinds[kind]
    for keep_context in (False, True):
        found = encode_continuations(tokenizer, PAIRS, keep_context=keep_context)
        for (context, text), (before, after) in zip(PAIRS, found, strict=True):
            whole = tokenizer.encode(context + text).tolist()
            alone = tokenizer.encode(context).tolist() if context else []
            both = [*before, *after]
            if not keep_context or whole[: len(alone)] == alone:
                assert both == whole, (context, text)
            if keep_context or whole[: len(alone)] == alone:
                assert before.tolist() == alone, (context, text)
            assert tokenizer.decode(both) == tokenizer.decode(whole), (context, text)


def test_a_piece_that_crosses_the_seam_belongs_to_the_text(kinds):
    tokenizer = kinds["dummy prefix"]
    ((before, after),) = encode_continuations(
        tokenizer, [("import ", "sys")], keep_context=False
    )
    assert [tokenizer.id_to_piece(i) for i in (*before, *after)] == ["▁import", "▁sys"]
    assert len(after) == 1
    ((before, after),) = encode_continuations(
        tokenizer, [("import ", "sys")], keep_context=True
    )
    assert tokenizer.id_to_piece(before[-1]) == "▁"
    assert tokenizer.id_to_piece(after[0]) != "▁sys"


def test_a_continuation_keeps_the_space_at_its_start(kinds):
    for tokenizer in kinds.values():
        ((before, after),) = encode_continuations(
            tokenizer, [("The quick", " brown")], keep_context=True
        )
        found = decode_continuation(tokenizer, before.tolist(), after.tolist())
        assert found == " brown"


def test_whole_words_cross_no_seam():
    found = encode_continuations(Ids(99), [("5 6", "7 8")], keep_context=False)
    assert [ids.tolist() for ids in found[0]] == [[5, 6], [7, 8]]
    pytest.importorskip("tokenizers")
    config = TokenizerConfig(kind="words", vocab_size=50)
    tokenizer = words.train(config, [["the cat sat on the mat"]], recipe="")
    pairs = [("the cat", "sat"), ("the cat", " sat")]
    for before, after in encode_continuations(tokenizer, pairs, keep_context=False):
        assert before.tolist() == tokenizer.encode("the cat").tolist()
        assert after.tolist() == tokenizer.encode("sat").tolist()
