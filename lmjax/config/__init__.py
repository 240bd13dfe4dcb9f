"""The config of an experiment: frozen dataclasses, their parser, and its error texts.

One file for each section, `experiment.py` for the whole, `parse.py` for the parser, and
`compatibility.py` for what model, data and task need of each other. Nothing here
imports jax or reads the files of a run.
"""
