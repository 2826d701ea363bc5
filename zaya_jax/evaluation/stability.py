"""How stable a training is, from numbers alone: variance by source, spikes, trajectories, the learning rate's margin.

A training objective that draws masks is noisy for three reasons: which data, which mask rates (and where blocks stand),
which masks. `split_variance` takes them apart by the law of total variance, Var = C + A + B, from nested draws.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from zaya_jax.errors import UserError
from zaya_jax.training.objective import Objective


class Squares(NamedTuple):
    """Squared norms of the means of nested draws [data, rate, mask] of a vector (or number) g."""

    draws: float | np.ndarray  # mean over all draws of |g|^2
    rates: float | np.ndarray  # mean over data and rates of |mean over masks|^2
    data: float | np.ndarray  # mean over data of |mean over rates and masks|^2
    all: float | np.ndarray  # |mean over all|^2


class Split(NamedTuple):
    """Unbiased estimates, so that small ones may come out below 0. Of a vector each is the trace."""

    data: float | np.ndarray
    rate: float | np.ndarray  # of the mask rates, and of where blocks stand
    mask: float | np.ndarray
    mean_square: float | np.ndarray  # |E g|^2

    @property
    def total(self) -> float | np.ndarray:
        return self.data + self.rate + self.mask

    @property
    def noise(self) -> float | np.ndarray:
        """tr Var(g) / |E g|^2, of a single draw of everything."""
        return self.total / self.mean_square

    @property
    def cosine(self) -> float | np.ndarray:
        """Between two draws of rates and masks for the same data: E[g . g'] / E|g|^2."""
        return (self.mean_square + self.data) / (self.mean_square + self.total)


def split_variance(squares: Squares, counts: tuple[int, int, int]) -> Split:
    """The law of total variance over nested draws.

    Args:
      counts: draws of data, of rates for each, of masks for each of these; at least 2 each.

    Raises:
      UserError: fewer.
    """
    if min(counts) < 2:
        raise UserError(f"counts: got {counts}, may be at least 2 draws each of data, rates and masks")
    data, rates, masks = counts
    mask = masks / (masks - 1) * (squares.draws - squares.rates)
    of_rates = rates / (rates - 1) * (squares.rates - squares.data)
    of_data = data / (data - 1) * (squares.data - squares.all)
    return Split(of_data - of_rates / rates, of_rates - mask / masks, mask, squares.all - of_data / data)


def squares_of(values: np.ndarray) -> Squares:
    """Of numbers [data, rate, mask]."""
    values = np.asarray(values, float)
    by_rate, by_data = values.mean(-1), values.mean((-2, -1))
    return Squares(*(float((x**2).mean()) for x in (values, by_rate, by_data)), float(by_data.mean() ** 2))


def weight_variance(objective: Objective) -> float:
    """Closed form: Var(w) / E(w)^2 of a token's loss weight w under an objective's masks, its rate drawn uniformly.

    w is 1 / rate or 1 where the token is masked, else 0; of a complementary pair both rows together.

    Raises:
      UserError: weights that have no variance: 1 / rate with rates down to 0.
    """
    low, high = objective.least_rate, objective.most_rate
    if objective.masking == "full":
        return 0.0
    inverse = math.nan
    if objective.weight == "inverse":
        inverse = 1 / low if low == high else math.log(high / low) / (high - low)  # E[1 / t]
    if objective.masking == "complementary":
        if objective.weight == "none":
            return 0.0
        if high == 1:
            raise UserError("Objective.most_rate: got 1.0, may be below 1 where pairs are weighted by 1 / rate")
        # w = 1/t with probability t, else 1/(1 - t): mean 2, mean square E[1/t + 1/(1 - t)]
        other = 1 / (1 - low) if low == high else math.log((1 - low) / (1 - high)) / (high - low)
        return (inverse + other) / 4 - 1
    return inverse - 1 if objective.weight == "inverse" else 2 / (low + high) - 1


def relative_variance(weights: np.ndarray) -> tuple[float, float]:
    """(Var / E^2, its standard error) of numbers [draw, token] whose rows are independent: the jackknife over rows."""
    weights = np.asarray(weights, float)
    if weights.ndim != 2 or len(weights) < 2:
        raise UserError(f"weights: got shape {weights.shape}, may be two or more independent rows")
    first, second = weights.mean(1), (weights**2).mean(1)
    n = len(first)

    def of(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return second / first**2 - 1

    without = of((first.sum() - first) / (n - 1), (second.sum() - second) / (n - 1))
    error = math.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
    return float(of(first.mean(), second.mean())), error


def spikes(losses: Sequence[float] | np.ndarray, window: int = 50, times: float = 5.0) -> np.ndarray:
    """bool [steps]: losses above the median of the `window` before + `times` their median absolute deviation.

    The first `window` steps have no verdict: False. A loss that is not finite is a spike, and is in no median.
    """
    losses = np.asarray(losses, float)
    out = ~np.isfinite(losses)
    for step in range(window, len(losses)):
        before = losses[step - window : step]
        before = before[np.isfinite(before)]
        if len(before):
            median = np.median(before)
            out[step] |= losses[step] > median + times * np.median(np.abs(before - median))
    return out


class Trajectory(NamedTuple):
    """What gradient norms did over a training; means over windows."""

    variation: float  # standard deviation / mean within a window
    tail: float  # 99th percentile / median within a window
    clipped: float  # share of steps whose norm is above the clip


def trajectory(norms: Sequence[float] | np.ndarray, clip: float, window: int = 100) -> Trajectory:
    """Of the norms of a training's gradients, in order; a last window that is not whole is left out.

    Raises:
      UserError: fewer than `window` of them.
    """
    norms = np.asarray(norms, float)
    if len(norms) < window:
        raise UserError(f"norms: got {len(norms)}, may be at least {window} (the window)")
    rows = norms[: len(norms) // window * window].reshape(-1, window)
    tail = np.quantile(rows, 0.99, axis=1) / np.median(rows, axis=1)
    return Trajectory(
        float((rows.std(1, ddof=1) / rows.mean(1)).mean()), float(tail.mean()), float((norms > clip).mean())
    )


def largest_stable_rate(ends: Mapping[float, Sequence[float]], worse: float = 0.05, share: float = 0.8) -> float | None:
    """The largest learning rate with which at least `share` of the seeds end well; None if none does.

    Well: finite, and at most `worse` above the best median over all rates.

    Args:
      ends: rate -> final loss of each seed, positive; not finite where it diverged.
    """
    losses = {
        rate: np.where(np.isfinite(x), x, np.inf) for rate, x in ((r, np.asarray(e, float)) for r, e in ends.items())
    }
    best = min(float(np.median(x)) for x in losses.values())
    stable = [rate for rate, x in losses.items() if np.isfinite(best) and (x <= (1 + worse) * best).mean() >= share]
    return max(stable, default=None)


def margin_interval(
    ends: Mapping[float, Sequence[float]], worse: float = 0.05, share: float = 0.8, resamples: int = 2000
) -> tuple[float, float] | None:
    """95% interval of `largest_stable_rate`: the bootstrap over seeds (each with all of its rates); None if there is
    none in more than a few resamples.
    """
    table = np.array([ends[rate] for rate in sorted(ends)], float)  # [rate, seed]
    seeds = table.shape[1]
    drawn = np.random.default_rng(0).integers(0, seeds, (resamples, seeds))
    found = [largest_stable_rate(dict(zip(sorted(ends), table[:, some], strict=True)), worse, share) for some in drawn]
    values = [rate for rate in found if rate is not None]
    if len(values) < 0.975 * resamples:
        return None
    low, high = np.quantile(values, (0.025, 0.975), method="nearest")
    return float(low), float(high)
