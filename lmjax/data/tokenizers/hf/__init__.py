"""Tokenizers in Hugging Face's formats, read and written.

The tokenizers library reads a tokenizer.json. Older files of WordPiece and byte-level
BPE are converted to one; SentencePiece models have a class of their own. Nothing here
depends on the weights of a model.
"""
