"""Addition with worked columns: "37+486=" -> "7+6+0=13,3+8+1=12,0+4+1=05:523".

Each step is digit + digit + carry = two-digit sum, from the least significant column on, as many
columns as the longer number has; the answer stands after the colon.
"""

import random
from dataclasses import dataclass
from typing import ClassVar

from zaya_jax.checks import Integer, check
from zaya_jax.tasks.base import Problem, Task


@dataclass(frozen=True)
class Addition(Task):
    """Sums of two numbers of 1 to `digits` digits; unordered pairs are held out."""

    name: ClassVar[str] = "addition"
    answers: ClassVar[str] = (
        "An answer works from the last digits on, column by column (digit + digit + carry = carry and digit): "
        "37+486= is answered 7+6+0=13,3+8+1=12,0+4+1=05:523. What follows the colon is judged."
    )
    digits: int = 3

    def __post_init__(self) -> None:
        check("digits", self.digits, Integer(1, 18))

    def sample(self, rng: random.Random) -> Problem:
        a, b = self._number(rng), self._number(rng)
        return Problem(
            prompt=f"{a}+{b}=",
            solution=f"{_worked_columns(a, b)}:{a + b}\n",
            identity=f"{min(a, b)}+{max(a, b)}",
            answer=str(a + b),
        )

    def check_line(self, problem: Problem, line: str) -> bool:
        """The text after the last colon must be the sum; the worked columns are not judged."""
        _, colon, answer = line.rpartition(":")
        return bool(colon) and answer == problem.answer

    def _number(self, rng: random.Random) -> int:
        length = 1 + int(rng.random() * self.digits)
        lowest = 10 ** (length - 1) if length > 1 else 0
        return rng.randrange(lowest, 10**length)


def _worked_columns(a: int, b: int) -> str:
    columns, carry = [], 0
    for _ in range(max(len(str(a)), len(str(b)))):
        (a, x), (b, y) = divmod(a, 10), divmod(b, 10)
        columns.append(f"{x}+{y}+{carry}={x + y + carry:02d}")
        carry = (x + y + carry) // 10
    return ",".join(columns)
