"""What is learned: losses, metrics, and which features a batch needs."""

from lmjax.tasks.task import Task, build

__all__ = ["Task", "build"]
