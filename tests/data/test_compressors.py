import numpy as np

from lmjax.data.compressors import bits_per_byte


def test_bits_per_byte_of_noise_and_of_repeated_text(texts):
    random = np.random.default_rng(0).integers(0, 128, 50_000).astype(np.uint8)
    bits = bits_per_byte([texts([random.tobytes().decode()])])
    assert all(7.0 < value < 7.3 for value in bits.values())
    bits = bits_per_byte([texts(["a" * 50_000]), texts(["a" * 50_000])])
    assert all(value < 0.02 for value in bits.values())
