"""Times of several calls taken in turn, so that a busy machine disturbs all of them alike and ratios stay honest."""

import statistics
import time
from collections.abc import Callable

import jax
from tqdm import tqdm


def medians(sides: dict[str, Callable[[], object]], repeats: int, label: str, pause: float = 0.0) -> dict[str, float]:
    """Median milliseconds of each call; calls take turns, after one untimed call each to compile.

    Args:
      pause: seconds before each timed call. Another library's threads go on spinning for a while after a call; with a
        pause they are asleep when the other side is timed.
    """
    for call in sides.values():
        jax.block_until_ready(call())
    seen: dict[str, list[float]] = {name: [] for name in sides}
    for _ in tqdm(range(repeats), desc=label, leave=False, dynamic_ncols=True):
        for name, call in sides.items():
            time.sleep(pause)
            began = time.perf_counter()
            jax.block_until_ready(call())
            seen[name].append(1e3 * (time.perf_counter() - began))
    return {name: statistics.median(times) for name, times in seen.items()}
