"""pass@k: how often at least one of k samples solves a problem, with intervals over problems.

Sources: Chen et al. 2021 (arXiv 2107.03374), equation 1, for the estimator; the percentile bootstrap over problems for
intervals. Samplers that answered the same problems are compared by resampling problems: what is hard for one is hard
for the other, and a paired difference does not count that twice.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

from zaya_jax.errors import UserError

RESAMPLES, BATCH = 10_000, 500  # and how many of them exist at once


class Interval(NamedTuple):
    """A mean and the 95% percentile bootstrap interval around it."""

    mean: float
    low: float
    high: float


def pass_at_k(samples: int, correct: int | np.ndarray, k: int) -> np.ndarray:
    """The unbiased estimate 1 - C(samples - correct, k) / C(samples, k), for each problem.

    Args:
      samples: drawn for each problem.
      correct: how many of them solve it, int or int [problems].
      k: at most `samples`.

    Raises:
      UserError: k or a count out of range.
    """
    correct = np.asarray(correct)
    if not 1 <= k <= samples:
        raise UserError(f"k: got {k}, may be in 1 .. samples ({samples})")
    if correct.size and not 0 <= correct.min() <= correct.max() <= samples:
        raise UserError(f"correct: got {correct.min()} .. {correct.max()}, may be in 0 .. samples ({samples})")
    # C(n - c, k) / C(n, k) = product over i of 1 - c / i for i = n - c + 1 .. n, without large numbers
    i = np.arange(samples - k + 1, samples + 1)
    return 1 - np.prod(np.maximum(0.0, 1 - correct[..., None] / i), axis=-1)


def mean_interval(values: Sequence[float] | np.ndarray, seed: int = 0) -> Interval:
    """Mean over problems, with its interval. UserError without any."""
    values = np.asarray(values, float)
    if values.ndim != 1 or not len(values):
        raise UserError(f"values: got shape {values.shape}, may be one number for each of one or more problems")
    if len(values) == 1:  # nothing to resample
        return Interval(*[float(values[0])] * 3)
    found = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, batch=BATCH, method="percentile", rng=np.random.default_rng(seed)
    )
    return Interval(float(values.mean()), *(float(x) for x in found.confidence_interval))


def paired_difference(
    mine: Sequence[float] | np.ndarray, other: Sequence[float] | np.ndarray, seed: int = 0
) -> Interval:
    """Mean of mine - other over the problems that both samplers answered, in the same order, with its interval.

    Raises:
      UserError: different numbers of problems.
    """
    if len(mine) != len(other):
        raise UserError(f"other: got {len(other)} problems, may be {len(mine)}, those that mine are of")
    return mean_interval(np.asarray(mine, float) - np.asarray(other, float), seed)


def permutation_p_value(
    mine: Sequence[float] | np.ndarray, other: Sequence[float] | np.ndarray, seed: int = 0
) -> float:
    """How often chance alone would set two samplers this far apart: the two-sided paired sign-flip test.

    Under the hypothesis that both draw from one distribution, each problem's two outcomes may be exchanged. So one
    problem tells nothing: 1.
    """
    difference = np.asarray(mine, float) - np.asarray(other, float)
    if len(difference) == 1:  # which scipy refuses
        return 1.0
    found = scipy.stats.permutation_test(
        (difference,), np.mean, permutation_type="samples", vectorized=True, n_resamples=RESAMPLES, batch=BATCH,
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(found.pvalue)
