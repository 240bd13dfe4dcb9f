"""Make the model of a workdir smaller: `lmjax compress`.

Each way of doing so is a `Step`, from a model to a smaller one. `workdir.compress` is
the whole story.
"""
