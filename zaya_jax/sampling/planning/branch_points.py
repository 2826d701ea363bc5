"""Which accepted lengths deserve a drafted block: tokens per forward of a list of anchors, and the best list of K.

A step of single_pass accepts k of the block's tokens. The next block is drafted after the nearest anchor a <= k and
its first k - a slots lie in the past: k - a is how *late* the block is (docs/method.md#branch-points). What a list of
anchors yields is foretold from either of two measurements, both with an anchor after every accepted length:

* the runs themselves: where drafting stopped belongs to the text (a digit that cannot be foreseen), so a list of
  anchors is replayed over the same texts; a late block stops there too, or earlier, at its own end;
* an acceptance curve, one rate a slot: accepted lengths are then a Markov chain over lateness. It knows nothing of the
  text, so prefer the runs where they are at hand.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import cast

import numpy as np

from zaya_jax.errors import UserError

# Rates of a block's slots 1 .. block_size - 1 (more are ignored), or tokens that each forward yielded, one run a row.
Acceptance = Sequence[float] | Sequence[Sequence[int]]

EXACT_LIMIT = 500_000  # lists of anchors x rows replayed, up to which all lists are compared
CHAIN_ROWS = 25  # what the Markov chain costs, in such rows
ENOUGH_FORWARDS = 100  # fewer are too few to read more out of them than a curve
PRIOR = 0.5  # survivals and refusals that a slot has seen before any is counted: Jeffreys' prior, Beta(1/2, 1/2)


def acceptance_curve(
    accepted: Iterable[Sequence[int]], block_size: int, prior: float = 0.0
) -> tuple[float, ...]:  # fmt: skip
    """Acceptance rates of a block's drafts, measured.

    Args:
      accepted: tokens each forward yielded, one list for each row (`Generation.accepted`), from single_pass with
        anchors="all". The first (the prefill) says nothing and the last may be cut by a stop, so neither counts.
      block_size: what they were sampled with.
      prior: is added to the survivals and to the refusals of every slot that was tested (and of slot 1): with PRIOR no
        rate is 0 or 1 because few were counted.

    Returns:
      For slots 1 .. block_size - 1: how often the draft survived when it was tested. A slot that was never tested
      has the rate of the one before it.

    Raises:
      UserError: no row is long enough to say anything, and there is no prior.
    """
    counted = [a for row in accepted for a in row[1:-1]]
    if not counted and not prior:
        raise UserError("acceptance_curve: got no row of more than two forwards, may be longer generations")
    amounts = np.array(counted, int)
    rates: list[float] = []
    for slot in range(1, block_size):
        tested, survived = int((amounts >= slot).sum()), int((amounts > slot).sum())
        rates.append((survived + prior) / (tested + 2 * prior) if tested or not rates else rates[-1])
    return tuple(rates)


def evidence(accepted: Sequence[Sequence[int]], block_size: int) -> Acceptance:
    """What to choose a list of anchors by: measured runs where they are long enough, else their curve; both smoothed.

    A list chosen on a few texts fits these and no others: texts that always yield six ask for an anchor at 6 alone. The
    first forward of another text that yields fewer then leaves nothing drafted, and so does every one after it. So

    * the curve, of fewer than ENOUGH_FORWARDS forwards, has PRIOR added to the counts of every slot;
    * every run is followed by itself with a refusal in front, a forward that yields a single token. Lists with an
      anchor at 1 lose the same by it, whatever else they hold, so their order is the measured one.

    Args:
      accepted: `Generation.accepted`, from single_pass with anchors="all"; rows that ended at once say nothing.
    """
    if sum(map(len, accepted)) < ENOUGH_FORWARDS:
        return acceptance_curve(accepted, block_size, PRIOR)
    runs = [list(run) for run in accepted if sum(run)]
    return runs + [[run[0], 1, *run[1:]] for run in runs]


def expected_tokens(acceptance: Acceptance, block_size: int, anchors: Sequence[int]) -> float:
    """Mean tokens per forward of single_pass: on the measured texts, or in the long run where a curve is given.

    Args:
      acceptance: a curve or runs, measured with a block at least as large and an anchor everywhere.
      block_size: tokens verified a forward.
      anchors: increasing accepted lengths in 1 .. block_size; none means one token a forward.
    """
    return float(_judge(acceptance, block_size)(np.array([list(anchors)], int).reshape(1, -1))[0])


def best_anchors(acceptance: Acceptance, block_size: int, budget: int) -> tuple[int, ...]:
    """The `budget` anchors that yield most tokens per forward; among equals, the lowest accepted lengths.

    All lists are compared up to EXACT_LIMIT; beyond, the best anchor is added `budget` times.
    """
    judge, every = _judge(acceptance, block_size), range(1, block_size + 1)
    if math.comb(block_size, budget) * (len(acceptance) if _are_runs(acceptance) else CHAIN_ROWS) <= EXACT_LIMIT:
        lists = np.array(list(itertools.combinations(every, budget)))
        return tuple(lists[_first_best(judge(lists))].tolist())
    chosen: tuple[int, ...] = ()
    for _ in range(budget):
        lists = np.array([sorted((*chosen, a)) for a in every if a not in chosen])
        chosen = tuple(lists[_first_best(judge(lists))].tolist())
    return chosen


def _are_runs(acceptance: Acceptance) -> bool:
    return bool(len(acceptance)) and isinstance(acceptance[0], Sequence)


def _judge(acceptance: Acceptance, block_size: int) -> Callable[[np.ndarray], np.ndarray]:
    """Lists of anchors, int [lists, budget] -> tokens per forward of each, float64 [lists]."""
    if _are_runs(acceptance):
        runs = cast(Sequence[Sequence[int]], acceptance)
        return lambda lists: _replay(runs, block_size, lists)
    rates = cast(Sequence[float], acceptance)
    return lambda lists: _long_run(rates, block_size, lists)


def _first_best(tokens: np.ndarray) -> int:
    return int(np.argmax(tokens >= tokens.max() - 1e-12))


def _lateness(block_size: int, lists: np.ndarray) -> np.ndarray:
    """How late the next block is after accepted lengths 1 .. block_size, int [lists, block_size].

    The accepted length minus the nearest anchor at or below it; block_size - 1 (nothing is drafted) where there is
    none.
    """
    lengths = np.arange(1, block_size + 1)
    late = np.full((len(lists), block_size), block_size - 1)
    for column in lists.T:
        late = np.where(lengths >= column[:, None], np.minimum(lengths - column[:, None], block_size - 1), late)
    return late


def _replay(runs: Sequence[Sequence[int]], block_size: int, lists: np.ndarray) -> np.ndarray:
    """Tokens per forward of each list over the runs' texts, stopping where they stopped and at every block's end."""
    ends = [np.cumsum(run) for run in runs if sum(run)]
    length = np.array([end[-1] for end in ends])
    following = np.zeros((len(ends), length.max()), int)  # the next stop after each position
    for row, end in zip(following, ends, strict=True):
        row[: end[-1]] = np.repeat(end, np.diff(end, prepend=0))
    late_after = _lateness(block_size, lists)
    position = np.broadcast_to(np.array([end[0] for end in ends]), (len(lists), len(ends)))  # the prefill's token
    late, forwards = np.zeros_like(position), np.ones_like(position)
    row = np.arange(len(ends))
    while (going := position < length).any():
        stop = following[row, np.minimum(position, length - 1)]
        accepted = np.clip(stop - position, 1, block_size - late)
        position = position + np.where(going, accepted, 0)
        forwards = forwards + going
        late = np.take_along_axis(late_after, accepted - 1, axis=1)
    return length.sum() / forwards.sum(axis=1)


def _long_run(acceptance: Sequence[float], block_size: int, lists: np.ndarray) -> np.ndarray:
    """Stationary mean accepted length for each list of anchors, float64 [lists]."""
    size, count = block_size, len(lists)
    # distribution[s, k - 1]: probability of accepted length k when the block is s slots late (s = size - 1: nothing is
    # drafted).
    distribution = np.zeros((size, size))
    for late in range(size):
        alive = 1.0
        for k in range(1, size - late):
            rate = acceptance[late + k - 1]
            distribution[late, k - 1] = alive * (1 - rate)
            alive *= rate
        distribution[late, size - late - 1] = alive
    late = _lateness(size, lists)
    move = np.zeros((count, size, size))  # lateness -> lateness
    for k in range(size):
        move[np.arange(count), :, late[:, k]] += distribution[:, k]
    # Where the chain is after 2 ** 20 lazy steps from a block that is not late. Lazy, so that no period remains; and
    # powers, since without an anchor at 1 "nothing drafted" is never left and the stationary distribution is not
    # unique.
    after = (move + np.eye(size)) / 2
    for _ in range(20):
        after = after @ after
    return (after[:, 0] @ distribution) @ np.arange(1, size + 1)
