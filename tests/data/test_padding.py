import numpy as np

from lmjax.data.padding import pad_rows, round_up, segment_positions


def test_round_up():
    assert [round_up(n, 8) for n in (0, 1, 8, 9)] == [0, 8, 8, 16]


def test_rows_are_padded_on_the_right():
    batch = pad_rows([[1, 2], (), np.array([3])], length=3, fill=7)
    assert batch.tolist() == [[1, 2, 7], [7, 7, 7], [3, 7, 7]]
    assert batch.dtype == np.int32
    assert pad_rows([[1]], length=1, dtype=np.float32).dtype == np.float32


def test_positions_restart_with_each_segment():
    segments = np.array([[1, 1, 2, 2, 2], [1, 1, 1, 1, 1]])
    assert segment_positions(segments).tolist() == [[0, 1, 0, 1, 2], [0, 1, 2, 3, 4]]
    assert segment_positions(segments[0]).tolist() == [0, 1, 0, 1, 2]
