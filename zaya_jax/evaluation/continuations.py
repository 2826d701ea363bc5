"""Sampling without a task: held-out text is continued, and how fast and how likely is all that can be said of it."""

import dataclasses
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from zaya_jax.architecture import Zaya
from zaya_jax.data.pipeline import Source
from zaya_jax.data.splits import stable_hash
from zaya_jax.errors import UserError
from zaya_jax.evaluation.lm_eval_adapter import score
from zaya_jax.evaluation.task_accuracy import EvaluationProtocol, TaskResult
from zaya_jax.tasks.base import Problem, Task
from zaya_jax.text.tokenizers import Tokenizer

PREFIX = 128  # characters of a prompt
APART = 1024  # characters from one prompt to the next in a document


@dataclasses.dataclass(frozen=True)
class Continuations(Task):
    """Prompts that are stretches of held-out documents; nothing is a right answer, so `check` is always None."""

    name: str  # pyrefly: ignore[bad-override] (a task's class has it; of text there is one for each source)
    open: Callable[[str], Source] = dataclasses.field(repr=False, compare=False)  # a split's documents

    def problems(self, split: str, count: int, seed: int) -> list[Problem]:
        """The first `count` prompts: the documents' beginnings, then what stands further in. `seed` changes nothing.

        Raises UserError for a split whose documents are all shorter than a prompt.
        """
        found: list[Problem] = []
        for text in self._prefixes(self.open(split)):
            if len(found) == count:
                break
            found.append(Problem(text, "", f"{stable_hash(text):016x}", None))
        if not found:
            raise UserError(
                f"evaluate.tasks: the {split} documents of {self.name} are all shorter than {PREFIX} characters"
            )
        return found

    def problem(self, split: str, index: int, seed: int) -> Problem:
        return self.problems(split, index + 1, seed)[index]

    def sample(self, rng: random.Random) -> Problem:
        raise NotImplementedError("prompts stand in documents; they are not drawn")

    def check(self, problem: Problem, completion: str) -> Any:
        return None

    def check_line(self, problem: Problem, line: str) -> Any:
        return None

    @staticmethod
    def _prefixes(documents: Source) -> Iterator[str]:
        """Every document's first stretch, then every document's second one, and so on; each begins a line."""
        texts = range(len(documents))
        number = 0
        while texts:
            long_enough = []
            for i in texts:
                text = documents[i]["text"]
                start = text.rfind("\n", 0, number * APART) + 1
                if start + PREFIX < len(text):
                    long_enough.append(i)
                    if text[start : start + PREFIX].strip():
                        yield text[start : start + PREFIX]
            texts, number = long_enough, number + 1


def log_probability(
    model: Zaya, variables: Any, tokenizer: Tokenizer, task: Task, result: TaskResult, protocol: EvaluationProtocol
) -> float:
    """ln p of what a sampler wrote under the autoregressive model at temperature 1, in nats a token."""
    prompts = [task.encode(problem, tokenizer) for problem in protocol.problems(task)]
    pairs = [(prompts[i // result.samples], tokens) for i, tokens in enumerate(result.tokens)]
    scores = [total for total, _ in score(model, variables, pairs, protocol.batch)]
    return float(np.sum(scores) / sum(map(len, result.tokens)))
