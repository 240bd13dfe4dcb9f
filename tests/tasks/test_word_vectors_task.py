"""Word vectors: their loss, their rows, and a run from text to exported files."""

import json
import math
import types

import jax
import numpy as np
import pytest

import lmjax
from lmjax import models, tasks
from lmjax.cli.main import main
from lmjax.config.experiment import parse
from lmjax.config.model import WordVectorsConfig
from lmjax.config.text_task import WordVectorsTaskConfig
from lmjax.data.lm import word_contexts
from lmjax.data.lm.word_contexts import keep_probabilities
from lmjax.data.tokenizers.word_vectors import WordVectors
from lmjax.errors import ConfigError, UserError
from lmjax.metrics.word_vectors import VectorSpace
from lmjax.tasks.word_vectors import read_analogies, read_similarities

V, D, B, T, K = 20, 6, 2, 9, 4


@pytest.fixture(scope="module")
def model():
    return models.build(WordVectorsConfig(vocab_size=V, dim=D), platform="cpu")


def make_batch(seed=0):
    rng = np.random.default_rng(seed)
    segments = np.array([[1] * 5 + [2] * 4, [1] * 6 + [0] * 3], np.int32)
    return {
        "tokens": rng.integers(0, V, (B, T)).astype(np.int32),
        "segments": segments,
        "reach": rng.integers(1, 4, (B, T)).astype(np.int32),
        "noise": rng.integers(0, V, (B, K)).astype(np.int32),
    }


def softplus(x):
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def brute_force(words, others, batch, *, objective, num_negatives):
    """Return the loss as the paper has it, and the pairs or words it is of."""
    total, count = 0.0, 0
    for tokens, segments, reach, noise in zip(*batch.values(), strict=True):
        for t in range(T):
            near = [
                s
                for s in range(T)
                if 0 < abs(s - t) <= reach[t] and 0 < segments[t] == segments[s]
            ]
            pairs = [(words[tokens[t]], tokens[s]) for s in near]
            if objective == "cbow" and near:
                mean = np.mean([words[tokens[s]] for s in near], axis=0)
                pairs = [(mean, tokens[t])]
            for vector, other in pairs:
                total += softplus(-vector @ others[other])
                against = [softplus(vector @ others[k]) for k in noise]
                total += num_negatives * np.mean(against)
                count += 1
    return total, count


@pytest.mark.parametrize("objective", ["skip_gram", "cbow"])
def test_the_loss_is_that_of_each_pair(model, objective, assert_close):
    task = tasks.build(WordVectorsTaskConfig(objective=objective, num_negatives=3))
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda s: rng.normal(size=s.shape).astype(np.float32), model.shapes
    )
    batch = make_batch()
    output = jax.jit(lambda p, b: task.loss(model, p, b, key=None))(params, batch)
    words, others = (params[k]["embedding"] for k in ("embed", "neighbour"))
    total, count = brute_force(
        words, others, batch, objective=objective, num_negatives=3
    )
    assert float(output.weight_sum) == count > 10
    assert_close(output.loss_sum, np.float32(total))
    shapes = tasks.build(WordVectorsTaskConfig(num_noise=K)).batch_shapes(B, T)
    found = {name: (x.shape, x.dtype) for name, x in shapes.items()}
    assert found == {name: (x.shape, x.dtype) for name, x in batch.items()}


class Store:
    """A token store in memory."""

    def __init__(self, tokens):
        self.tokens, self.num_tokens = np.asarray(tokens), len(tokens)

    def read(self, start, stop):
        return self.tokens[start:stop]


def make_objective(tokens, *, length=64, **leaves):
    tokenizer = types.SimpleNamespace(
        vocab_size=V,
        bos_id=None,
        eos_id=1,
        pad_id=None,
        mask_id=None,
        prefix_ids=(),
        suffix_ids=(),
        pair_ids=(),
        sentinel_ids=(),
        id_to_piece=lambda i: ["<unk>", "</s>"][i] if i < 2 else f"w{i}",
    )
    config = types.SimpleNamespace(seed=3, data=types.SimpleNamespace(length=length))
    task = WordVectorsTaskConfig(**leaves)
    build = word_contexts.build_word_contexts
    return build(config, task, tokenizer, [Store(tokens)])


