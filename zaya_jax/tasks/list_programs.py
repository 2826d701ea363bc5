"""Programming by example: "[3,1,2]=>[1,2,3];...:" -> "sorted(x)".

A program is a real Python expression over the list x, one or two of fourteen operations composed.
Any expression of the whitelisted language that agrees with the reference on the shown and on five
hidden inputs is right.
"""

import ast
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from zaya_jax.checks import Integer, check
from zaya_jax.tasks.base import Problem, Task
from zaya_jax.tasks.expressions import Refused, parse_list_program, run_list_program

HIDDEN_INPUTS = 5
LARGEST = 9
PARTLY = 0.1  # the reward of a program that is right for all lists but one, nearly

# Expression over x (x stands in it once) and the same thing as a function, which is faster than
# the evaluator; a test holds the two together.
OPERATIONS: tuple[tuple[str, Callable[[list[int]], list[int]]], ...] = (
    ("sorted(x)", sorted),
    ("sorted(set(x))", lambda x: sorted(set(x))),
    ("x[::-1]", lambda x: x[::-1]),
    ("x[1:]", lambda x: x[1:]),
    ("x[:-1]", lambda x: x[:-1]),
    ("x[::2]", lambda x: x[::2]),
    ("[v+1 for v in x]", lambda x: [v + 1 for v in x]),
    ("[v-1 for v in x]", lambda x: [v - 1 for v in x]),
    ("[v*2 for v in x]", lambda x: [v * 2 for v in x]),
    ("[v*v for v in x]", lambda x: [v * v for v in x]),
    ("[-v for v in x]", lambda x: [-v for v in x]),
    ("[abs(v) for v in x]", lambda x: [abs(v) for v in x]),
    ("[v for v in x if v%2==0]", lambda x: [v for v in x if v % 2 == 0]),
    ("[v for v in x if v>0]", lambda x: [v for v in x if v > 0]),
)


@dataclass(frozen=True)
class ListPrograms(Task):
    """Programs of 1 to `max_operations` operations shown by `examples` input-output pairs.

    Held out by (shown inputs, what the program makes of them), so no prompt of one split occurs in
    another; the same short program does occur in all of them.
    """

    name: ClassVar[str] = "list_programs"
    answers: ClassVar[str] = (
        "An answer is a Python expression in x that turns each list shown into what follows its =>: "
        "[3,1,2]=>[1,2,3];...: is answered sorted(x)."
    )
    max_operations: int = 2
    examples: int = 3

    def __post_init__(self) -> None:
        check("max_operations", self.max_operations, Integer(1, 3))
        check("examples", self.examples, Integer(1, 8))

    def sample(self, rng: random.Random) -> Problem:
        while True:
            program, function = self._program(rng)
            inputs = [_random_list(rng) for _ in range(self.examples + HIDDEN_INPUTS)]
            cases = tuple((x, function(x)) for x in inputs)
            shown = cases[: self.examples]
            # Examples that show nothing but emptiness, or no change at all, pose no problem.
            if any(y for _, y in shown) and any(x != y for x, y in shown):
                break
        pairs = ";".join(f"{x}=>{y}" for x, y in shown).replace(" ", "")
        return Problem(
            prompt=f"{pairs}:",
            solution=f"{program}\n",
            identity=pairs,
            answer=cases,
        )

    def check_line(self, problem: Problem, line: str) -> bool:
        try:
            program = parse_list_program(line)
            return all(run_list_program(program, x) == y for x, y in problem.answer)
        except Refused:
            return False

    def reward(self, problem: Problem, completion: str) -> float:
        """1 if right; else PARTLY times the share of lists that the program turns into what they should become."""
        try:
            program = parse_list_program(completion.split("\n", 1)[0])
        except Refused:
            return 0.0
        right = sum(self._agrees(program, x, y) for x, y in problem.answer)
        return 1.0 if right == len(problem.answer) else PARTLY * right / len(problem.answer)

    @staticmethod
    def _agrees(program: ast.expr, x: list[int], y: list[int]) -> bool:
        try:
            return run_list_program(program, x) == y
        except Refused:
            return False

    def _program(self, rng: random.Random) -> tuple[str, Callable[[list[int]], list[int]]]:
        chosen = [
            OPERATIONS[int(rng.random() * len(OPERATIONS))] for _ in range(1 + int(rng.random() * self.max_operations))
        ]
        text = "x"
        for template, _ in chosen:
            text = substitute(template, text)

        def function(x: list[int]) -> list[int]:
            for _, operation in chosen:
                x = operation(x)
            return x

        return text, function


def substitute(template: str, text: str) -> str:
    """`template` with `text` in the place of its x."""
    return template.replace("x", text, 1)


def _random_list(rng: random.Random) -> list[int]:
    length = 3 + int(rng.random() * 3)
    return [int(rng.random() * (2 * LARGEST + 1)) - LARGEST for _ in range(length)]
