"""Transforms: pure functions of (seed, sample), with the statistics of their papers."""

import numpy as np
import pytest

from lmjax.config.text_task import (
    InfillingConfig,
    PrefixLMConfig,
    SpanCorruptionConfig,
    num_predictions,
    span_counts,
)
from lmjax.data.lm import transforms

MASK, EOS = 90, 91
SENTINELS = np.arange(199, 99, -1)  # as T5 numbers them: downwards
TEXT = np.arange(90)


def window(n, seed=0):
    return np.random.default_rng(seed).integers(0, 90, n)


def samples(count=400, seed=0):
    return [transforms.sample_rng(i, seed=seed) for i in range(count)]


def test_random_numbers_follow_from_seed_purpose_and_sample_alone():
    def draw(index, **options):
        return tuple(transforms.sample_rng(index, **options).random(4))

    keys = [(i, s, p) for i in (0, 1, 2**40) for s in (0, 1) for p in ("a", "b")]
    draws = {draw(i, seed=s, purpose=p) for i, s, p in keys}
    assert len(draws) == len(keys)
    assert draw(5, seed=3) == draw(5, seed=3)


@pytest.mark.parametrize("n", [1, 2, 7, 126])
def test_an_exact_share_of_the_maskable_tokens_is_chosen(n):
    maskable = np.random.default_rng(n).random(n) < 0.8
    for rng in samples(50):
        places = transforms.choose_tokens(maskable, rate=0.15, rng=rng)
        assert len(places) == num_predictions(maskable.sum(), rate=0.15)
        assert maskable[places].all() and (np.diff(places) > 0).all()


def test_every_token_is_equally_likely_to_be_chosen():
    chosen = np.zeros(40)
    for rng in samples(2000):
        chosen[transforms.choose_tokens(np.ones(40, bool), rate=0.15, rng=rng)] += 1
    assert np.abs(chosen / 2000 - 0.15).max() < 4.5 * np.sqrt(0.15 * 0.85 / 2000)


def test_the_shares_of_masks_random_tokens_and_kept_ones():
    ids, places = window(4000), np.arange(0, 4000, 2)
    masked = transforms.mask_tokens(
        ids,
        places,
        mask_id=MASK,
        mask_share=0.8,
        random_share=0.1,
        random_ids=TEXT,
        rng=transforms.sample_rng(0, seed=0),
    )
    np.testing.assert_array_equal(masked[1::2], ids[1::2])
    found, before = masked[places], ids[places]
    same = 0.1 + 0.1 / len(TEXT)  # a random token may be the very one
    shares = [(found == MASK, 0.8), (found == before, same)]
    for hits, share in shares:
        assert abs(hits.mean() - share) < 4 * np.sqrt(share * (1 - share) / 2000)
    assert set(found) <= {*TEXT, MASK}


def test_words_are_chosen_whole_and_nearly_fill_the_share():
    rng = np.random.default_rng(0)
    starts, maskable = rng.random(200) < 0.4, rng.random(200) < 0.95
    word = np.cumsum(starts | ~maskable | np.r_[True, ~maskable[:-1]])
    counts = []
    for chance in samples():
        places = transforms.choose_words(maskable, starts, rate=0.15, rng=chance)
        assert maskable[places].all()
        for number in np.unique(word[places]):
            whole = np.flatnonzero((word == number) & maskable)
            assert np.isin(whole, places).all()
        counts.append(len(places))
    share = num_predictions(maskable.sum(), rate=0.15)
    assert max(counts) == share and np.mean(counts) > 0.9 * share


def test_a_word_longer_than_the_share_is_left_out():
    starts = np.zeros(100, bool)
    starts[90:] = True
    for rng in samples(20):
        places = transforms.choose_words(np.ones(100, bool), starts, rate=0.1, rng=rng)
        assert places.min() >= 90


def t5_lengths(length, *, density, mean):
    """Compute `random_spans_helper` of google-research's T5."""

    def corrupted(tokens):
        noise = round(tokens * density)
        spans = round(noise / mean)
        return tokens - noise + spans + 1, noise + spans + 1

    tokens = length - 1
    while corrupted(tokens + 1)[0] <= length:
        tokens += 1
    return tokens, corrupted(tokens)[1]


@pytest.mark.parametrize("length", [32, 64, 128, 256, 511, 512, 1024])
@pytest.mark.parametrize(("density", "mean"), [(0.15, 3.0), (0.3, 8.0), (0.15, 1.5)])
def test_lengths_are_those_of_t5(length, density, mean):
    config = SpanCorruptionConfig(noise_density=density, mean_span_length=mean)
    expected = t5_lengths(length, density=density, mean=mean)
    assert config.lengths(length) == expected
    if (length, density) == (512, 0.15) and mean == 3.0:
        assert expected == (568, 114)  # the paper's


def test_lengths_of_the_other_objectives():
    assert PrefixLMConfig().lengths(64) == (64, 64)
    assert InfillingConfig().lengths(64) == (63, 64)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 137, 568])
