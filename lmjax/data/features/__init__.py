"""From an example of each task to rows of a batch, and from outputs to a prediction.

One class for each task; `features.py` has the contract, `registry.py` the table. NumPy
only: losses and networks are in `lmjax/tasks` and `lmjax/models`.
"""
