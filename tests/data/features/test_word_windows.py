"""The words of the rows of a long sentence, and those labelled in each."""

import itertools

import numpy as np
import pytest

from lmjax.data.features.word_windows import center_window, split_windows

ROOM = 7


def sizes(seed):
    """Return the sizes of the words of a sentence, none larger than a row."""
    rng = np.random.default_rng(seed)
    return rng.integers(1, ROOM + 1, 1 + 3 * seed)


@pytest.mark.parametrize("seed", range(9))
def test_each_word_is_labelled_in_one_window(seed):
    sizes_W = sizes(seed)
    windows = [*split_windows(sizes_W, room=ROOM)]
    own = itertools.chain.from_iterable(window.labelled for window in windows)
    assert [*own] == [*range(len(sizes_W))]
    for window, after in itertools.pairwise([*windows, None]):
        taken = sizes_W[window.words].sum()
        assert taken <= ROOM
        assert window.labelled.stop == window.words.stop
        if after is not None:  # no word more has room
            assert sizes_W[window.labelled].sum() + sizes_W[window.labelled.stop] > ROOM
        if window.words.start:  # nor one before
            assert taken + sizes_W[window.words.start - 1] > ROOM


def test_a_short_sentence_is_one_window():
    (window,) = split_windows(np.array([2, 3, 2]), room=ROOM)
    assert window == (range(3), range(3))
    assert center_window(np.array([2, 3, 2]), [1], room=ROOM) == window


@pytest.mark.parametrize("seed", range(9))
def test_a_predicate_is_in_the_middle(seed):
    sizes_W = sizes(seed)
    for place in range(len(sizes_W)):
        words, own = center_window(sizes_W, [place], room=ROOM)
        assert place in words and words == own
        assert sizes_W[words].sum() <= ROOM
        before = sizes_W[words.start : place].sum()
        after = sizes_W[place + 1 : words.stop].sum()
        longest = sizes_W.max()
        if words.start and words.stop < len(sizes_W):
            assert abs(before - after) <= 2 * longest
        if words.stop < len(sizes_W):
            assert before + sizes_W[place] + after + sizes_W[words.stop] > ROOM


def test_a_long_predicate_keeps_its_first_words():
    sizes_W = np.array([3, 2, 2, 3, 2])
    assert center_window(sizes_W, [1, 2], room=ROOM).words == range(1, 4)
    assert center_window(sizes_W, [1, 4], room=ROOM).words == range(1, 4)
