"""Encoded text and examples on disk, memory-mapped, reused by fingerprint.

Token stores hold running text, example stores the rows of examples. They are built
once, by several jobs if need be; which window is read when is decided elsewhere.
"""
