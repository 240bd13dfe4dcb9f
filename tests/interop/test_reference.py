"""Gradients, packed and long texts, generation and real weights against transformers.

All in float32, on PyTorch's CPU.
"""

import copy
from pathlib import Path

import jax
import numpy as np
import pytest
from references import save_reference

import lmjax
from lmjax.config.data import FieldsConfig
from lmjax.config.decoding import DecodingConfig
from lmjax.data.features.seq2seq import Seq2SeqFeatures
from lmjax.data.tokenizers.plain import Ids
from lmjax.interop import hf, registry
from lmjax.interop.transfer import export_tensors

torch = pytest.importorskip("torch", reason="the reference runs on torch")
transformers = pytest.importorskip("transformers", reason="is the reference")

modeling_bart = transformers.models.bart.modeling_bart
TOLERANCE = 2e-5
# Long enough for 64 new tokens; one id of 67 ends a text.
LONG = {
    "gpt2": {"n_positions": 128, "eos_token_id": 2},
    # transformers' cache assumes a decoder as deep as the encoder.
    "t5": {"num_decoder_layers": 2, "eos_token_id": 2},
    "t5_v11": {"num_decoder_layers": 2, "eos_token_id": 2},
    **{
        name: {"max_position_embeddings": 128, "eos_token_id": 2}
        for name in ("llama_rope", "gemma2", "qwen2", "bart", "marian")
    },
    "mt5": {"num_decoder_layers": 2, "eos_token_id": 2},
    "mbart": {"max_position_embeddings": 128, "eos_token_id": 2}
    | {"decoder_start_token_id": 2},
    "pegasus": {"max_position_embeddings": 128, "eos_token_id": 2},
}
# Greedy search alone: each crosses a window or a kind of layer.
GREEDY = {
    **{
        name: {"max_position_embeddings": 128, "eos_token_id": 2}
        for name in ("llama_yarn", "qwen2_windows", "olmo2", "gemma3_scaled")
    },
    "gpt_neox": {"max_position_embeddings": 128, "eos_token_id": 2},
    "phi3_long": {"max_position_embeddings": 128, "eos_token_id": 2}
    | {"original_max_position_embeddings": 3},
}
MINILM = Path.home() / ".cache" / "lmjax-data" / "minilm"


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Return a model of transformers, and the one imported from its files."""
    models = {}

    def make(name, **settings):
        key = (name, *sorted(settings.items()))
        if key not in models:
            directory = tmp_path_factory.mktemp(name)
            reference = save_reference(name, directory / "hf", **settings)
            hf.import_hf(directory / "hf", directory / "workdir")
            models[key] = reference, lmjax.load(directory / "workdir")
        return models[key]

    return make


def random_ids(*shape, seed=0):
    return np.random.default_rng(seed).integers(3, 66, shape)


def to_torch(array):
    return torch.tensor(np.asarray(array), dtype=torch.long)


@pytest.mark.parametrize("name", ["gpt2", "llama_rope", "gemma2", "mistral"])
def test_packed_texts_are_independent(both, name):
    reference, lm = both(name)
    tokens, lengths = random_ids(1, 30), (13, 6, 11)
    segments = np.repeat([1, 2, 3], lengths)[None]
    packed = np.asarray(lm.logits(tokens, segments=segments))[0]
    start = 0
    for length in lengths:
        here = slice(start, start + length)
        with torch.no_grad():
            alone = reference(input_ids=to_torch(tokens[:, here])).logits[0]
        np.testing.assert_allclose(packed[here], alone, rtol=0, atol=2e-5)
        start += length


@pytest.mark.parametrize("name", ["gpt2", "llama_rope", "qwen3", "bert", "bart"])
def test_logits_at_the_maximum_length(both, name):
    reference, lm = both(name)
    tokens = random_ids(2, lm.config.model.max_length)
    more = {"source": random_ids(2, 64, seed=1)} if name == "bart" else {}
    logits = lm.logits(tokens, **more)
    inputs = {"input_ids": to_torch(tokens)}
    if name == "bart":
        inputs = {
            "input_ids": to_torch(more["source"]),
            "decoder_input_ids": to_torch(tokens),
        }
    with torch.no_grad():
        expected = reference(**inputs).logits
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5)


def test_t5_reads_sources_beyond_its_distance_buckets(both):
    reference, lm = both("t5")
    source, tokens = random_ids(2, 150), random_ids(2, 40, seed=1)
    logits = lm.logits(tokens, source=source)
    with torch.no_grad():
        inputs = {"input_ids": to_torch(source), "decoder_input_ids": to_torch(tokens)}
        expected = reference(**inputs).logits
    np.testing.assert_allclose(logits, expected, rtol=0, atol=3e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("gpt2", "llama_rope", "phi3", "gemma3_scaled", "gpt_neox", "bert", "t5"),
        "mbart",
    ],
)
def test_gradients(both, name):
    """Compare the gradients of the mean negative log-likelihood of all parameters."""
    reference, lm = both(name)
    tokens, targets = random_ids(3, 12), random_ids(3, 12, seed=1)
    has_source = lm.config.model.is_encoder_decoder
    source = {"source": random_ids(3, 9, seed=2)} if has_source else {}
    batch = lm._batch(tokens, source.get("source"), None, None, None)

    def loss(params):
        logits = lm.model.apply(params, batch)
        nll = -jax.nn.log_softmax(logits)[np.arange(3)[:, None], np.arange(12), targets]
        return nll.mean()

    grads = jax.jit(jax.grad(loss))(lm.params)
    reference.zero_grad()
    inputs = {"input_ids": to_torch(tokens)}
    if source:
        inputs = {
            "input_ids": to_torch(source["source"]),
            "decoder_input_ids": to_torch(tokens),
        }
    logits = reference(**inputs).logits
    torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), to_torch(targets).flatten()
    ).backward()
    family, _ = registry.choose_family(lm.model)
    table = family.table(lm.model.config)
    specs, arrays = export_tensors(grads, table, dtype=np.float32)
    found = dict(zip(specs, arrays, strict=True))
    if "embed_out.weight" in found:  # as in the files
        found["lm_head.weight"] = found["embed_out.weight"]
    parameters = dict(reference.named_parameters())
    expected = {k: p.grad.numpy() for k, p in parameters.items() if p.grad is not None}
    assert expected.keys() <= found.keys()
    largest = max(np.abs(g).max() for g in expected.values())
    for key, grad in expected.items():
        # Relative to the tensor; if it is 0 but for rounding, to the model's largest.
        scale = max(np.abs(grad).max(), 1e-4 * largest)
        assert np.abs(found[key] - grad).max() < 1e-4 * scale, key


def generate_greedily(reference, start, **more):
    """Return the tokens of transformers' greedy search, up to the end of the text."""
    with torch.no_grad():
        found = reference.generate(
            max_new_tokens=64, do_sample=False, num_beams=1, **more
        )
    row = found[0, start:].tolist()
    return row[: row.index(2)] if 2 in row else row


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LONG, *GREEDY])
def test_greedy_search(both, name):
    reference, lm = both(name, **{**LONG, **GREEDY}[name])
    prompts = [random_ids(n, seed=n).tolist() for n in (9, 4, 7, 12)]
    texts = [" ".join(map(str, prompt)) for prompt in prompts]
    written = lm.generate(texts, max_tokens=64, temperature=0.0)
    found = [[int(word) for word in text.split()] for text in written]
    if lm.config.model.kind == "encoder_decoder":
        starts = [1] * len(prompts)
    else:
        starts = [*map(len, prompts)]
    expected = [
        generate_greedily(reference, start, input_ids=to_torch([prompt]))
        for start, prompt in zip(starts, prompts, strict=True)
    ]
    assert found == expected
    assert max(map(len, found)) >= 63  # the last one may be forced to be the end


