"""The stability study's arms, learning rates and seeds as ordinary runs, sampled at the end. Toys.

Command:   python -m experiments.sweep --config=configs/sweeps/stability.py --workdir=results/sweeps/stability
Arguments: :preset=zaya1_300k
Hardware:  many; on 2 CPU cores a day. What was measured there is experiments.bench.stability's, of the same config.
Time and result: not run.
"""

import dataclasses

from ml_collections import ConfigDict

from configs.common import Job, axis, parse_arg, product, sweep
from configs.stability import ARMS
from zaya_jax.training.objective import Objective

RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2)


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = parse_arg(arg, preset="tiny")
    arms = [_changes(arm) for name, arm in ARMS.items() if name != "autoregressive"]
    jobs = product(arms, axis("convert.optimizer.learning_rate", *RATES), axis("seed", 0, 1, 2, 3, 4))
    return sweep("stability", f"configs/stability.py:preset={chosen.preset}", jobs)


def _changes(arm: Objective) -> Job:
    """An arm as what it changes in the config's own, TiDAR's."""
    own, base = dataclasses.asdict(arm), dataclasses.asdict(ARMS["tidar"])
    changed = {name: value for name, value in own.items() if value != base[name]}
    return tuple((f"convert.objective.{name}", value) for name, value in (changed or {"masking": "full"}).items())
