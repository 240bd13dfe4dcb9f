"""The generator: greedy is the arg max of the whole model; a seed fixes a sample."""

import jax
import numpy as np
import pytest

from lmjax.config.experiment import MeshConfig
from lmjax.errors import UserError
from lmjax.generate.decode import Generator
from lmjax.generate.sampling import Sampling
from lmjax.parallel import sharding

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5]]
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def generator(tiny):
    return Generator(tiny("llama"))


@pytest.fixture(scope="module")
def params(tiny, random_params):
    return random_params(tiny("llama"))


@pytest.fixture(scope="module")
def generate(generator, params):
    def run(prompts=PROMPTS, *, max_tokens=6, sampling=GREEDY, stop_ids=(), seed=0):
        return generator.generate(
            params,
            prompts,
            max_tokens=max_tokens,
            sampling=sampling,
            stop_ids=stop_ids,
            seed=seed,
        )

    return run


@pytest.fixture(scope="module")
def greedy(generate):
    return generate()


def test_greedy_takes_the_most_likely_token_each_time(
    tiny, params, apply, one_text, greedy
):
    """The whole text is read anew for each token, padded to one shape."""
    model = tiny("llama")
    for prompt, row in zip(PROMPTS, greedy, strict=True):
        text = [*prompt, *row]
        padded = np.zeros((1, 12), np.int32)
        padded[0, : len(text)] = text
        logits = np.asarray(apply(model)(params, one_text(padded)))[0]
        expected = logits[len(prompt) - 1 : len(text) - 1].argmax(axis=-1)
        assert row == expected.tolist()


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}])
def test_the_narrowest_sampling_is_greedy(generate, greedy, options):
    assert generate(sampling=Sampling(**options)) == greedy


def test_a_seed_fixes_the_sample(generate):
    sampling = Sampling(temperature=1.5)
    first = generate(sampling=sampling, seed=7)
    assert generate(sampling=sampling, seed=7) == first
    assert generate(sampling=sampling, seed=8) != first


@pytest.mark.slow
def test_rows_do_not_depend_on_their_neighbours(generate):
    sampling = Sampling(temperature=1.5)
    first = generate(sampling=sampling)
    assert generate(PROMPTS[:1], sampling=sampling) == first[:1]
    others = [PROMPTS[0], [8, 8, 8, 8], *[[7]] * 5]
    assert generate(others, sampling=sampling)[0] == first[0]
    same = generate([PROMPTS[0]] * 3, sampling=sampling)
    assert same[0] == first[0] and same[1] != same[0]


def test_a_row_ends_with_eos(generator, generate, params, greedy):
    """-1 from the end on; when all rows have ended nothing more comes."""
    eos = greedy[0][2]
    cut = [row[: row.index(eos)] if eos in row else row for row in greedy]
    assert generate(stop_ids=[eos]) == cut
    assert len(cut[0]) == greedy[0].index(eos)
    assert generate(stop_ids=[eos, 64]) == generate(stop_ids=[64, eos]) == cut
    options = {"max_tokens": 40, "sampling": GREEDY, "stop_ids": [eos]}
    columns = list(generator.stream(params, PROMPTS[:1], **options))
    assert [c.tolist() for c in columns[: len(cut[0])]] == [[t] for t in cut[0]]
    assert all((column == -1).all() for column in columns[len(cut[0]) :])
    assert len(columns) <= len(cut[0]) + 1


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("architecture", ["llama", "gru", "t5"])
def test_texts_do_not_depend_on_what_shares_the_batch(
    tiny, random_params, architecture, temperature, monkeypatch
):
    """Fourteen prompts take turns in four rows, or have a batch of their own each."""
    monkeypatch.setattr("lmjax.generate.continuous.MAX_ROWS", 4)
    monkeypatch.setattr("lmjax.generate.continuous.SPARE_SLOTS", 3)
    model, rng = tiny(architecture), np.random.default_rng(0)
    generator, params = Generator(model), random_params(model)
    texts = [rng.integers(2, 64, n).tolist() for n in rng.integers(1, 25, 14)]
    inputs = {"prompts": texts}
    if architecture == "t5":
        inputs = {"prompts": [[1]] * len(texts), "sources": texts}
    options = {
        "max_tokens": 20,
        "sampling": Sampling(temperature=temperature),
        "stop_ids": range(9),
        "seed": 3,
    }
    found = generator.generate(params, **inputs, **options)
    columns = np.stack(list(generator.stream(params, **inputs, **options)), axis=1)
    assert found == [[t for t in row.tolist() if t >= 0] for row in columns]
    assert len({len(row) for row in found}) > 3


def test_the_host_ends_a_text(generator, params, greedy):
    calls = []

    def is_over(index, tokens):
        calls.append(index)
        return index == 1

    options = {"max_tokens": 6, "sampling": GREEDY, "stop_ids": ()}
    rows = generator.generate(params, PROMPTS, **options, is_over=is_over)
    assert rows[0] == greedy[0] and rows[2] == greedy[2]
    assert rows[1] == greedy[1][: len(rows[1])] and calls.count(1) == 1


def test_ended_rows_wait_for_the_others(generator, params, greedy):
    eos = greedy[0][0]
    options = {"max_tokens": 6, "sampling": GREEDY, "stop_ids": [eos]}
    columns = np.stack(list(generator.stream(params, PROMPTS, **options)), axis=1)
    for row, expected in zip(columns, greedy, strict=True):
        end = expected.index(eos) if eos in expected else 6
        assert row[:end].tolist() == expected[:end] and (row[end:] == -1).all()


@pytest.mark.parametrize(
    ("prompts", "max_tokens", "message"),
    [
        ([], 3, "prompt: empty"),
        ([[1], []], 3, "prompt: empty"),
        ([[1]], 0, "max_tokens = 0"),
        ([[1] * 60], 5, r"at most 4 \(config\.model\.max_length = 64\)"),
    ],
)
def test_user_errors(generate, prompts, max_tokens, message):
    with pytest.raises(UserError, match=message):
        generate(prompts, max_tokens=max_tokens)


@pytest.mark.slow
def test_all_positions_can_be_used(generate):
    assert len(generate([[1] * 60], max_tokens=4)[0]) == 4


def test_one_compilation_serves_a_whole_run(tiny, params):
    generator = Generator(tiny("llama"))
    options = {"max_tokens": 5, "sampling": GREEDY, "stop_ids": ()}
    for prompts in ([[1, 2]], [[3]], [[4] * 9]):
        generator.generate(params, prompts, **options)
    generator.generate(params, [[1, 2]], **{**options, "sampling": Sampling(top_k=3)})
    sizes = [f._cache_size() for f in (generator._prefill, generator.extend)]
    assert sizes == [1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("num_prompts", [1, 3])
def test_any_number_of_rows_on_a_mesh(tiny, params, generate, greedy, num_prompts):
    """Neither 1 nor 3 rows can be split over four devices."""
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    model = tiny("llama")
    shardings = sharding.param_shardings(model.axes, model.shapes, mesh)
    generator = Generator(model)
    with jax.set_mesh(mesh):
        rows = generator.generate(
            jax.device_put(params, shardings),
            PROMPTS[:num_prompts],
            max_tokens=6,
            sampling=GREEDY,
            stop_ids=(),
        )
    assert rows == greedy[:num_prompts]
    assert generator.extend._cache_size() == 1
