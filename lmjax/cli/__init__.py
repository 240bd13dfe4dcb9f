"""The command line: one thin function for each verb, and the tables it prints.

Verbs import what they need when they run, so that a mistake in a config or a flag is
reported before any device is touched. Nothing imports this package.
"""
