"""Tokens per second of two ways to sample the same prompts, one after the other."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

RESAMPLES = 2_000
PROMPT_STEP = 32  # tokens: prompts of up to so many, or twice as many, ... share a compiled program


def ratio_interval(
    tokens: Sequence[float], seconds: Sequence[float], plain_tokens: Sequence[float], plain_seconds: Sequence[float]
) -> list[float]:
    """95% interval of tokens per second over the plain way's: bootstrap over prompts, both ways of one together."""

    def ratio(*sums: np.ndarray, axis: int = -1) -> np.ndarray:
        a, b, c, d = (each.sum(axis=axis) for each in sums)
        return a / b / (c / d)

    data = tuple(np.asarray(x, float) for x in (tokens, seconds, plain_tokens, plain_seconds))
    found = stats.bootstrap(
        data, ratio, paired=True, vectorized=True, method="percentile", n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return [float(found.low), float(found.high)]


def compiles(prompts: Sequence[Sequence[int]], number: int) -> bool:
    """Whether a prompt's length asks for a program that none of the prompts before it did."""
    sizes = [-(-len(prompt) // PROMPT_STEP) for prompt in prompts[: number + 1]]
    return sizes[-1] not in sizes[:-1]
