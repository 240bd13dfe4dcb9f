"""Layers: Transformer blocks and stacks, attention kernels, decode states, parameters.

They know shapes and logical axes, by which parameters and activations are sharded, but
no tasks. Whole networks are in `lmjax/models`, recurrent layers in `nn/recurrent`.
"""