def test_targets_of_bart_have_bos_and_eos(both):
    """Its tokenizer puts <s> and </s> around the summaries that it is trained on."""
    reference, lm = both("bart", **LONG["bart"])
    model = reference.config
    assert lm.config.model.decoder_prefix_ids == (model.decoder_start_token_id, 0)
    features = Seq2SeqFeatures(
        fields=FieldsConfig(),
        metrics=(),
        template="{source}",
        length=16,
        target_length=16,
        decoder_prefix_ids=lm.config.model.decoder_prefix_ids,
    )
    reading = features.parse({"source": "5 6", "target": "7 8 9"})
    ((row,),) = features.encode([reading], Ids(67, eos_id=2))
    batch = features.batch([row.columns], length=8)
    real = batch["weights"][0] > 0
    assert batch["targets"][0, real].tolist() == [model.bos_token_id, 7, 8, 9, 2]
    expected = modeling_bart.shift_tokens_right(
        to_torch(batch["targets"][:, real]),
        model.pad_token_id,
        model.decoder_start_token_id,
    )
    np.testing.assert_array_equal(batch["tokens"][:, real], expected)
    values = registry.choose_family(lm.model)[1]
    assert values["forced_bos_token_id"] == model.bos_token_id


# Many ids end a text, so that hypotheses of all lengths compete.
STOPS = (4, *range(2, 67, 5))
# Settings of beam search, by lmjax's names.
CONSTRAINED = {"min_tokens": 4, "no_repeat_ngram": 2, "length_penalty": 0.6}
SEARCHES = [
    {},
    {"length_penalty": 0.0},
    {"length_penalty": 2.0, "early_finish": True},
    {"length_penalty": -1.0, "no_repeat_ngram": 3},
]
CASES = [(name, CONSTRAINED) for name in LONG]
CASES += [(name, options) for name in ("gpt2", "bart") for options in SEARCHES]
HF_NAMES = {
    "early_finish": "early_stopping",
    "min_tokens": "min_new_tokens",
    "no_repeat_ngram": "no_repeat_ngram_size",
}


