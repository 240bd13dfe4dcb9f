"""Decoding: sampling, beam search, scoring and embedding of texts by a trained model.

Models supply `prefill`, `decode_step` and a decode state; nothing here knows their
kinds. Files and the command line are one level up, in `lmjax/inference`.
"""
