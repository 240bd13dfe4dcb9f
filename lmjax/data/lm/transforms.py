"""Masking, span corruption, infilling: random changes to a window of tokens.

All are pure functions of the tokens and of a random generator, which the seed and the
number of the sample decide. So any sample can be computed at any time, and a run that
resumes sees the samples that it would have seen.

Shapes: N tokens of a window, V vocabulary, K places of tokens.
"""

import numpy as np

from lmjax.config.text_task import SpanCorruptionConfig, num_predictions, span_counts
from lmjax.data import order


def sample_rng(index: int, *, seed: int, purpose: str = "noise") -> np.random.Generator:
    """Return the random generator of one sample: a counter-based stream of its own.

    Args:
      index: the sample's number.
      seed: of the run.
      purpose: streams of different purposes are independent.
    """
    key = [order.hash_keys(seed, purpose)[0], np.uint64(index)]
    return np.random.Generator(np.random.Philox(key=np.array(key, np.uint64)))


def choose_tokens(
    maskable_N: np.ndarray, *, rate: float, rng: np.random.Generator
) -> np.ndarray:
    """Choose an exact share of the maskable tokens.

    The count is fixed, as in the code of BERT (Devlin et al. 2019), instead of a coin
    toss for each token: so a row has a fixed number of places to compute logits at,
    and no row is without a loss.

    Returns:
      Their places (K,), ascending.
    """
    places = np.flatnonzero(maskable_N)
    count = num_predictions(len(places), rate=rate)
    return np.sort(rng.permutation(places)[:count])


