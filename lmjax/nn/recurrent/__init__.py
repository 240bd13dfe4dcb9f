"""Recurrent layers: cells, the scan over steps, and attention to a source.

Everything here carries a state (B, ...) from step to step. Transformer layers are one
level up.
"""
