"""A trained model in use: `lmjax.load`, predictions, scores, and files of them.

Reads workdirs, never trains. Sampling and search themselves are in `lmjax/generate`.
"""