def choose_words(
    maskable_N: np.ndarray,
    starts_N: np.ndarray,
    *,
    rate: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Choose whole words in a random order, as many as fit in the share of tokens.

    Words longer than the whole share are left out. A token that may not be masked
    ends a word, too.

    Args:
      maskable_N: whether each token may be chosen.
      starts_N: whether each token begins a word.
      rate: share of the maskable tokens.
      rng: of the sample.

    Returns:
      The places of all tokens of the words (K,), ascending.
    """
    after_other_N = np.concatenate([[True], ~maskable_N[:-1]])
    word_N = np.cumsum(starts_N | after_other_N | ~maskable_N)
    sizes = np.bincount(word_N[maskable_N], minlength=1)
    count = num_predictions(int(maskable_N.sum()), rate=rate)
    words = rng.permutation(np.flatnonzero((sizes > 0) & (sizes <= count)))
    words = words[np.cumsum(sizes[words]) <= count]
    return np.flatnonzero(maskable_N & np.isin(word_N, words))


def mask_tokens(
    ids_N: np.ndarray,
    places_K: np.ndarray,
    *,
    mask_id: int,
    mask_share: float,
    random_share: float,
    random_ids: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Replace tokens by the mask or by random ones, or leave them (Devlin et al. 2019).

    Args:
      ids_N: the tokens.
      places_K: where tokens are predicted.
      mask_id: the mask token.
      mask_share: probability that a place gets the mask token.
      random_share: probability that it gets one of `random_ids`.
      random_ids: the ids of text.
      rng: of the sample.
    """
    draw_K = rng.random(len(places_K))
    other_K = random_ids[rng.integers(0, len(random_ids), len(places_K))]
    changed_K = np.where(draw_K < mask_share, mask_id, other_K)
    kept_K = draw_K >= mask_share + random_share
    ids_N = ids_N.copy()
    ids_N[places_K] = np.where(kept_K, ids_N[places_K], changed_K)
    return ids_N


def span_mask(
    length: int, config: SpanCorruptionConfig, *, rng: np.random.Generator
) -> np.ndarray:
    """Draw the noise mask of T5, bool (N,) (Raffel et al. 2020).

    As `random_spans_noise_mask` of the reference implementation: the length fixes the
    numbers of noise tokens and of spans; the places and lengths of the spans are
    random. A window begins with kept tokens and ends with noise.
    """
    num_noise, num_spans = span_counts(length, config)
    noise = _random_segments(num_noise, num_spans, rng=rng)
    kept = _random_segments(max(length, 2) - num_noise, num_spans, rng=rng)
    runs = np.stack([kept, noise], axis=1).ravel()
    return np.repeat(np.arange(2 * num_spans) % 2 == 1, runs)[:length]


def replace_spans(
    ids_N: np.ndarray, noise_N: np.ndarray, *, sentinel_ids: np.ndarray
) -> np.ndarray:
    """Replace each run of noise by one sentinel, the first run by the first sentinel.

    The result is the source of T5's objective; with the mask inverted, its target.
    """
    first_N = noise_N & ~np.concatenate([[False], noise_N[:-1]])
    run_N = np.maximum(np.cumsum(first_N) - 1, 0)
    return np.where(first_N, sentinel_ids[run_N], ids_N)[first_N | ~noise_N]


def corrupt_spans(
    ids_N: np.ndarray,
    *,
    config: SpanCorruptionConfig,
    sentinel_ids: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the source and the target of T5's objective, both without EOS."""
    noise_N = span_mask(len(ids_N), config, rng=rng)
    return (
        replace_spans(ids_N, noise_N, sentinel_ids=sentinel_ids),
        replace_spans(ids_N, ~noise_N, sentinel_ids=sentinel_ids),
    )


def cut_prefix(
    ids_N: np.ndarray, *, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Cut a window in two at a uniformly random place; neither part is empty.

    T5's `random_prefix_noise_mask`. The source of a single token is empty.
    """
    place = rng.integers(min(1, len(ids_N) - 1), len(ids_N))
    return ids_N[:place], ids_N[place:]


def infill(
    ids_N: np.ndarray,
    *,
    mask_rate: float,
    mean_span_length: float,
    mask_id: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Replace spans of tokens by one mask each; an empty span inserts a mask.

    The text infilling of BART (Lewis et al. 2020): lengths are drawn from a Poisson
    distribution until they add up to the rate, the last one cut to fit it exactly.
    Places are uniform. The result is never longer than `ids_N`.
    """
    num_noise = int(np.ceil(len(ids_N) * mask_rate))
    spans = _poisson_spans(num_noise, mean=mean_span_length, rng=rng)
    num_kept = len(ids_N) - num_noise
    before = np.sort(rng.integers(0, num_kept + 1, len(spans)))  # the next kept token
    runs = np.stack([np.diff(before, prepend=0), spans], axis=1).ravel()
    noise_N = np.zeros(len(ids_N), bool)
    noise_N[: runs.sum()] = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return np.insert(ids_N[~noise_N], before, mask_id)


def permute_sentences(
    ids_N: np.ndarray, ends_N: np.ndarray, *, rng: np.random.Generator
) -> np.ndarray:
    """Put sentences in a random order (Lewis et al. 2020).

    Args:
      ids_N: the tokens.
      ends_N: whether each token is the last of a sentence.
      rng: of the sample.
    """
    sentence_N = np.cumsum(ends_N) - ends_N
    rank = rng.permutation(int(sentence_N[-1]) + 1)
    return ids_N[np.argsort(rank[sentence_N], kind="stable")]


def order_pair(
    ids_N: np.ndarray, *, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, int]:
    """Cut a window in two near the middle, and swap the halves with probability 1/2.

    The sentence order objective of ALBERT (Lan et al. 2020) on halves of a window.

    Returns:
      The two texts, and 1 if they are swapped.
    """
    quarter = len(ids_N) // 4
    place = rng.integers(quarter, len(ids_N) - quarter + 1)
    first, second = ids_N[:place], ids_N[place:]
    swapped = int(rng.random() < 0.5)
    return (second, first, 1) if swapped else (first, second, 0)


def _random_segments(
    num_items: int, num_segments: int, *, rng: np.random.Generator
) -> np.ndarray:
    """Divide items into non-empty segments, uniformly over all such divisions."""
    begins = rng.permutation(np.arange(num_items - 1) < num_segments - 1)
    return np.bincount(np.cumsum(np.concatenate([[False], begins])))


def _poisson_spans(total: int, *, mean: float, rng: np.random.Generator) -> np.ndarray:
    """Draw at most `total` lengths that add up to `total`."""
    spans = np.zeros(0, np.int64)
    while spans.sum() < total:
        spans = np.concatenate([spans, rng.poisson(mean, max(total, 1))])
    sums = np.cumsum(spans)
    last = int(np.searchsorted(sums, total))
    spans = spans[: last + 1]
    spans[last] -= sums[last] - total
    empty = spans == 0
    return spans[~empty | (np.cumsum(empty) <= total - (~empty).sum())]
