"""Formats of labelled examples: JSON lines, tables, CoNLL columns, SQuAD, TFDS.

In every format an example is a dict of named fields, can be read at random, and knows
its file and line. `data/features` turns examples into rows of tokens.
"""
