"""Why a training objective that draws masks is noisy: variance by source, from numbers alone.

There are three sources: which data, which mask rates (and where blocks stand), which masks. `split_variance` takes them
apart by the law of total variance, from nested draws; `draw_variance` makes the draws.
"""

import math
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
    draws, rates, data = (float((x**2).mean()) for x in (values, by_rate, by_data))
    return Squares(draws, rates, data, float(by_data.mean() ** 2))


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


def relative_variance(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """(Var / E^2, its standard error) of numbers in independent rows: the jackknife over rows.

    Args:
      first, second: float [rows], each row's mean and mean of squares.

    Raises:
      UserError: fewer than two rows.
    """
    first, second = np.asarray(first, float), np.asarray(second, float)
    n = len(first)
    if n < 2:
        raise UserError(f"first: got {n} rows, may be two or more independent ones")

    def of(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return second / first**2 - 1

    without = of((first.sum() - first) / (n - 1), (second.sum() - second) / (n - 1))
    error = math.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
    return float(of(first.mean(), second.mean())), error
