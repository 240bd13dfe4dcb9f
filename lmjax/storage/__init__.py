"""Object storage: addresses such as s3://bucket/runs/a in place of a path.

`open_path` turns either into an object with the methods of `pathlib.Path`; on a local
path nothing here does anything. fsspec and its file systems are imported at the first
access to a remote one.
"""
