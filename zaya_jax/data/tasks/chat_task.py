"""Any task asked in a chat: the prompt is a user's message, the answer the assistant's."""

import dataclasses
import random

from zaya_jax.data.chat import ChatTemplate
from zaya_jax.data.tasks.base import Problem, Task


@dataclasses.dataclass(frozen=True)
class ChatTask(Task):
    """`task` behind a template. Its problems have the rendered prompt, and the task's own problem as their answer.

    Raises:
      ValueError: (every problem) the template writes special tokens into a prompt.
    """

    task: Task
    template: ChatTemplate

    @property
    def name(self) -> str:  # pyrefly: ignore[bad-override] (a class's own elsewhere)
        return self.task.name

    @property
    def tuning_split(self) -> str:  # pyrefly: ignore[bad-override]
        return self.task.tuning_split

    def problem(self, split: str, index: int, seed: int) -> Problem:
        return self._asked(self.task.problem(split, index, seed))

    def problems(self, split: str, count: int, seed: int) -> list[Problem]:
        return [self._asked(problem) for problem in self.task.problems(split, count, seed)]

    def check(self, problem: Problem, completion: str) -> bool:
        return self.task.check(problem.answer, completion)

    def check_line(self, problem: Problem, line: str) -> bool:
        return self.task.check_line(problem.answer, line)

    def sample(self, rng: random.Random) -> Problem:
        return self._asked(self.task.sample(rng))

    def _asked(self, problem: Problem) -> Problem:
        prompt = self.template.prompt([{"role": "user", "content": problem.prompt}])
        return dataclasses.replace(problem, prompt=prompt, answer=problem)
