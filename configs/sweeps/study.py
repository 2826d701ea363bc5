"""The study: block sizes 4, 8 and 16, three seeds, pass@16 on two tasks. A toy.

Command:   python -m experiments.sweep --config=configs/sweeps/study.py --workdir=results/sweeps/study
Hardware:  2 CPU cores, one run a core
Time and result: see results/sweeps/study/.
"""

from ml_collections import ConfigDict

from configs.common import axis, product, sweep, zipped


def get_config() -> ConfigDict:
    # every training seed meets other test problems: 768 for each block size
    seeds = zipped(axis("seed", 0, 1, 2), axis("evaluate.seed", 1_000, 2_000, 3_000))
    return sweep("study", "configs/study.py", product(axis("convert.objective.block_size", 16, 8, 4), seeds))
