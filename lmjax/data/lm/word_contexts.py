"""Rows of words with their neighbours and noise, for word vectors.

Shapes: B rows, N tokens of one row's window, T length, K words of noise, V vocabulary.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lmjax.config.experiment import Config
from lmjax.config.text_task import WordVectorsTaskConfig
from lmjax.data.lm import transforms
from lmjax.data.padding import pad_rows
from lmjax.data.stores.token_store import TokenStore
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.data.tokenizers.vocabulary import is_word

if TYPE_CHECKING:
    from lmjax.types import HostBatch

_BLOCK = 1 << 22  # tokens that are counted at once
_MAX_COUNTED = 1 << 28


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class WordContexts:
    """The words of a window that are kept, how far each reaches, and words of noise.

    Frequent words are left out by chance, before anything else (Mikolov et al. 2013,
    section 2.3), so that neighbours are those of the words that are left; also words
    that are not known and special tokens. A window has so many tokens that its words
    fill a row; what does not fit is left out, too.
    """

    window: int
    length: int
    seed: int
    task: WordVectorsTaskConfig
    keep_V: np.ndarray  # the probability of a word to be kept
    noise_V: np.ndarray  # the probabilities of noise, added up

    def make_batch(
        self, windows: "HostBatch", samples: np.ndarray, *, purpose: str
    ) -> "HostBatch":
        """Return tokens, segments, reach (B, T) and noise (B, K), int32."""
        rows: dict[str, list[np.ndarray]] = {"tokens": [], "segments": [], "reach": []}
        noise = []
        for ids_N, segments_N, sample in zip(
            windows["targets"], windows["segments"], samples, strict=True
        ):
            rng = transforms.sample_rng(sample, seed=self.seed, purpose=purpose)
            kept = np.flatnonzero(
                (rng.random(len(ids_N)) < self.keep_V[ids_N]) & (segments_N > 0)
            )[: self.length]
            rows["tokens"].append(ids_N[kept])
            rows["segments"].append(segments_N[kept])
            reach = rng.integers(1, self.task.window, len(kept), endpoint=True)
            rows["reach"].append(reach)
            drawn = rng.random(self.task.num_noise) * self.noise_V[-1]
            noise.append(np.searchsorted(self.noise_V, drawn, side="right"))
        batch = {
            name: pad_rows(values, length=self.length, fill=0, dtype=np.int32)
            for name, values in rows.items()
        }
        return {**batch, "noise": np.stack(noise).astype(np.int32)}


def build_word_contexts(
    config: Config,
    task: WordVectorsTaskConfig,
    tokenizer: Tokenizer,
    stores: Sequence[TokenStore],
) -> WordContexts:
    """Return the objective for the frequencies of the words in some stores."""
    all_V = count_words(tuple(stores), tokenizer.vocab_size)
    counts_V = all_V * is_word(tokenizer)
    share_V = counts_V / max(counts_V.sum(), 1)
    keep_V = keep_probabilities(share_V, subsample=task.subsample)
    noise_V = np.where(counts_V > 0, counts_V, 1) ** task.noise_power * (counts_V > 0)
    length = config.data.length
    kept = float((all_V * keep_V).sum() / max(all_V.sum(), 1))
    # By one standard deviation less than a row holds: few words are left out for it.
    room = max(length - math.sqrt(length * (1.0 - kept)), 1.0)
    return WordContexts(
        window=min(max(round(room / max(kept, 1e-3)), length), 1000 * length),
        length=length,
        seed=config.seed,
        task=task,
        keep_V=keep_V,
        noise_V=np.cumsum(noise_V),
    )


def keep_probabilities(share_V: np.ndarray, *, subsample: float) -> np.ndarray:
    """Return with which probability each word is kept, by its share of the text.

    As word2vec's code has it: (sqrt(f / t) + 1) t / f for a share f, at most 1. Words
    that are not in the text are not kept.
    """
    if not subsample:
        return (share_V > 0).astype(np.float64)
    ratio_V = subsample / np.where(share_V > 0, share_V, 1.0)
    return np.minimum(np.sqrt(ratio_V) + ratio_V, 1.0) * (share_V > 0)


@functools.lru_cache(maxsize=8)
def count_words(stores: tuple[TokenStore, ...], vocab_size: int) -> np.ndarray:
    """Count the tokens of stores, int64 (V,); without stores each counts as one.

    Of a long text the blocks that are counted lie at even distances.
    """
    if not stores:
        return np.ones(vocab_size, np.int64)
    counts_V = np.zeros(vocab_size, np.int64)
    stride = max(1, -(-sum(store.num_tokens for store in stores) // _MAX_COUNTED))
    for store in stores:
        for start in range(0, store.num_tokens, _BLOCK * stride):
            tokens = store.read(start, min(start + _BLOCK, store.num_tokens))
            counts_V += np.bincount(tokens, minlength=vocab_size)[:vocab_size]
    return counts_V
