"""Batches that the policy makes itself: problems are drawn, answered in groups, judged, and laid out as rows.

A batch is what `zaya_jax.data.pipeline` makes, one rollout a row ("answer" marks what the policy wrote), and besides:
advantage, weight (float32 [B]: see `rollouts.advantages`), log_rollout (float32 [B, T]: log-probabilities that the
sampler recorded, where each token stands), which (float32 [B, B], the identity), and where they are needed log_old and
log_start (likewise, under the policy before the first of a batch's updates, and under the start model).

Everything but the weights follows from a seed and the batch's number, so a resumed run makes the same rollouts.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from zaya_jax.architecture import Zaya, for_decoding
from zaya_jax.data.pipeline import Batch
from zaya_jax.errors import UserError
from zaya_jax.parallel import Placement
from zaya_jax.rollouts.advantages import advantages, mixed, row_weights
from zaya_jax.rollouts.config import Rollouts
from zaya_jax.rollouts.objective import PolicyObjective, score
from zaya_jax.sampling.continuous import Prompt, Work, generate_queue
from zaya_jax.sampling.decoding import Finished
from zaya_jax.tasks.base import Problem, Task
from zaya_jax.text.detokenizer import Detokenizer
from zaya_jax.text.tokenizers import Tokenizer

PADDING = -1  # `document` where a row is empty
TOTALS = ("rollouts", "rollout_tokens", "rollout_forwards", "rollout_query_tokens", "skipped_groups")


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is asked: the tasks of a phase, and how they become rows."""

    tasks: tuple[tuple[Task, float], ...]  # with their shares
    tokenizer: Tokenizer
    row_length: int
    problems: int  # of a batch
    data_seed: int  # of problems
    seed: int  # of everything else

    def draw(self, number: int) -> list[tuple[Task, Problem]]:
        """The training problems of the number-th batch of rollouts."""
        shares = np.array([share for _, share in self.tasks])
        chosen = np.random.default_rng((self.seed, number)).choice(
            len(self.tasks), self.problems, p=shares / shares.sum()
        )
        tasks = [self.tasks[i][0] for i in chosen]
        first = number * self.problems
        return [(task, task.problem("train", first + i, self.data_seed)) for i, task in enumerate(tasks)]

    def seeds(self, number: int, rows: int) -> np.ndarray:
        """A key for each rollout of the number-th batch, uint32 [rows]."""
        return np.random.SeedSequence((self.seed, number, 1)).generate_state(rows, np.uint32)


@dataclasses.dataclass(frozen=True)
class Made:
    """A batch's rollouts, in the order of its rows, and what they were worth."""

    prompts: list[list[int]]
    sequences: list[Finished]
    rewards: np.ndarray  # float64 [problems, group]
    solved: np.ndarray  # bool [problems, group]
    work: Work
    seconds: float

    def facts(self, query_tokens: float) -> dict[str, float]:
        """What a step's metrics say of them.

        Args:
          query_tokens: of a forward after the prompt's (`SamplerConfig.rows_per_forward`).
        """
        lengths = [len(each.tokens) for each in self.sequences]
        forwards = sum(len(each.accepted) for each in self.sequences)
        read = sum(map(len, self.prompts))
        return {
            "reward": float(self.rewards.mean()),
            "solved": float(self.solved.mean()),
            "skipped_groups": int((~mixed(self.rewards)).sum()),
            "cut": sum(each.finish == "length" for each in self.sequences) / len(lengths),
            "tokens_per_forward": sum(lengths) / forwards,
            "rollouts": len(lengths),
            "rollout_tokens": sum(lengths),
            "rollout_forwards": forwards,
            "rollout_query_tokens": read + (forwards - len(lengths)) * query_tokens,
            "rollout_seconds": self.seconds,
            "idle": self.work.idle,
        }


