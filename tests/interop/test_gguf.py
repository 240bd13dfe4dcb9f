"""Files of llama.cpp: there and back, every format, and files that cannot be read."""

import json
import shutil

import numpy as np
import pytest

from lmjax.cli.main import main
from lmjax.data.tokenizers.tokenizer import load_tokenizer
from lmjax.errors import UserError
from lmjax.inference.language_model import load
from lmjax.interop.gguf import settings, tensors, vocabulary
from lmjax.interop.gguf.reading import open_gguf
from lmjax.interop.gguf.writing import export_gguf
from lmjax.interop.hf import import_hf, open_hf
from lmjax.interop.registry import find_family, read_config
from tests.interop.test_hf import save_random

gguf = pytest.importorskip("gguf")

TEXTS = ["def f(x):\n    return x1234", "It's naïve \t 你好 🙂", "  two  spaces ", ""]
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 320,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
MODELS = {
    "llama": LLAMA,
    "llama3, with biases": LLAMA | LLAMA3 | {"attention_bias": True, "mlp_bias": True},
    "linear, tied": LLAMA
    | {
        "tie_word_embeddings": True,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    },
    "qwen2": LLAMA | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
    "qwen3": LLAMA | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
}


def save_model(directory, values, *, pre="llama-bpe"):
    """Write a random model with a tokenizer that was trained on a few texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    family = find_family(values, file="config.json")
    config = read_config(family, values, (), file="config.json", max_length=0)
    save_random(directory, values, config, family=family, scale=0.1)
    parts = {
        "tokens": ["<unk>", "<s>", "</s>"],
        "token_type": [3, 3, 3],
        "merges": [],
        "pre": pre,
    }
    named = {"bos_token": "<s>", "eos_token": "</s>"}
    empty = vocabulary._byte_level_parts(parts, named, file="here")
    core = Tokenizer.from_str(json.dumps(empty))
    trainer = trainers.BpeTrainer(
        vocab_size=310,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    assert isinstance(core.model, models.BPE)
    core.train_from_iterator(TEXTS * 4, trainer)
    core.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps(
            named
            | {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "chat_template": "{{ messages[0].content }}",
            }
        )
    )
    return directory


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Return a workdir with a random Llama and its tokenizer."""
    root = tmp_path_factory.mktemp("gguf")
    import_hf(save_model(root / "hf", LLAMA), root / "workdir")
    return root / "workdir"


@pytest.fixture(scope="module")
def file(workdir):
    """Return its file in float32."""
    export_gguf(workdir, workdir.parent / "model.gguf")
    return workdir.parent / "model.gguf"


@pytest.mark.parametrize("name", MODELS)
def test_models_come_back_as_they_were(name, tmp_path):
    pre = "qwen2" if "qwen" in name else "llama-bpe"
    directory = save_model(tmp_path / "hf", MODELS[name], pre=pre)
    import_hf(directory, tmp_path / "a")
    export_gguf(tmp_path / "a", tmp_path / "model.gguf")
    back = open_hf(tmp_path / "model.gguf")
    before = open_hf(directory)
    assert back.config.model == before.config.model
    assert back.files.tensors.keys() == before.files.tensors.keys()
    for tensor in before.files.tensors:
        np.testing.assert_array_equal(
            back.files.read(tensor), before.files.read(tensor), err_msg=tensor
        )
    import_hf(tmp_path / "model.gguf", tmp_path / "b")
    a, b = (load_tokenizer(tmp_path / end / "tokenizer") for end in "ab")
    assert a.special_ids() == b.special_ids()
    for text in TEXTS:
        assert a.encode(text).tolist() == b.encode(text).tolist()
    saved = json.loads((tmp_path / "b/tokenizer/tokenizer_config.json").read_text())
    assert saved["chat_template"] == "{{ messages[0].content }}"


