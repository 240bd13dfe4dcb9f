"""The files of a run: its workdir, checkpoints and metric log.

The only package that imports Orbax. What to save, and when, is decided in
`lmjax/training`.
"""
