"""Tokenizers: bytes, SentencePiece, words, and those of Hugging Face in `hf/`.

One protocol, `Tokenizer`, for training, loading, encoding and decoding; word vectors
and stop words beside them. No models, no batches.
"""
