"""Devices and processes: the mesh, sharding rules, batches onto devices.

What is split how is decided here and nowhere else, and processes that train together
talk to each other here. Knows no model and no data.
"""
