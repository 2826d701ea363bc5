"""Which accept lengths deserve a drafted block: tokens per forward of a list of anchors, and the best list of K.

A step of single_pass accepts k of the block's tokens. The next block is drafted behind the nearest anchor a <= k and
its first k - a slots lie in the past: k - a is how *late* the block is. So the accept lengths form a Markov chain over
lateness, given how likely each slot's draft is to survive when it is tested (tidar.md section 3, "budgeted").
"""

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np

EXACT_LIMIT = 20_000  # lists of anchors that are all compared; above, anchors are added one by one


def acceptance_curve(accepted: Iterable[Sequence[int]], block_size: int) -> tuple[float, ...]:
    """Acceptance rates of a block's drafts, measured.

    Args:
      accepted: tokens each forward yielded, one list for each row (`Generation.accepted`), from single_pass with
        anchors="all". The first (the prefill) says nothing and the last may be cut by a stop, so neither counts.
      block_size: what they were sampled with.

    Returns:
      For slots 1 .. block_size - 1: how often the draft survived when it was tested. A slot that was never tested
      has the rate of the one before it.

    Raises:
      ValueError: no row is long enough to say anything.
    """
    counted = [a for row in accepted for a in row[1:-1]]
    if not counted:
        raise ValueError("acceptance_curve: got no row of more than two forwards, may be longer generations")
    amounts = np.array(counted)
    rates: list[float] = []
    for slot in range(1, block_size):
        tested = int((amounts >= slot).sum())
        rates.append(float((amounts > slot).sum() / tested) if tested else rates[-1])
    return tuple(rates)


def expected_tokens(acceptance: Sequence[float], block_size: int, anchors: Sequence[int]) -> float:
    """Mean tokens per forward of single_pass in the long run.

    Args:
      acceptance: rates of slots 1 .. block_size - 1 (more are ignored).
      block_size: tokens verified a forward.
      anchors: increasing accept lengths in 1 .. block_size; none means one token a forward.
    """
    return float(_long_run(acceptance, block_size, np.array([list(anchors)], int).reshape(1, -1))[0])


def best_anchors(acceptance: Sequence[float], block_size: int, budget: int) -> tuple[int, ...]:
    """The `budget` anchors that yield most tokens per forward; among equals, the lowest accept lengths.

    All lists are compared up to EXACT_LIMIT of them; beyond, the best anchor is added `budget` times.
    """
    every = range(1, block_size + 1)
    if math.comb(block_size, budget) <= EXACT_LIMIT:
        lists = np.array(list(itertools.combinations(every, budget)))
        return tuple(lists[_first_best(_long_run(acceptance, block_size, lists))].tolist())
    chosen: tuple[int, ...] = ()
    for _ in range(budget):
        lists = np.array([sorted((*chosen, a)) for a in every if a not in chosen])
        chosen = tuple(lists[_first_best(_long_run(acceptance, block_size, lists))].tolist())
    return chosen


def _first_best(tokens: np.ndarray) -> int:
    return int(np.argmax(tokens >= tokens.max() - 1e-12))


def _long_run(acceptance: Sequence[float], block_size: int, lists: np.ndarray) -> np.ndarray:
    """Stationary mean accept length for each list of anchors, float64 [lists]."""
    size, count = block_size, len(lists)
    # law[s, k - 1]: probability of accept length k when the block is s slots late (s = size - 1: nothing is drafted).
    law = np.zeros((size, size))
    for late in range(size):
        alive = 1.0
        for k in range(1, size - late):
            rate = acceptance[late + k - 1]
            law[late, k - 1] = alive * (1 - rate)
            alive *= rate
        law[late, size - late - 1] = alive
    # lateness behind accept length k: k minus the nearest anchor at or below it
    lengths = np.arange(1, size + 1)
    late = np.full((count, size), size - 1)
    for column in lists.T:
        late = np.where(lengths >= column[:, None], np.minimum(lengths - column[:, None], size - 1), late)
    move = np.zeros((count, size, size))  # lateness -> lateness
    for k in range(size):
        move[np.arange(count), :, late[:, k]] += law[:, k]
    # Where the chain is after 2 ** 20 lazy steps from a block that is not late. Lazy, so that no period remains; and
    # powers, since without an anchor at 1 "nothing drafted" is never left and the stationary law is not unique.
    after = (move + np.eye(size)) / 2
    for _ in range(20):
        after = after @ after
    return (after[:, 0] @ law) @ lengths
