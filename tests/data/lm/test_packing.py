import numpy as np
import pytest

from lmjax.data.lm import packing
from lmjax.data.lm.windows import independent_windows

BOS, EOS = 257, 256


def reference(texts, start, *, length, bos_id, isolate, circular):
    """Cut one window token by token."""
    stream = [
        (token, i == 0)
        for text in texts
        for i, token in enumerate([*text.encode(), EOS])
    ]
    rows = {k: [] for k in ("tokens", "targets", "weights", "segments", "positions")}
    segment, position = 1, 0
    for k in range(length):
        at = start + k
        if at >= len(stream) and (not circular or k >= len(stream)):
            values = EOS, EOS, 0, 0, 0
        else:
            target, begins = stream[at % len(stream)]
            previous = stream[(at - 1) % len(stream)][0]
            if isolate and begins:
                segment, position = segment + (k > 0), 0
            token = bos_id if begins and bos_id is not None else previous
            weight = not (isolate and begins and bos_id is None)
            values = token, target, weight, segment, position
            position += 1
        for name, value in zip(rows, values, strict=True):
            rows[name].append(value)
    return rows


@pytest.mark.parametrize("bos_id", [None, BOS])
@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize("circular", [True, False])
@pytest.mark.parametrize(("count", "longest"), [(60, 6), (12, 90), (1, 9)])
def test_windows_match_the_slow_reference(
    make_store, random_texts, bos_id, isolate, circular, count, longest
):
    texts = random_texts(seed=count, count=count, longest=longest)
    store = make_store(texts)
    starts = np.arange(store.num_tokens + (not circular))
    for length in (1, 7, 32):
        batch = packing.cut_windows(
            [store],
            independent_windows(starts, length=length),
            length=length,
            bos_id=bos_id,
            eos_id=EOS,
            isolate=isolate,
            circular=circular,
        )
        options = {"bos_id": bos_id, "isolate": isolate, "circular": circular}
        rows = [reference(texts, a, length=length, **options) for a in starts]
        for name, value in batch.items():
            expected = np.array([row[name] for row in rows])
            np.testing.assert_array_equal(value, expected, err_msg=name)
            dtype = np.float32 if name == "weights" else np.int32
            assert value.dtype == dtype and value.shape == (len(starts), length)
