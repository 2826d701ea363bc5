"""Countdown: "3,7,12=>33:" -> "3*7+12". Reach the target with + - * and the given numbers.

Each number may be used at most once, so a subset will do; many answers are right. Targets that
equal one of the numbers are not posed, since copying it would be an answer.
"""

import random
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from zaya_jax.checks import Integer, check
from zaya_jax.tasks.base import Problem, Task
from zaya_jax.tasks.expressions import Refused, evaluate_arithmetic

PARSES = 0.1  # the reward of an expression of the given numbers that misses the target
Term = tuple[int, str, bool]  # Value, text, and whether it is a bare sum or difference.


@dataclass(frozen=True)
class Countdown(Task):
    """`numbers` numbers in [1, largest], a target in [1, largest_target]; multisets held out.

    Three numbers up to 12 have 364 multisets; 4 numbers up to 20 (8,855) are harder and leave the
    held-out splits more varied.
    """

    name: ClassVar[str] = "countdown"
    answers: ClassVar[str] = (
        "An answer is an expression of the given numbers that makes the number after =>: "
        "3,7,12=>33: is answered 3*7+12."
    )
    numbers: int = 3
    largest: int = 12
    largest_target: int = 100

    def __post_init__(self) -> None:
        check("numbers", self.numbers, Integer(2, 6))
        check("largest", self.largest, Integer(3, 99))
        check("largest_target", self.largest_target, Integer(self.largest, 9999))

    def sample(self, rng: random.Random) -> Problem:
        while True:
            numbers = [1 + int(rng.random() * self.largest) for _ in range(self.numbers)]
            value, text, _ = _random_expression(rng, numbers)
            if 1 <= value <= self.largest_target and value not in numbers:
                break
        return Problem(
            prompt=f"{','.join(map(str, numbers))}=>{value}:",
            solution=f"{text}\n",
            identity=",".join(map(str, sorted(numbers))),
            answer=(tuple(numbers), value),
        )

    def check_line(self, problem: Problem, line: str) -> bool:
        numbers, target = problem.answer
        try:
            value, used = evaluate_arithmetic(line)
        except Refused:
            return False
        return value == target and not Counter(used) - Counter(numbers)

    def reward(self, problem: Problem, completion: str) -> float:
        """1 if right; PARSES for another expression of the given numbers, which shows that the form is known."""
        line = completion.split("\n", 1)[0]
        try:
            _, used = evaluate_arithmetic(line)
        except Refused:
            return 0.0
        if self.check_line(problem, line):
            return 1.0
        return 0.0 if Counter(used) - Counter(problem.answer[0]) else PARSES


def _random_expression(rng: random.Random, numbers: list[int]) -> Term:
    """Joins two random terms by a random operator until one term, using every number, is left."""
    terms: list[Term] = [(number, str(number), False) for number in numbers]
    while len(terms) > 1:
        left = terms.pop(int(rng.random() * len(terms)))
        right = terms.pop(int(rng.random() * len(terms)))
        terms.append(_join("+-*"[int(rng.random() * 3)], left, right))
    return terms[0]


def _join(operator: str, left: Term, right: Term) -> Term:
    if operator == "+":
        return left[0] + right[0], f"{left[1]}+{right[1]}", True
    if operator == "-":
        if left[0] < right[0]:  # No negative intermediate results: as in the game.
            left, right = right, left
        return left[0] - right[0], f"{left[1]}-{_bracketed(right)}", True
    return left[0] * right[0], f"{_bracketed(left)}*{_bracketed(right)}", False


def _bracketed(term: Term) -> str:
    return f"({term[1]})" if term[2] else term[1]
