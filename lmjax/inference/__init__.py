"""Inference with a trained model: `lmjax.load`, prediction, scoring, files of them.

Reads workdirs and never trains. Sampling and beam search are in `lmjax/generate`.
"""
