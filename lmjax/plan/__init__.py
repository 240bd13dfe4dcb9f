"""Plan a run for a machine you do not have: memory, FLOPs, collectives, time.

The real training step is compiled for that machine, in a process of its own, and what
the compiler made is read. `plan.plan` is the whole story.
"""
