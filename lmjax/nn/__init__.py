"""Layers: they know shapes and logical axes, not tasks.

Each parameter names its axes; activations are constrained by name. Whole networks are
in `lmjax/models`; recurrent layers in `nn/recurrent`.
"""