def test_the_commands(workdir, tmp_path, capsys):
    file, imported = tmp_path / "model.gguf", tmp_path / "imported"
    flags = [f"--workdir={workdir}", f"--to={file}", "--dtype=q8_0"]
    assert main(["export", *flags]) == 0
    assert main(["import", f"--from={file}", f"--workdir={imported}"]) == 0
    printed = capsys.readouterr().out
    assert "gpt2 (llama-bpe)" in printed and "LlamaForCausalLM" in printed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["imported", "model.gguf"]
    ids = np.arange(3, 40, dtype=np.int32)[None]
    a, b = load(workdir).logits(ids), load(imported).logits(ids)
    assert 1e-6 < np.abs(np.asarray(a) - b).mean() < 0.03 * np.abs(a).mean()


@pytest.mark.parametrize("dtype", tensors.FORMATS)
def test_formats_are_read_back_by_the_package_gguf(dtype, workdir, tmp_path):
    file = tmp_path / "model.gguf"
    export_gguf(workdir, file, dtype=dtype)
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(file).tensors}
    named = tensors.FORMATS[dtype]
    assert kinds["output_norm.weight"] == "F32"
    assert kinds["blk.1.ffn_down.weight"] == named
    assert kinds["token_embd.weight"] == ("Q8_0" if dtype == "q4_0" else named)
    _, files = open_gguf(file)
    exact = open_hf(workdir.parent / "hf").files
    for tensor in gguf.GGUFReader(file).tensors:
        name = tensors.hf_name(tensor.name)
        given = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        heads = tensors.rotated_heads(name, LLAMA)
        read = files.read(name)
        np.testing.assert_array_equal(
            tensors.interleave(read, heads) if heads else read, given
        )
        error = np.abs(read - exact.read(name)).max()
        bound = {"float32": 0, "float16": 2e-4, "q8_0": 3e-3, "q4_0": 0.06}
        assert error <= bound.get(dtype, 2e-3), name


@pytest.mark.parametrize("kind", ["Q4_1", "Q5_0", "Q4_K", "Q6_K", "IQ4_NL"])
def test_block_formats_that_are_only_read(kind, file, tmp_path):
    kind = gguf.GGMLQuantizationType[kind]
    shape = gguf.quants.quant_shape_to_byte_shape((8, 512), kind)
    stored = np.random.default_rng(0).integers(0, 60, shape, dtype=np.uint8)
    copy = rewrite(file, tmp_path / "copy.gguf", add={"own.weight": (stored, kind)})
    values = open_gguf(copy)[1].read("own.weight", (slice(2, 5),))
    np.testing.assert_array_equal(values, gguf.quants.dequantize(stored, kind)[2:5])


def rewrite(file, target, *, fields=None, add=None, drop=()):
    """Write a file again with other fields (None: without), and tensors."""
    reader = gguf.GGUFReader(file)
    values = {n: f.contents() for n, f in reader.fields.items() if "GGUF." not in n}
    values |= fields or {}
    writer = gguf.GGUFWriter(target, str(values.pop("general.architecture")))
    from lmjax.interop.gguf.writing import _add

    for name, value in values.items():
        if value is not None:
            _add(writer, name, value)
    for tensor in reader.tensors:
        if tensor.name not in drop:
            writer.add_tensor(tensor.name, np.array(tensor.data))
    for name, (array, kind) in (add or {}).items():
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


BAD_FIELDS = {
    "general.architecture": ("llamma", "did you mean 'llama'?"),
    "llama.block_count": (None, "llama.block_count = None: expected a number"),
    "llama.expert_count": (8, "mixtures of experts"),
    "llama.attention.sliding_window": (64, "= 64: is not supported"),
    "llama.rope.dimension_count": (8, "must be the size of a head, 32"),
    "llama.rope.scaling.type": ("yarn", "allowed: none, or linear"),
    "tokenizer.ggml.pre": ("tekken", "allowed: gpt-2, smollm, llama-bpe, qwen2"),
    "tokenizer.ggml.model": ("bert", "allowed: 'gpt2', 'llama'"),
    "tokenizer.ggml.merges": (None, "tokenizer.ggml.merges: is missing"),
    "tokenizer.ggml.token_type": ([1, 1], "lists of other lengths"),
    "split.count": (3, "one of 3 parts; merge them"),
}


