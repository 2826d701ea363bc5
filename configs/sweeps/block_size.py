"""Block size 1 to 32, one seed, every anchor, no pass@16. A toy.

Command:   python -m experiments.sweep --config=configs/sweeps/block_size.py --workdir=results/sweeps/block_size
Hardware:  2 CPU cores, one run a core
Time and result: see results/sweeps/block_size/.
"""

from ml_collections import ConfigDict

from configs.common import axis, product, sweep, together


def get_config() -> ConfigDict:
    once = together(evaluate__samples=1, evaluate__anchor_budget=0)
    return sweep(
        "block_size", "configs/study.py", product(once, axis("convert.objective.block_size", 1, 2, 4, 8, 16, 32))
    )