class RolloutBatches:
    """A `training.loop.DataIterator` whose batches depend on the variables that it was last told (`follow`)."""

    def __init__(
        self, model: Zaya, policy: PolicyObjective, rollouts: Rollouts, asked: Asked, start: Any = None,
        placement: Placement | None = None,
    ) -> None:  # fmt: skip
        """Nothing is made yet.

        Args:
          placement: of the variables; rollouts are laid over its devices as rows are.
          start: the start model's variables, where the policy's loss has its KL from them.
        """
        self.model, self.policy, self.rollouts, self.asked, self.start = model, policy, rollouts, asked, start
        self.placement = placement
        self.sampler = rollouts.sampler_config(policy, asked.tokenizer.eos_ids)
        self.number = 0  # batches of rollouts made
        self.left = 0  # steps that the newest one still serves
        self.batch: Batch = {}
        self.facts: dict[str, float] = {}  # of the newest
        self.totals = dict.fromkeys(TOTALS, 0.0)
        self.variables: Any = None

    def follow(self, variables: Any) -> None:
        """Takes the variables that the next rollouts are drawn from; they are read in `next` alone."""
        self.variables = variables

    def metrics(self) -> dict[str, float]:
        """Of the newest rollouts, and totals of all so far."""
        return self.facts | {f"total_{name}": value for name, value in self.totals.items()}

    def __iter__(self) -> "RolloutBatches":
        return self

    def __next__(self) -> Batch:
        if not self.left:
            made = self._roll()
            self.batch = self._rows(made)
            self.facts = made.facts(self.sampler.rows_per_forward)
            self.totals = {name: total + self.facts[name] for name, total in self.totals.items()}
            self.number, self.left = self.number + 1, self.rollouts.updates
        self.left -= 1
        return self.batch

    def get_state(self) -> dict[str, Any]:
        """JSON-able; holds the batch itself where steps are left that it serves."""
        state = {"number": self.number, "left": self.left, "totals": self.totals}
        if not self.left:
            return state
        kept = {name: value.tolist() for name, value in self.batch.items() if name != "which"}
        return state | {"batch": kept, "facts": self.facts}

    def set_state(self, state: dict[str, Any]) -> None:
        self.number, self.left, self.totals = state["number"], state["left"], dict(state["totals"])
        if self.left:
            ints = ("tokens", "document", "answer")
            self.batch = {
                name: np.array(value, np.int32 if name in ints else np.float32)
                for name, value in state["batch"].items()
            }
            self.batch["which"] = np.eye(len(self.batch["tokens"]), dtype=np.float32)
            self.facts = state["facts"]

    def _roll(self) -> Made:
        began, group = time.perf_counter(), self.rollouts.group
        problems = self.asked.draw(self.number)
        tokenizer, longest = self.asked.tokenizer, self.asked.row_length - self.rollouts.max_new_tokens
        prompts = [task.encode(problem, tokenizer) for task, problem in problems]
        for (task, problem), prompt in zip(problems, prompts, strict=True):
            if len(prompt) > longest:
                raise UserError(
                    f"row_length: got {self.asked.row_length}, may be at least {len(prompt)} tokens of {task.name}'s "
                    f"prompt {problem.prompt!r:.60} and rollouts.max_new_tokens ({self.rollouts.max_new_tokens})"
                )
        rows = [prompt for prompt in prompts for _ in range(group)]
        seeds = self.asked.seeds(self.number, len(rows)).tolist()
        sequences, work = answer(
            self.model, self.variables, rows, seeds, self.sampler, self.rollouts.max_new_tokens, longest,
            self.rollouts.batch or len(rows), self.placement,
        )  # fmt: skip
        rewards, solved = judge(problems, sequences, group, tokenizer)
        return Made(rows, sequences, rewards, solved, work, time.perf_counter() - began)

    def _rows(self, made: Made) -> Batch:
        policy, rows = self.policy, len(made.prompts)
        batch = lay_out(made.prompts, made.sequences, self.asked.row_length, self.asked.tokenizer.pad_id)
        worth = advantages(made.rewards, policy.baseline, policy.scale).reshape(-1)
        counted = mixed(made.rewards).repeat(self.rollouts.group)
        if policy.mask_cut:
            counted &= np.array([each.finish != "length" for each in made.sequences])
        lengths = np.array([len(each.tokens) for each in made.sequences])
        weight = row_weights(lengths, counted, policy.reduction, self.rollouts.max_new_tokens)
        batch |= {"advantage": worth.astype(np.float32), "weight": weight.astype(np.float32)}
        batch["which"] = np.eye(rows, dtype=np.float32)
        if self.rollouts.updates > 1 and policy.log_probabilities == "training":
            batch["log_old"] = self._score(self.variables, batch)
        if policy.kl:
            batch["log_start"] = self._score(self.start, batch)
        return batch

    def _score(self, variables: Any, batch: Batch) -> np.ndarray:
        rows = {name: batch[name] for name in ("tokens", "document", "answer")}
        return jax.device_get(score(self.model, variables, rows, self.policy.temperature))  # pyrefly: ignore


def answer(
    model: Zaya, variables: Any, prompts: Sequence[list[int]], seeds: Sequence[int], sampler: Any, new: int,
    longest: int, batch: int, placement: Placement | None = None,
) -> tuple[list[Finished], Work]:  # fmt: skip
    """A sequence for each prompt, in their order, and what the rows of the batch did; see `generate_queue`."""
    if placement is None:
        model, variables = for_decoding(model, variables)
    queue = (Prompt(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True))
    found: dict[int, Finished] = {}
    work = Work()
    for sequence, so_far in generate_queue(
        model, variables, queue, sampler, new, longest=longest, batch=batch, placement=placement
    ):
        found[sequence.index], work = sequence, so_far
    return [found[i] for i in range(len(prompts))], work


def judge(
    problems: Sequence[tuple[Task, Problem]], sequences: Sequence[Finished], group: int, tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
    """(rewards float64 [problems, group], solved bool [problems, group]) of the problems' answers, side by side."""
    text = Detokenizer(tokenizer, start=False)
    texts = [text.whole(each.tokens) for each in sequences]
    every = [(task, problem, texts[i * group + g]) for i, (task, problem) in enumerate(problems) for g in range(group)]
    rewards = np.array([task.reward(problem, text) for task, problem, text in every], np.float64)
    solved = np.array([bool(task.check(problem, text)) for task, problem, text in every])
    return rewards.reshape(-1, group), solved.reshape(-1, group)


def lay_out(prompts: Sequence[list[int]], sequences: Sequence[Finished], row_length: int, pad_id: int) -> Batch:
    """tokens, document, answer (int32) and log_rollout (float32), all [rows, row_length]: a sequence a row."""
    shape = (len(prompts), row_length)
    out = {"tokens": np.full(shape, pad_id, np.int32), "document": np.full(shape, PADDING, np.int32)}
    out |= {"answer": np.zeros(shape, np.int32), "log_rollout": np.zeros(shape, np.float32)}
    for row, (prompt, sequence) in enumerate(zip(prompts, sequences, strict=True)):
        start, end = len(prompt), len(prompt) + len(sequence.tokens)
        out["tokens"][row, :start], out["tokens"][row, start:end] = prompt, sequence.tokens
        out["document"][row, :end] = 0
        out["answer"][row, start:end] = 1
        out["log_rollout"][row, start:end] = sequence.log_probabilities
    return out
