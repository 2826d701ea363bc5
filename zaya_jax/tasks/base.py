"""What a verifiable task is: problems drawn by index, a checker, and a hold-out by construction."""

import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, ClassVar

from zaya_jax.checks import COUNT, Integer, check
from zaya_jax.data.splits import SPLITS, require_split, split_of
from zaya_jax.errors import UserError
from zaya_jax.text.templates import question
from zaya_jax.text.tokenizers import Tokenizer

SPLIT_PERCENTS = (80, 10, 10)
MAX_ATTEMPTS = 10_000  # A split of one instance in 1,000 is still found with certainty 0.99995.


@dataclass(frozen=True)
class Problem:
    """One problem. A training document is `prompt + solution`; the solution ends with a newline.

    `identity` names the underlying instance: its hash decides the only split it occurs in.
    `answer` is what the task's checker needs and the prompt may hide.
    """

    prompt: str
    solution: str
    identity: str
    answer: Any


@dataclass(frozen=True)
class Task(ABC):
    """A family of problems. Subclasses say how to draw one and how to check an answer."""

    name: ClassVar[str]
    answers: ClassVar[str] = ""  # what an answer looks like and what of it is judged: a sentence for a report's readers
    tuning_split: ClassVar[str] = "validation"  # what may choose a setting that is judged on "test"

    def problem(self, split: str, index: int, seed: int) -> Problem:
        """The `index`-th problem of a split: a pure function of its arguments and the options.

        Raises UserError for an unknown split, a negative index, or options under which no
        instance falls in `split`.
        """
        require_split(split)
        check("index", index, Integer(0))
        rng = _generator(self.name, split, index, seed)
        for _ in range(MAX_ATTEMPTS):
            problem = self.sample(rng)
            if split_of(problem.identity, SPLIT_PERCENTS) == split:
                return problem
        raise UserError(f"split: {self} has no instance that falls in {split!r}")

    def problems(self, split: str, count: int, seed: int) -> list[Problem]:
        """The first `count` problems of a split; a benchmark has no more than it has."""
        return [self.problem(split, index, seed) for index in range(count)]

    def encode(self, problem: Problem, tokenizer: Tokenizer) -> list[int]:
        """What a model is given to answer."""
        return question(problem.prompt, tokenizer)

    def check(self, problem: Problem, completion: str) -> bool:
        """Whether `completion`, up to its first newline or its end (EOS), answers `problem`."""
        return self.check_line(problem, completion.split("\n", 1)[0])

    def reward(self, problem: Problem, completion: str) -> float:
        """What reinforcement learning pays for a completion, 0 .. 1: 1 if it is right; a task may pay for less."""
        return float(bool(self.check(problem, completion)))

    @abstractmethod
    def sample(self, rng: random.Random) -> Problem:
        """One problem of any split, using no randomness but `rng`."""

    @abstractmethod
    def check_line(self, problem: Problem, line: str) -> bool:
        """Whether one line answers `problem`. Must refuse any text quickly and never execute it."""


class TaskSource:
    """Problems as documents for a pipeline: `source[i]` is {"text", "prompt", "name"}, all str; prompt begins text."""

    def __init__(self, task: Task, split: str, seed: int, size: int):
        """`size` problems of `split`; grain shuffles 32-bit indices. UserError for a size out of range."""
        require_split(split)
        check("size", size, COUNT)
        task.problem(split, 0, seed)  # Options that leave the split empty fail here, not later.
        self.task, self.split, self.seed, self.size = task, split, seed, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, str]:
        if not 0 <= index < self.size:
            raise IndexError(f"index: got {index}, must be in [0, {self.size})")
        problem = self.task.problem(self.split, index, self.seed)
        name = f"{self.task.name}/{self.split}/{index}"
        return {"text": problem.prompt + problem.solution, "prompt": problem.prompt, "name": name}


def _generator(name: str, split: str, index: int, seed: int) -> random.Random:
    key = f"{name}/{SPLITS.index(split)}/{index}/{seed}".encode()
    return random.Random(int.from_bytes(blake2b(key, digest_size=8).digest(), "little"))
