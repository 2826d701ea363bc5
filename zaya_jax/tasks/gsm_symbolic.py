"""GSM-Symbolic: grade-school word problems with a worked answer, from templates whose names and numbers are drawn.

The templates are reasoning-gym's (Apache-2.0; the `eval` extra), after Mirzadeh et al. 2024 (arXiv 2410.05229). Its
data set is a pure function of seed and index but knows no splits, so the templates' own functions are called here, each
on the generator that `Task.problem` seeds.

The worked answer is one line: the package's lines joined by "; ", "#### N" last. Nothing is lost by it (a line break
only ends a step), and it keeps what holds for every task here: a prompt and its answer are one line.
"""

import functools
import importlib
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar

from zaya_jax.checks import Integer, check
from zaya_jax.errors import UserError
from zaya_jax.tasks.base import Problem, Task

MARK = "####"

# The templates used, shortest document first (at most 285 to 965 characters). Of the 85 that the package calls good,
# these passed on 4,000 draws each: every equation of the worked answer holds, its last line is the answer, a whole
# number; all text is ASCII; and there are instances enough to hold some out (1,000 different sets of numbers).
TEMPLATES = (
    50, 20, 82, 39, 56, 57, 34, 67, 8, 59, 14, 64, 54, 30, 80, 71, 12, 70, 88, 0, 1, 42, 96, 7, 38, 94, 45, 5, 17,
)  # fmt: skip

DIFFICULTY = 1.0  # the only one the package has
NUMBER = re.compile(r"[0-9]+")
# A whole or decimal number of at most 12 digits before the point, commas only between thousands.
FINAL = re.compile(r" *(-?(?:[0-9]{1,12}|[0-9]{1,3}(?:,[0-9]{3}){1,3})(?:\.[0-9]{1,6})?)\.? *")


@dataclass(frozen=True)
class GsmSymbolic(Task):
    """`templates` templates, shortest first; the numbers of an instance are held out, whatever names stand beside them.

    Eight templates make documents of 350 characters (at most 412) that need + - * / on numbers of up to four digits.
    """

    name: ClassVar[str] = "gsm_symbolic"
    answers: ClassVar[str] = "An answer is worked out in words; the number after #### is judged."
    templates: int = 8

    def __post_init__(self) -> None:
        check("templates", self.templates, Integer(1, len(TEMPLATES)))

    def sample(self, rng: random.Random) -> Problem:
        """Raises UserError without the package."""
        template = TEMPLATES[int(rng.random() * self.templates)]
        drawn = _generators()[template](rng, DIFFICULTY)
        question = " ".join(drawn["question"].split())
        steps = [line.strip().rstrip(".") for line in drawn["metadata"]["answer_cot"].splitlines()]
        return Problem(
            prompt=f"{question} Answer:",
            solution=f" {'; '.join(steps)}\n",
            identity=f"{template}:{','.join(NUMBER.findall(question))}",
            answer=drawn["answer"],
        )

    def check_line(self, problem: Problem, line: str) -> bool:
        """Whether the line holds "####" once and after it nothing but the answer.

        Commas between thousands, a last full stop and spaces are allowed. Two marks are refused: which one is meant?
        """
        _, mark, rest = line.partition(MARK)
        found = FINAL.fullmatch(rest) if mark else None
        return found is not None and Decimal(found[1].replace(",", "")) == Decimal(problem.answer)


@functools.cache
def _generators() -> dict[int, Callable[[random.Random, float], dict[str, Any]]]:
    """The package's function of each of TEMPLATES. UserError without the package."""
    package = "reasoning_gym.arithmetic.gsm_symbolic"
    try:
        halves = [importlib.import_module(f"{package}.generators_{half}") for half in ("00_49", "50_99")]
    except ImportError:
        raise UserError('task gsm_symbolic: needs the reasoning-gym package: pip install -e ".[eval]"') from None
    return {template: getattr(halves[template // 50], f"generate_{template}") for template in TEMPLATES}
