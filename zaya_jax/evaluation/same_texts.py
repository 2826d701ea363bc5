"""Whether two samplers' texts have one distribution: a permutation test on the texts themselves.

Accuracy tells nothing of a model that answers wrongly either way; texts always do.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np

RESAMPLES = 2_000  # so that no p-value is below 1 / 2,001

Text = Sequence[int]


def alike(a: Text, b: Text) -> int:
    """Tokens that two texts begin with alike, and tokens and pairs of neighbours that both have, wherever these stand.

    All are sums of minima of counts (of prefixes, tokens, pairs), so this is a positive semidefinite kernel: it sees
    how texts begin, what they say, in which order, how long they are and how often they repeat themselves.
    """
    prefix = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return prefix + (_counts(a) & _counts(b)).total()


def _counts(text: Text) -> Counter:
    return Counter([*text, *pairwise(text)])


def texts_p_value(
    mine: Sequence[Text],
    other: Sequence[Text],
    samples: int,
    numbers: Sequence[tuple[Sequence[float], Sequence[float]]] = (),
    seed: int = 0,
) -> float | None:
    """How often chance alone would set two samplers' texts this far apart; None with fewer than four samples.

    If both samplers draw from one distribution, a problem's texts may change sides. What is looked at is the squared
    maximum mean discrepancy (Gretton et al., 2012) of each problem's texts by `alike`, summed over problems, the total
    length, and the totals of `numbers`; each in its own standard deviations, and of these the largest (Westfall and
    Young, 1993). The r-th texts of both are drawn with one seed and need not be independent, so the first half of mine
    is held against the second half of the others'.

    Args:
      mine, other: tokens; the samples of a problem stand side by side.
      samples: of each problem.
      numbers: pairs of what else is known of each text of mine and of the others, such as its log-probability.
    """
    half = samples // 2
    if half < 2:
        return None
    lengths = [len(text) for text in mine], [len(text) for text in other]
    totals = np.stack([_sides(a, b, samples, half) for a, b in (lengths, *numbers)])  # [number, problem, text]
    kernel = np.array(
        [_gram([*mine[at : at + half], *other[at + half : at + 2 * half]]) for at in range(0, len(mine), samples)]
    )
    side = np.tile(np.repeat([1.0, -1.0], half), (len(kernel), 1))

    def apart(side: np.ndarray) -> list[float]:
        """The discrepancy, but for a factor and a term that no change of sides alters; the totals' differences."""
        return [np.einsum("pi,pij,pj->", side, kernel, side), *np.abs(np.einsum("npi,pi->n", totals, side))]

    rng = np.random.default_rng(seed)
    found = np.array([apart(side), *(apart(rng.permuted(side, axis=1)) for _ in range(RESAMPLES))])
    spread = found.std(axis=0)
    farthest = ((found - found.mean(axis=0)) / np.where(spread > 0, spread, 1)).max(axis=1)
    return float(np.mean(farthest >= farthest[0] - 1e-9))


def _sides(mine: Sequence[float], other: Sequence[float], samples: int, half: int) -> np.ndarray:
    """Of each problem the first half of mine and the second of the others', float64 [problem, 2 half]."""
    a, b = (np.asarray(values, float).reshape(-1, samples) for values in (mine, other))
    return np.concatenate([a[:, :half], b[:, half : 2 * half]], axis=1)


def _gram(texts: Sequence[Text]) -> np.ndarray:
    """Of a problem's texts; zeros where a text would meet itself, which is no evidence."""
    out = np.zeros((len(texts), len(texts)))
    for i, j in combinations(range(len(texts)), 2):
        out[i, j] = out[j, i] = alike(texts[i], texts[j])
    return out
