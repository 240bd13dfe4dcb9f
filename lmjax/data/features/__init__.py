"""How an example of each task becomes rows of a batch, and outputs an answer.

One class for each task, and the table of them in `registry.py`. NumPy only: losses and
the model's side of a task are in `lmjax/tasks`.
"""
