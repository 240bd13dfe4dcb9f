"""Training objectives: losses, their metrics, and predictions.

One class for each task; `task.py` has the contract, `registry.py` the table. Batches
come from `lmjax/data`, networks from `lmjax/models`; no file or tokenizer is read here.
"""

from lmjax.tasks.registry import TASKS, build
from lmjax.tasks.task import EvalOutput, LossOutput, Task

__all__ = ["TASKS", "EvalOutput", "LossOutput", "Task", "build"]