def search_beams(reference, prompts, start, options, **more):
    """Return the four best hypotheses of transformers for each prompt, and scores."""
    before = copy.deepcopy(reference.generation_config)
    reference.generation_config.forced_eos_token_id = None
    settings = {HF_NAMES.get(k, k): v for k, v in options.items()}
    with torch.no_grad():
        found = reference.generate(
            to_torch(prompts),
            max_new_tokens=16,
            do_sample=False,
            num_beams=4,
            num_return_sequences=4,
            eos_token_id=list(STOPS),
            output_scores=True,
            return_dict_in_generate=True,
            **settings,
            **more,
        )
    reference.generation_config = before
    rows = np.append(found.sequences[:, start:], np.full((len(prompts) * 4, 1), 2), 1)
    ends = np.isin(rows, STOPS).argmax(axis=1)
    texts = [row[:end].tolist() for row, end in zip(rows, ends, strict=True)]
    return texts, found.sequences_scores.numpy()


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_beam_search(both, name, options):
    reference, lm = both(name, **LONG[name])
    prompts, more = random_ids(3, 8, seed=1).tolist(), {}
    read, start = {"prompts": prompts}, 8
    if lm.config.model.kind == "encoder_decoder":
        start_id, start = lm.config.model.start_id, 1
        more = {"decoder_start_token_id": start_id}
        read = {"prompts": [[start_id]] * 3, "sources": prompts}
    found = lm._searcher.search(
        lm.params,
        **read,
        config=DecodingConfig(num_return=4, max_tokens=16, force_first=-2, **options),
        stop_ids=STOPS,
    )
    texts, scores = search_beams(reference, prompts, start, options, **more)
    every = [h for row in found for h in row]
    assert [h.tokens for h in every] == texts
    assert min(map(len, texts)) < 16
    np.testing.assert_allclose([h.score for h in every], scores, rtol=1e-5)


SENTENCES = [
    *("A plain sentence.", "", " ", "UPPER lower MiXeD", "a" * 400, "word " * 300),
    *("naïve café Ångström", "e\u0301 combined", "ﬁ ligature ½ ² Ⅷ", "İstanbul ß ſ"),
    *(
        "漢字かな交じり文",
        "한국어 문장",
        "العربية",
        "עברית",
        "ไทย",
        "हिन्दी",
        "Ελληνικά",
    ),
    *(
        "emoji 👩\u200d👩\u200d👧 🇩🇪 👍🏽",
        "zero\u200bwidth",
        "\ufeffbom",
        "tab\tnew\nline\r",
    ),
    *("\x00nul\x07bell", "\ufffd replaced", "soft\u00adhyphen", "nbsp\u00a0here"),
    *("“quotes” ‘and’ — dashes…", "$1,234.56 €5 ¥7", "a@b.c http://x.y/z?q=1#f"),
    *("[CLS] [SEP] [MASK] [PAD]", "##ing ##s", "C++ C# .NET", "x=y+z*(a-b)/c"),
    *(
        f"Number {n} of {n * n}, {chr(0x1F600 + n)} and {chr(0x3B1 + n)}."
        for n in range(20)
    ),
]


@pytest.mark.skipif(not MINILM.exists(), reason=f"no real weights in {MINILM}")
def test_embeddings_of_minilm(tmp_path):
    reference = transformers.AutoModel.from_pretrained(MINILM).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(MINILM)
    hf.import_hf(MINILM, tmp_path / "workdir")
    lm = lmjax.load(tmp_path / "workdir")
    assert len(SENTENCES) >= 50
    rows = lm.encode_rows(SENTENCES, max_length=96)
    segments = np.arange(96) < np.array([len(row) for row in rows])[:, None]
    tokens = np.stack([np.pad(row, (0, 96 - len(row))) for row in rows])
    hidden = np.asarray(lm.hidden(tokens, segments=segments.astype(int)))
    means = lm.embed(SENTENCES, max_length=96)
    worst = 0.0
    for i, sentence in enumerate(SENTENCES):
        inputs = tokenizer(
            sentence, truncation=True, max_length=96, return_tensors="pt"
        )
        assert rows[i] == inputs["input_ids"][0].tolist(), sentence
        with torch.no_grad():
            expected = reference(**inputs).last_hidden_state[0].numpy()
        worst = max(worst, np.abs(hidden[i, : len(rows[i])] - expected).max())
        worst = max(worst, np.abs(means[i] - expected.mean(axis=0)).max())
    print(f"minilm: {worst:.1e}")
    assert worst < TOLERANCE
