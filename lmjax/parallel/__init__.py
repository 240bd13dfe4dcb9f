"""Devices and processes: the mesh, sharding rules, batches onto devices.

How arrays are split is decided in `sharding.py` alone; the processes of a run exchange
what only one of them knows in `processes.py`. Knows no model and no data.
"""
