"""Hugging Face directories in and out: config, weights, tokenizer, adapters.

Each family of models is a table in `families/`; one engine reads the tables in both
directions. PyTorch is never imported. README.md has a picture.
"""
