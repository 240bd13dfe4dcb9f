"""Language modelling on running text: windows, packing, objectives, the loader.

Each row of a batch is a pure function of (seed, step). Tasks that learn from examples
use `data/bucketing.py` and `data/batches.py` instead.
"""
