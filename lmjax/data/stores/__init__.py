"""Encoded text and examples on disk, memory-mapped, reused by fingerprint.

Token stores hold running text, example stores the rows of examples. They are built
once, in several processes or jobs. The order in which they are read is decided in
`lm/` and `bucketing`, not here.
"""