def test_rows_hold_kept_words_with_their_reach_and_noise():
    rng = np.random.default_rng(0)
    share = 1.0 / np.arange(1, V + 1)
    stream = rng.choice(V, 100_000, p=share / share.sum())
    objective = make_objective(stream, subsample=0.02, window=3, num_noise=500)
    counts = np.bincount(stream, minlength=V) * (np.arange(V) > 1)
    share = counts / counts.sum()
    keep = np.minimum(np.sqrt(0.02 / share.clip(1e-9)) + 0.02 / share.clip(1e-9), 1)
    np.testing.assert_allclose(objective.keep_V[2:], keep[2:])
    assert not objective.keep_V[:2].any(), "unknown and special tokens are no words"

    rows, n = 400, objective.window
    targets = rng.choice(stream, (rows, n))
    segments = np.ones((rows, n), np.int32)
    segments[:, n // 2 :] = 2
    segments[-1, 7:] = 0  # padding
    windows = {"targets": targets, "segments": segments}
    samples = np.arange(rows)
    batch = objective.make_batch(windows, samples, purpose="noise")
    real = batch["segments"] > 0
    assert 0.85 < real[:-1].mean() < 1 and real[-1].sum() <= 7
    assert {*np.unique(batch["reach"][real])} == {1, 2, 3}
    assert not batch["reach"][~real].any()
    # What is kept, and the noise, follow the stated distributions.
    kept = np.bincount(batch["tokens"][real], minlength=V) / real.sum()
    wanted = share * objective.keep_V
    np.testing.assert_allclose(kept, wanted / wanted.sum(), atol=0.01)
    noise = np.bincount(batch["noise"].ravel(), minlength=V) / batch["noise"].size
    wanted = counts**0.75
    np.testing.assert_allclose(noise, wanted / wanted.sum(), atol=0.005)
    # A sample's row is a function of its number alone.
    order = rng.permutation(rows)[:50]
    some = {name: x[order] for name, x in windows.items()}
    again = objective.make_batch(some, order, purpose="noise")
    for name, x in again.items():
        np.testing.assert_array_equal(x, batch[name][order])
    other = objective.make_batch(windows, samples, purpose="heldout")
    assert (other["noise"] != batch["noise"]).any()


def test_without_subsampling_all_words_are_kept():
    share = np.array([0.0, 0.5, 0.25, 0.25])
    np.testing.assert_array_equal(
        keep_probabilities(share, subsample=0.0), [0.0, 1.0, 1.0, 1.0]
    )
    assert make_objective([2, 3, 4] * 100, subsample=0.0).window == 64
    assert make_objective([], length=16).window >= 16


SPACE = VectorSpace(
    ["king", "queen", "man", "woman", "Paris"],
    np.array([[3, 1, 0], [3, -1, 0], [1, 1, 0.1], [1, -1, 0.1], [0, 0, 2]], np.float32),
)


def test_nearest_words():
    (first, cosine), *_ = SPACE.nearest(["king", "woman"], minus=["man"])
    assert first == "queen" and 0.8 < cosine <= 1
    assert [w for w, _ in SPACE.nearest(["PARIS".title()], count=2)] == ["man", "woman"]
    assert len(SPACE.nearest(["king"], count=99)) == 4
    with pytest.raises(UserError, match=r"'quene': .*did you mean 'queen'"):
        SPACE.nearest(["quene"])
    with pytest.raises(UserError, match="needs a word"):
        SPACE.nearest([])


def test_similarities_and_analogies():
    right = ("man", "king", "woman", "queen")
    wrong = ("man", "king", "woman", "Paris")
    unknown = ("man", "king", "woman", "horse")
    assert SPACE.solve_analogies([right, wrong, unknown]) == 0.5
    with pytest.raises(UserError, match="none of 1"):
        SPACE.solve_analogies([unknown])
    pairs = [("king", "queen", 9.0), ("king", "man", 8.5), ("king", "paris", 1.0)]
    pairs.append(("king", "horse", 2.0))
    cosines = [0.8, 4 / math.sqrt(10 * 2.01), 0.0]
    assert cosines[0] < cosines[1]
    with pytest.raises(UserError, match=r"0 of 1 pairs"):
        SPACE.rank_correlation([("a", "b", 1.0)])
    # Ranks 2, 3, 1 and 3, 2, 1; "paris" is not in small letters.
    space = VectorSpace([w.lower() for w in SPACE.words], SPACE._unit_ND)
    assert space.rank_correlation(pairs) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "content",
    [
        "Word 1\tWord 2\tHuman (mean)\nlove\tsex\t6.77\ntiger\tcat\t7.35\n",
        "# comment\nlove,sex,6.77\ntiger,cat,7.35\n",
        "love sex 6.77\ntiger cat 7.35\n",
        "word1\tword2\tPOS\tSimLex999\nlove\tsex\tN\t6.77\t9\ntiger\tcat\tN\t7.35\t9\n",
    ],
)
def test_files_of_similarities(tmp_path, content):
    file = tmp_path / "pairs.txt"
    file.write_text(content)
    pairs = [("love", "sex", 6.77), ("tiger", "cat", 7.35)]
    assert read_similarities(str(file), leaf="leaf") == pairs
    for bad, why in ((content + "one\n", ":[0-9]: not two words"), ("a b\n", "no two")):
        file.write_text(bad)
        with pytest.raises(UserError, match=rf"leaf: .*pairs\.txt.*{why}"):
            read_similarities(str(file), leaf="leaf")


