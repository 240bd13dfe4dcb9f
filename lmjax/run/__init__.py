"""What a run leaves on disk: the workdir, its checkpoints and its metric log.

The only place that imports Orbax. What is worth saving, and when, is decided in
`lmjax/training`.
"""
