"""From files to batches: NumPy, grain and TFDS, on the host.

Sources, tokenizers, stores, the order of samples, and how examples become rows. Never
imports jax or flax, so that worker processes start fast. README.md has a picture.
"""
