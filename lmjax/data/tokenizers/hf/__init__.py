"""Tokenizers in Hugging Face's layouts, read and written.

`tokenizer.json` through the tokenizers library, and vocabularies in older files
(WordPiece, byte-level BPE, SentencePiece). Nothing here knows a model's weights.
"""
