"""Hugging Face directories in and out: config, weights, tokenizer, adapters.

One table for each family of models in `families/`, one engine that reads tables both
ways. PyTorch is never imported. README.md has a picture.
"""
