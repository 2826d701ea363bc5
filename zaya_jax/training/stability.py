"""How stable trainings were, from what they told: spikes, gradient norms, the largest learning rate that ends well."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from zaya_jax.errors import UserError


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
    rates = np.array(sorted(ends))
    table = np.array([ends[rate] for rate in rates], float)  # [rate, seed]
    seeds = table.shape[1]
    drawn = np.random.default_rng(0).integers(0, seeds, (resamples, seeds))
    losses = np.where(np.isfinite(table), table, np.inf)[:, drawn]  # [rate, resample, seed]
    best = np.median(losses, axis=2).min(axis=0)
    stable = ((losses <= (1 + worse) * best[:, None]).mean(axis=2) >= share) & np.isfinite(best)
    values = np.where(stable, rates[:, None], -np.inf).max(axis=0)[stable.any(axis=0)]
    if len(values) < 0.975 * resamples:
        return None
    low, high = np.quantile(values, (0.025, 0.975), method="nearest")
    return float(low), float(high)
