"""Begin a run with word vectors as its embeddings. V vocabulary, D dim."""

import collections
import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.config.experiment import Config
from lmjax.data.datasets import Datasets
from lmjax.data.tokenizers.special_ids import not_none
from lmjax.data.tokenizers.vocabulary import read_words
from lmjax.data.tokenizers.word_vectors import WordVectors
from lmjax.errors import ConfigError
from lmjax.parallel import processes
from lmjax.training.compiled import Program
from lmjax.types import Array, Params, TrainState

log = logging.getLogger(__name__)

_LEAF = "config.init_embedding_from"
_MAX_COUNTED = 1 << 26  # tokens of a store that are counted for the coverage
_EXACT, _LOWERED = 2, 1  # whether a word was matched as it is, or in lower case


def check(config: Config) -> None:
    """Check before anything else is done that the word vectors fit the model.

    Raises:
      ConfigError: the file is missing or damaged, or its vectors have another size.
    """
    if not config.init_embedding_from:
        return
    vectors = _open(config)
    if processes.is_first():
        vectors.check()


def with_word_vectors(
    state: TrainState, program: Program, datasets: Datasets
) -> TrainState:
    """Return the first state with the embeddings of `config.init_embedding_from`.

    A row becomes the vector of its word or, if there is none, of the word in lower
    case. The other rows stay random, with their variance scaled to that of the vectors
    (Kim 2014, section 4.3). The share of the words that have a vector is logged.

    Raises:
      ConfigError: the file is damaged, its vectors have another size, or it has none of
        the words.
    """
    if not program.config.init_embedding_from:
        return state
    with processes.sync_errors():
        words = read_words(datasets.tokenizer)
        vectors_VD, found_V = match(_open(program.config), words)
        if not found_V.any():
            raise ConfigError(
                f"{_LEAF} = {program.config.init_embedding_from!r}: has none of the "
                f"{len(words):,} words of the vocabulary"
            )
        if processes.is_first():
            log.info("%s: %s", _LEAF, _coverage(found_V, datasets))
    table = _overlay(state.params["embed"]["embedding"], vectors_VD, found_V > 0)
    ema = state.ema_params and _with_table(state.ema_params, jnp.copy(table))
    params = _with_table(state.params, table)
    return dataclasses.replace(state, params=params, ema_params=ema)


def match(vectors: WordVectors, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Match words with vectors.

    Returns:
      The vectors, float32 (V, D); and for each word, int8 (V,), 2 if it has a vector
      itself, 1 if its lower case has one, 0 if it has none.
    """
    exact, lowered = (collections.defaultdict[str, list[int]](list) for _ in range(2))
    for i, word in enumerate(words):
        exact[word].append(i)
        if word != word.lower():
            lowered[word.lower()].append(i)
    vectors_VD = np.zeros((len(words), vectors.dim), np.float32)
    found_V = np.zeros(len(words), np.int8)
    for word, vector_D in vectors.select(lambda w: w in exact or w in lowered):
        for how, places in ((_EXACT, exact), (_LOWERED, lowered)):
            for i in places.get(word, ()):
                if found_V[i] < how:
                    vectors_VD[i], found_V[i] = vector_D, how
    return vectors_VD, found_V


def _open(config: Config) -> WordVectors:
    vectors = WordVectors(config.init_embedding_from, leaf=_LEAF)
    vectors.check_dim(config.model.dim)
    return vectors


def _overlay(table_VD: Array, vectors_VD: np.ndarray, found_V: np.ndarray) -> Array:
    """Return an embedding table with the vectors in it, split over the mesh as before.

    It may have more rows than there are words.
    """
    spread = float(vectors_VD[found_V].std())
    more = len(table_VD) - len(found_V)
    given_VD = np.pad(vectors_VD, [(0, more), (0, 0)])
    given_V1 = np.pad(found_V, (0, more))[:, None]
    put = lambda x: jax.make_array_from_callback(
        table_VD.shape, table_VD.sharding, lambda index: x[index]
    )

    def overlay(random_VD: Array, given_VD: Array, given_V1: Any) -> Array:
        return jnp.where(given_V1, given_VD, random_VD * (spread / random_VD.std()))

    jitted = jax.jit(overlay, out_shardings=table_VD.sharding)
    return jitted(table_VD, put(given_VD), given_V1)


def _with_table(params: Params, table_VD: Array) -> Params:
    return {**params, "embed": {**params["embed"], "embedding": table_VD}}


def _coverage(found_V: np.ndarray, datasets: Datasets) -> str:
    """Describe which share of the words, and of the training text, has a vector."""
    tokenizer = datasets.tokenizer
    special = not_none(
        tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.mask_id
    )
    counts_V = np.zeros(len(found_V), np.int64)
    for store in datasets.stores["train"]:
        for start in range(0, min(store.num_tokens, _MAX_COUNTED), 1 << 20):
            tokens = store.read(start, min(start + (1 << 20), store.num_tokens))
            counts_V += np.bincount(tokens, minlength=len(found_V))
    counts_V[[*special, *tokenizer.sentinel_ids]] = 0
    found, lowered = int((found_V > 0).sum()), int((found_V == _LOWERED).sum())
    share = counts_V[found_V > 0].sum() / max(counts_V.sum(), 1)
    return (
        f"vectors for {found:,} of {len(found_V):,} words ({found / len(found_V):.1%}; "
        f"{lowered:,} by their lower case), {share:.1%} of the training text"
    )
