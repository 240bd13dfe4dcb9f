"""Corpora cleaned: documents left out, and texts changed, by rules with names.

`clean.py` is the whole story.
"""
