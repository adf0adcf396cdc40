"""Training: the task-independent trainer, its loop and state, and the classification task."""

from wsfvit.train.task import Task
from wsfvit.train.trainer import Result, Trainer, run_task

__all__ = ["Result", "Task", "Trainer", "run_task"]
