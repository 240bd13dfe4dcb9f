"""Where running text comes from: files, lines, TFDS, Python's own library.

A source is a sequence of documents with a fingerprint. Labelled examples are in
`data/formats`; nothing here knows tokens.
"""
