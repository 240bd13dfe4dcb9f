"""Training: the loop, the step and its compilation, evaluation, optimizers.

`loop.py` is the whole run in chapters, `step.py` the pure function of one step. Models,
losses and data come from other packages.
"""