@pytest.mark.parametrize("density", [0.05, 0.15, 0.5, 0.9])
def test_the_numbers_of_noise_tokens_and_spans_are_fixed(n, density):
    config = SpanCorruptionConfig(noise_density=density)
    num_noise, num_spans = span_counts(n, config)
    for rng in samples(20):
        noise = transforms.span_mask(n, config, rng=rng)
        assert len(noise) == n and not noise[0]
        if n == 1:
            continue
        assert noise.sum() == num_noise and noise[-1]
        assert (np.diff(noise.astype(int)) == 1).sum() == num_spans


def test_every_division_into_spans_is_equally_likely():
    config = SpanCorruptionConfig(noise_density=0.5, mean_span_length=2.0)
    masks = [tuple(transforms.span_mask(8, config, rng=rng)) for rng in samples(9000)]
    # 4 noise tokens in 2 spans, 4 others in 2: three divisions of each.
    found, counts = np.unique(masks, axis=0, return_counts=True)
    assert len(found) == 9
    assert np.abs(counts - 1000).max() < 4 * np.sqrt(1000)


def restore(source, target, sentinel_ids):
    """Put the target's spans where the source has their sentinels."""
    spans, token = {}, None
    for token in target:
        if token in sentinel_ids:
            last = spans.setdefault(token, [])
        else:
            last.append(token)
    whole = []
    for token in source:
        whole += spans.get(token, [token])
    return whole


@pytest.mark.parametrize("n", [2, 9, 137, 568])
def test_source_and_target_restore_the_window(n):
    config = SpanCorruptionConfig()
    ids = window(n)
    for rng in samples(50):
        source, target = transforms.corrupt_spans(
            ids, config=config, sentinel_ids=SENTINELS, rng=rng
        )
        num_spans = span_counts(n, config)[1]
        for part in (source, target):
            used = part[part >= 100]
            np.testing.assert_array_equal(used, SENTINELS[:num_spans])
        assert target[0] == SENTINELS[0]
        assert restore(source, target, set(SENTINELS)) == ids.tolist()


def test_a_prefix_ends_anywhere_but_at_the_ends():
    ids, places = window(10), []
    for rng in samples(2000):
        source, target = transforms.cut_prefix(ids, rng=rng)
        np.testing.assert_array_equal(np.concatenate([source, target]), ids)
        places.append(len(source))
    counts = np.bincount(places, minlength=11)
    assert counts[0] == counts[10] == 0
    assert np.abs(counts[1:10] - 2000 / 9).max() < 4.5 * np.sqrt(2000 / 9)
    source, target = transforms.cut_prefix(ids[:1], rng=rng)
    assert (len(source), len(target)) == (0, 1)


def infilled(ids, rng, rate=0.3, mean=3.0):
    return transforms.infill(
        ids, mask_rate=rate, mean_span_length=mean, mask_id=MASK, rng=rng
    )


def matches(source, ids):
    """Return whether masks can be filled so that the source becomes the text."""
    reach = {0}
    for token in source:
        if token == MASK:
            reach = set(range(min(reach), len(ids) + 1))
        else:
            reach = {i + 1 for i in reach if i < len(ids) and ids[i] == token}
    return len(ids) in reach


@pytest.mark.parametrize("n", [1, 2, 10, 127])
@pytest.mark.parametrize("rate", [0.05, 0.3, 0.9])
def test_infilling_masks_an_exact_share(n, rate):
    ids = window(n)
    for rng in samples(50):
        source = infilled(ids, rng, rate)
        assert (source != MASK).sum() == n - np.ceil(n * rate)
        assert 1 <= len(source) <= n
        assert matches(source, ids)


def test_infilling_draws_lengths_from_a_poisson_distribution():
    spans = [
        transforms._poisson_spans(3000, mean=3.0, rng=rng)[:-1] for rng in samples(10)
    ]
    drawn = np.concatenate(spans)
    assert abs(drawn.mean() - 3) < 4 * np.sqrt(3 / len(drawn))
    none = np.exp(-3.0)
    assert abs((drawn == 0).mean() - none) < 4 * np.sqrt(none / len(drawn))


def test_sentences_stay_whole_and_come_in_any_order():
    ids = np.arange(6)
    ends = np.array([0, 1, 0, 0, 1, 0], bool)
    orders = {
        tuple(transforms.permute_sentences(ids, ends, rng=rng)) for rng in samples(100)
    }
    sentences = [(0, 1), (2, 3, 4), (5,)]
    assert len(orders) == 6
    for order in orders:
        places = [order.index(s[0]) for s in sentences]
        for s, place in zip(sentences, places, strict=True):
            assert order[place : place + len(s)] == s


def test_pairs_are_swapped_half_of_the_time():
    ids, labels = window(40), []
    for rng in samples(2000):
        first, second, swapped = transforms.order_pair(ids, rng=rng)
        both = [second, first] if swapped else [first, second]
        np.testing.assert_array_equal(np.concatenate(both), ids)
        assert 10 <= len(first) <= 30
        labels.append(swapped)
    assert abs(np.mean(labels) - 0.5) < 4 * np.sqrt(0.25 / 2000)
