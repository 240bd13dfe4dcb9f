"""From files to batches: NumPy, grain and TFDS, on the host.

Sources, formats, tokenizers, stores, the order of samples, and the rows of a batch.
Never imports jax or flax, so that worker processes start fast; README.md has a picture.
"""