def test_files_of_analogies(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text(": capitals\na b c d\n\n: more\ne f g h\n")
    wanted = [("a", "b", "c", "d"), ("e", "f", "g", "h")]
    assert read_analogies(str(file), leaf="leaf") == wanted
    for bad, why in ((": x\na b c\n", ":2: has 3 words"), (": x\n", "no analogy")):
        file.write_text(bad)
        with pytest.raises(UserError, match=rf"leaf: .*a\.txt.*{why}"):
            read_analogies(str(file), leaf="leaf")


TOPICS = (
    ["cat", "dog", "horse", "cow", "sheep", "goat"],
    ["red", "green", "blue", "yellow", "white", "black"],
)


def sections(directory):
    """Return a run on two topics, whose words never meet."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 400), ("valid", 20)):
        lines = [
            {"text": " ".join(rng.choice([*TOPICS[i % 2], "the"], 20))}
            for i in range(count)
        ]
        content = "\n".join(map(json.dumps, lines))
        (directory / f"{split}.jsonl").write_text(content)
    (directory / "pairs.txt").write_text("cat dog 9\nred blue 8\ncat red 1\ncow blue 2")
    (directory / "questions.txt").write_text("cat dog red blue\n")
    return {
        "num_steps": 30,
        "batch_size": 16,
        "model": {"kind": "word_vectors", "dim": 16},
        "tokenizer": {"kind": "words", "vocab_size": 50, "bos": False},
        "data": {
            "source": "jsonl",
            "path": str(directory / "train.jsonl"),
            "valid_path": str(directory / "valid.jsonl"),
            "length": 32,
        },
        "task": {
            "kind": "word_vectors",
            "subsample": 0.05,
            "similarity_files": [str(directory / "pairs.txt")],
            "analogy_files": [str(directory / "questions.txt")],
        },
        "optim": {
            "name": "adagrad",
            "learning_rate": 0.3,
            "epsilon": 1e-10,
            "weight_decay": 0.0,
            "clip_norm": 0.0,
        },
        "sample": {"prompts": ["cat", "red"]},
        "log": {"every_steps": 10, "tensorboard": False},
        "eval": {"every_steps": 10},
        "checkpoint": {"every_steps": 10},
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("words")
    config = parse(sections(directory))
    assert lmjax.train(config, directory / "run").finished
    return directory


def metrics(workdir, split):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["split"] == split]


def test_a_run_learns_which_words_are_near(finished):
    lm = lmjax.load(finished / "run")
    for topic in TOPICS:
        near = [word for word, _ in lm.nearest(topic[0], count=5)]
        assert {*near} == {*topic[1:]}, near
    assert lm.nearest(["cat", "red"], minus=["dog"], count=1)[0][0] in TOPICS[1]
    valid = metrics(finished / "run", "valid")
    assert valid[-1]["loss"] < valid[0]["loss"] and len(valid) == 3
    assert valid[-1]["similarity_pairs"] > 0.7
    assert "analogies_questions" in valid[-1]
    samples = (finished / "run" / "samples" / "30.txt").read_text()
    assert samples.startswith("cat: ") and "----\nred: " in samples
    with pytest.raises(UserError, match="it scores no texts"):
        lm.score(["cat dog"])
    with pytest.raises(UserError, match="'cart': is not in the vocabulary"):
        lm.nearest("cart")


def test_a_run_that_was_stopped_equals_one_that_was_not(tmp_path):
    config = sections(tmp_path) | {"num_steps": 20}
    # Others depend on the number of steps.
    config["optim"] |= {"schedule": "constant"}
    lmjax.train(parse(config | {"num_steps": 10}), tmp_path / "part")
    for name in ("part", "whole"):
        lmjax.train(parse(config), tmp_path / name)
    tables = [
        lmjax.load(tmp_path / name).params["embed"]["embedding"]
        for name in ("part", "whole")
    ]
    np.testing.assert_array_equal(*tables)


def test_exported_vectors_are_read_back(finished, tmp_path, capsys):
    lm = lmjax.load(finished / "run")
    words = sorted([*TOPICS[0], *TOPICS[1], "the"])
    run = str(finished / "run")
    for suffix in ("vec", "bin", "txt"):
        target = tmp_path / f"words.{suffix}"
        assert main(["export", f"--workdir={run}", f"--to={target}"]) == 0
        assert "13 words, 16 dimensions" in capsys.readouterr().out
        opened = WordVectors(str(target), leaf="leaf")
        opened.check()
        vectors = dict(opened.select(lambda word: True))
        assert sorted(vectors) == words
        for word, vector in vectors.items():
            (index,) = lm.tokenizer.encode(word)
            table = lm.params["embed"]["embedding"]
            np.testing.assert_array_equal(vector, table[index])
    assert main(["export", f"--workdir={run}", f"--to={target}"]) == 2
    assert "exists already" in capsys.readouterr().err
    gensim = pytest.importorskip("gensim", reason="pip install gensim")
    read = gensim.models.KeyedVectors.load_word2vec_format
    for suffix, options in (
        ("vec", {}),
        ("bin", {"binary": True}),
        ("txt", {"no_header": True}),
    ):
        theirs = read(str(tmp_path / f"words.{suffix}"), **options)
        assert sorted(theirs.key_to_index) == words
        found = [word for word, _ in theirs.most_similar("cat", topn=5)]
        assert found == [word for word, _ in lm.nearest("cat", count=5)]


def test_a_model_begins_with_exported_vectors(finished, tmp_path):
    target = tmp_path / "words.vec"
    main(["export", f"--workdir={finished / 'run'}", f"--to={target}"])
    config = sections(tmp_path) | {"num_steps": 1, "init_embedding_from": str(target)}
    config["optim"] |= {"learning_rate": 0.0}
    config["model"] = {"kind": "recurrent", "dim": 16, "num_layers": 1}
    config["task"] = {"kind": "causal_lm"}
    config["sample"] = {}
    lmjax.train(parse(config), tmp_path / "run")
    before, after = lmjax.load(finished / "run"), lmjax.load(tmp_path / "run")
    assert before.nearest("cat", count=5) == after.nearest("cat", count=5)


def test_a_mesh_changes_nothing(tmp_path):
    config = sections(tmp_path) | {"num_steps": 10}
    lmjax.train(parse(config), tmp_path / "one")
    config["mesh"] = {"data": 4, "fsdp": 2, "tensor": 1}
    lmjax.train(parse(config), tmp_path / "eight")
    losses = [
        metrics(tmp_path / name, "valid")[-1]["loss"] for name in ("one", "eight")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("model.dropout=0.1", r"config\.model\.dropout = 0\.1: must be 0"),
        ("model.num_layers=2", r"config\.model\.num_layers = 2: must be 0"),
        ("model.tie_embeddings=true", r"config\.model\.tie_embeddings = True"),
        ("task.z_loss=0.1", r"config\.task\.z_loss = 0\.1: must be 0"),
        ("task.window=0", r"config\.task\.window"),
        ("task.objective=skipgram", "did you mean 'skip_gram'"),
        ("model.kind=decoder", "needs config.model.kind = 'word_vectors'"),
        ("data.order=contiguous", "needs config.model.kind = 'recurrent'"),
    ],
)
def test_a_mistake_is_named(tmp_path, override, why):
    with pytest.raises(ConfigError, match=why):
        parse(sections(tmp_path), [override])


def test_unknown_prompts_and_files_are_named_before_training(tmp_path):
    config = sections(tmp_path)
    config["sample"] = {"prompts": ["cat", "dgo"]}
    with pytest.raises(UserError, match=r"config\.sample\.prompts: 'dgo': .*'dog'"):
        lmjax.train(parse(config), tmp_path / "a")
    config = sections(tmp_path)
    config["task"]["similarity_files"] = [str(tmp_path / "none.txt")]
    with pytest.raises(UserError, match=r"similarity_files: .*none\.txt"):
        lmjax.train(parse(config), tmp_path / "b")
    assert not metrics_exist(tmp_path / "b")


def metrics_exist(workdir):
    file = workdir / "metrics.jsonl"
    return file.exists() and bool(file.read_text())
