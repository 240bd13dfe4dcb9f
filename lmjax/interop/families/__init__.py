"""One file for each family of Hugging Face models: its config.json and its tensors.

A family is data: how a config.json corresponds to a model config, and which tensor
holds which parameter. The code that reads and writes files is in `lmjax/interop`.
"""
