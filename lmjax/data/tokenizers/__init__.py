"""Tokenizers: bytes, SentencePiece, words, and those of Hugging Face in `hf/`.

All follow one protocol, `tokenizer.Tokenizer`. Word vectors and stop words are here,
too. No models, no batches.
"""