@pytest.mark.parametrize("key", BAD_FIELDS)
def test_fields_that_change_the_model_are_refused(key, file, tmp_path):
    value, message = BAD_FIELDS[key]
    copy = rewrite(file, tmp_path / "copy.gguf", fields={key: value})
    with pytest.raises(UserError) as caught:
        open_gguf(copy)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(copy))


def test_damaged_files_are_refused(file, tmp_path):
    whole = file.read_bytes()
    for name, content in {
        "empty": b"",
        "text": b"hello, world" * 99,
        "half the header": whole[:1000],
        "half the values": whole[: len(whole) // 2],
    }.items():
        copy = tmp_path / "copy.gguf"
        copy.write_bytes(content)
        with pytest.raises(UserError, match="not a GGUF file, or damaged"):
            open_gguf(copy)
        assert main(["import", f"--from={copy}", f"--workdir={tmp_path / 'w'}"]) == 2
        assert not (tmp_path / "w").exists(), name
    without = rewrite(file, tmp_path / "other.gguf", drop=["blk.1.attn_k.weight"])
    with pytest.raises(UserError, match=r"model\.layers\.1\.self_attn\.k_proj"):
        import_hf(without, tmp_path / "w")
    factors = (np.ones(16, np.float32) * 3, None)
    odd = rewrite(file, tmp_path / "odd.gguf", add={tensors.ROPE_FACTORS: factors})
    with pytest.raises(UserError, match="not the frequencies of Llama 3"):
        open_gguf(odd)


def test_what_cannot_be_exported_is_told(workdir, tmp_path, capsys):
    target = tmp_path / "model.gguf"

    def error(*args):
        assert main(["export", f"--workdir={workdir}", f"--to={target}", *args]) == 2
        text = capsys.readouterr().err
        assert text.count("\n") == 1
        return text

    assert "(did you mean 'q4_0'?)" in error("--dtype=q4_k")
    other = LLAMA | {"sliding_window": 4, "model_type": "mistral"}
    with pytest.raises(UserError, match=r"model_type = 'mistral': must be one of"):
        settings.from_hf(other)
    with pytest.raises(UserError, match=r"hidden_act = 'gelu': must be 'silu'"):
        settings.from_hf(LLAMA | {"hidden_act": "gelu"})
    with pytest.raises(UserError, match=r"must be LlamaForCausalLM, a language model"):
        settings.from_hf(LLAMA | {"architectures": ["LlamaModel"]})
    scaled = LLAMA | {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}
    with pytest.raises(UserError, match=r"allowed: none, linear, and llama3"):
        settings.from_hf({**LLAMA, **scaled, "rope_theta": 1e4})
    target.write_bytes(b"there")
    assert "exists already" in error()
    assert target.read_bytes() == b"there"


def test_runs_begin_with_an_import(file, tmp_path, capsys):
    config = tmp_path / "x.py"
    config.write_text(f"def get_config():\n    return {{'init_from': '{file}'}}\n")
    flags = [f"--config={config}", f"--workdir={tmp_path / 'w'}"]
    assert main(["train", *flags]) == 2
    assert "import it first: lmjax import --from=" in capsys.readouterr().err
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(file, folder / "model.gguf")
    (folder / "config.json").write_text(json.dumps(LLAMA))
    assert main(["import", f"--from={folder}", f"--workdir={tmp_path / 'w'}"]) == 2
    assert f"--from={folder / 'model.gguf'} reads it" in capsys.readouterr().err


def test_sentencepiece_models_come_back():
    from lmjax.data.tokenizers.hf.special import Template
    from lmjax.data.tokenizers.sentencepiece import SentencePiece, parse_proto

    refused = {
        "drops spaces": {"remove_extra_whitespaces": True},
        "has no pieces for bytes": {"byte_fallback": False},
    }
    for message, options in refused.items():
        saved = SentencePiece(train_sentencepiece(**options), bos=True)
        with pytest.raises(UserError, match=message):
            vocabulary.from_tokenizer(
                saved, Template(), num_tokens=300, chat_template=None
            )
    for options in ({}, {"add_dummy_prefix": False, "control_symbols": ["<|end|>"]}):
        saved = SentencePiece(train_sentencepiece(**options), bos=True)
        template = Template((saved.bos_id,), (), ())
        fields = vocabulary.from_tokenizer(
            saved, template, num_tokens=saved.vocab_size + 2, chat_template=None
        )
        fields["tokenizer.ggml.padding_token_id"] = 2**32 - 1  # none, in older files
        assert fields["tokenizer.ggml.tokens"][-1] == f"[PAD{saved.vocab_size + 1}]"
        files = vocabulary.to_files(fields, file="here")
        proto = parse_proto(files["tokenizer.model"])
        config = json.loads(files["tokenizer_config.json"])
        added = config["added_tokens_decoder"].values()
        names = [token["content"] for token in added]
        assert names == options.get("control_symbols", [])
        again = SentencePiece(proto.SerializeToString(), bos=True)
        for text in TEXTS:
            assert again.encode(text).tolist() == saved.encode(text).tolist()
        assert (again.bos_id, again.eos_id) == (saved.bos_id, saved.eos_id)
        assert_same_from_json(saved)


def assert_same_from_json(saved):
    """Check a model that was written as a tokenizer.json, with merges for scores."""
    from lmjax.data.tokenizers.hf.from_sentencepiece import convert
    from lmjax.data.tokenizers.sentencepiece import SentencePiece

    parsed, _ = convert(saved.model, lossless=False)
    own = vocabulary._from_json(parsed | {"added_tokens": []})
    fields = {f"tokenizer.ggml.{key}": value for key, value in own.items()}
    files = vocabulary.to_files(fields, file="here")
    again = SentencePiece(files["tokenizer.model"], bos=False)
    for text in TEXTS:
        assert again.encode(text).tolist() == saved.encode(text).tolist()


def train_sentencepiece(**options):
    """Return a model of BPE that spells unknown characters by bytes."""
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20),
        model_writer=model,
        model_type="bpe",
        normalization_rule_name="identity",
        minloglevel=3,
        **{
            "vocab_size": 300 if options.get("byte_fallback", True) else 60,
            "byte_fallback": True,
            "remove_extra_whitespaces": False,
            **options,
        },
    )
    return model.getvalue()


def test_named_ways_to_split_words_are_recognised():
    for pre in vocabulary._PRE:
        parts = {"tokens": ["a"], "token_type": [1], "merges": [], "pre": pre}
        parsed = vocabulary._byte_level_parts(parts, {}, file="here")
        assert vocabulary._find_pre(parsed) == pre
    parsed["normalizer"] = {"type": "Lowercase"}
    with pytest.raises(UserError, match="splits words in another way than"):
        vocabulary._find_pre(parsed)


@pytest.mark.slow
def test_parameters_are_those_of_transformers(file):
    """transformers reads the same file, with its own names and orders."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    reference = transformers.LlamaForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    ids = np.arange(3, 40, dtype=np.int32)[None]
    with torch.no_grad():
        expected = reference(torch.tensor(ids, dtype=torch.long)).logits.numpy()
    import_hf(file, file.parent / "imported")
    lm = load(file.parent / "imported")
    np.testing.assert_allclose(lm.logits(ids), expected, rtol=2e-5, atol=2e-5)
