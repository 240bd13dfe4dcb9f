"""Language modeling on running text: windows, packing, objectives, batches.

Each row of a batch is a pure function of the seed and the number of its sample. Tasks
on examples do not belong here: see `bucketing` and `batches`.
"""
