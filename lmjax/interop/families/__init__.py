"""One file for each family of Hugging Face models: its config and its tensors.

A family is data: how config.json maps to a `ModelConfig` and back, and which tensor is
which parameter. What reads and writes tensors is in `lmjax/interop`.
"""
