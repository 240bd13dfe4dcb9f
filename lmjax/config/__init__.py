"""The experiment config: frozen dataclasses, how they are parsed, and the errors.

One file for each section, `experiment.py` for the whole, `parse.py` for the mechanism.
No jax, no files of a run; after parsing nobody asks a config whether it has a field.
"""
