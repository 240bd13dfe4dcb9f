"""Recurrent layers: cells, the scan over steps, and attention to a source.

Each carries a state (B, ...) from step to step. Transformer layers and all else that is
not recurrent are one level up.
"""
