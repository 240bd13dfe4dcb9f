"""Formats of labelled examples: JSON lines, tables, CoNLL columns, SQuAD, TFDS.

Whatever the format, an example is a dict of named fields that can be read at random and
knows its file and line. What a task makes of it is in `data/features`.
"""
