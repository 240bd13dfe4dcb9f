"""Training: the loop, the step and its compilation, evaluation, optimizers.

`loop.py` is the whole run, `step.py` the pure function of one step. Models, losses and
data are built elsewhere and handed in.
"""
