"""GGUF, the file format of llama.cpp: Llama and its variants, in and out.

`settings` has the settings of a model, `tensors` the names, orders and number formats
of its tensors, `vocabulary` its tokenizer; `reading` and `writing` bring them together.
github.com/ggml-org/ggml/blob/master/docs/gguf.md describes the format; the package
`gguf` reads and writes its bytes.
"""
