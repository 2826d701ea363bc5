"""Verifiable task families: problems whose answers a program can check.

A task of your own is a subclass of `Task` and `register_task`, in this package or in a config file (docs/extending.md).
Imports sandbox, data and text; no model.
"""

from dataclasses import fields
from typing import Any

from zaya_jax.checks import no_such, unknown
from zaya_jax.registry import Owners, caller
from zaya_jax.tasks.addition import Addition
from zaya_jax.tasks.base import Problem, Task, TaskSource
from zaya_jax.tasks.chat_task import ChatTask
from zaya_jax.tasks.countdown import Countdown
from zaya_jax.tasks.gsm_symbolic import GsmSymbolic
from zaya_jax.tasks.human_eval import HumanEval
from zaya_jax.tasks.list_programs import ListPrograms

# Families whose problems are drawn, so that they can be trained on; and given sets of problems.
TASKS: dict[str, type[Task]] = {task.name: task for task in (Addition, Countdown, ListPrograms, GsmSymbolic)}
BENCHMARKS: dict[str, type[Task]] = {task.name: task for task in (HumanEval,)}
_OWNERS = Owners("task")

__all__ = ["BENCHMARKS", "TASKS", "ChatTask", "Problem", "Task", "TaskSource", "make_task", "register_task"]


def register_task(task: type[Task]) -> type[Task]:
    """Makes a task known by its `name`; a class decorator. The same file, read again, replaces its task.

    Raises:
      UserError: the name is one of this package's tasks, of another file's, or none that a config and a file can hold.
    """
    TASKS[_OWNERS.claim(getattr(task, "name", None), caller(), TASKS | BENCHMARKS)] = task
    return task


def make_task(name: str, **options: Any) -> Task:
    """The task or benchmark called `name`. UserError for an unknown name or option, or a value out of range."""
    every = TASKS | BENCHMARKS
    if name not in every:
        raise no_such("task", name, every)
    known = [field.name for field in fields(every[name])]
    for option in options:
        if option not in known:
            raise unknown(f"task {name}: option {option}", option, known)
    return every[name](**options)
