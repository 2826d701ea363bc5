"""Task accuracy, tokens per forward and wall-clock of one sampler over a task's test problems."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from zaya_jax.analysis.results import wilson
from zaya_jax.architecture import Zaya
from zaya_jax.data.tasks.base import Problem, Task
from zaya_jax.data.tokenizers import Tokenizer
from zaya_jax.sampling import Generation, SamplerConfig, generate


@dataclasses.dataclass(frozen=True)
class Arm:
    """A named way to sample; every arm meets the same problems and the same row seeds."""

    name: str
    sampler: SamplerConfig


@dataclasses.dataclass(frozen=True)
class Outcome:
    """All of one arm's completions."""

    arm: Arm
    tokens: list[list[int]]
    accepted: list[list[int]]
    correct: list[bool]
    seconds: float  # of generation, compilation excluded
    rows_per_forward: float

    @property
    def tokens_per_second(self) -> float:
        return sum(map(len, self.tokens)) / self.seconds

    def row(self, batch: int, seed: int) -> dict[str, Any]:
        """This outcome's cells of results.csv."""
        sampler = self.arm.sampler
        low, high = wilson(sum(self.correct), len(self.correct))
        tokens, forwards = sum(map(len, self.tokens)), sum(map(len, self.accepted))
        return {
            "arm": self.arm.name,
            "temperature": sampler.temperature,
            "beta": sampler.beta if sampler.target in ("mix_stale", "mix_fresh") else None,
            "block_size": 1 if sampler.mode == "autoregressive" else sampler.block_size,
            "anchors": _anchors(sampler),
            "batch": batch,
            "prompts": len(self.tokens),
            "seed": seed,
            "accuracy": float(np.mean(self.correct)),
            "accuracy_low": low,
            "accuracy_high": high,
            "tokens": tokens,
            "forwards": forwards,
            "tokens_per_forward": tokens / forwards,
            "rows_per_forward": self.rows_per_forward,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
        }


def _anchors(sampler: SamplerConfig) -> str | list[int] | None:
    if sampler.mode != "single_pass":
        return None
    return sampler.anchors if isinstance(sampler.anchors, str) else list(sampler.anchor_list)


def run_arm(
    model: Zaya,
    variables: dict,
    tokenizer: Tokenizer,
    task: Task,
    problems: Sequence[Problem],
    arm: Arm,
    batch: int,
    max_new_tokens: int,
    seed: int,
) -> Outcome:
    """Completes every problem, `batch` at a time; the first batch also runs once untimed, to compile."""
    prompts = [tokenizer.encode(p.prompt) for p in problems]
    seeds = [seed + i for i in range(len(problems))]
    pieces: list[Generation] = []
    seconds = 0.0
    label = f"{arm.name} T={arm.sampler.temperature:g}"
    for start in tqdm(range(0, len(prompts), batch), desc=label, unit="batch", dynamic_ncols=True):
        part = slice(start, start + batch)
        args = (model, variables, prompts[part], arm.sampler, max_new_tokens, seeds[part])
        if start == 0 or len(prompts[part]) < batch:
            generate(*args)
        clock = time.perf_counter()
        pieces.append(generate(*args))
        seconds += time.perf_counter() - clock
    tokens = [t for piece in pieces for t in piece.tokens]
    return Outcome(
        arm=arm,
        tokens=tokens,
        accepted=[a for piece in pieces for a in piece.accepted],
        correct=[task.check(p, tokenizer.decode(t)) for p, t in zip(problems, tokens, strict=True)],
        seconds=seconds,
        rows_per_forward=pieces[0].rows_per_forward,
    )
