"""Any task asked in a chat: the prompt is a user's message, the answer the assistant's."""

import dataclasses
import random

from zaya_jax.tasks.base import Problem, Task
from zaya_jax.text.templates import ChatTemplate, question
from zaya_jax.text.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class ChatTask(Task):
    """`task` after a template: the same problems, put to a model in another way."""

    task: Task
    template: ChatTemplate

    @property
    def name(self) -> str:  # pyrefly: ignore[bad-override] (a class's own elsewhere)
        return self.task.name

    @property
    def tuning_split(self) -> str:  # pyrefly: ignore[bad-override]
        return self.task.tuning_split

    def encode(self, problem: Problem, tokenizer: Tokenizer) -> list[int]:
        return question(problem.prompt, tokenizer, self.template)

    def problem(self, split: str, index: int, seed: int) -> Problem:
        return self.task.problem(split, index, seed)

    def problems(self, split: str, count: int, seed: int) -> list[Problem]:
        return self.task.problems(split, count, seed)

    def check(self, problem: Problem, completion: str) -> bool:
        return self.task.check(problem, completion)

    def reward(self, problem: Problem, completion: str) -> float:
        return self.task.reward(problem, completion)

    def check_line(self, problem: Problem, line: str) -> bool:
        return self.task.check_line(problem, line)

    def sample(self, rng: random.Random) -> Problem:
        return self.task.sample(rng)
