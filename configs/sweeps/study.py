"""The study: block sizes 4, 8 and 16, three seeds, pass@16 on two tasks. A toy.

Command:   python -m experiments.sweep --config=configs/sweeps/study.py --workdir=results/sweeps/study
Hardware:  2 CPU cores, one run a core
Time and result: see results/sweeps/study/.
"""

from ml_collections import ConfigDict

from configs.common import axis, product, sweep


def get_config() -> ConfigDict:
    jobs = product(axis("convert.objective.block_size", 16, 8, 4), axis("seed", 0, 1, 2))
    return sweep("study", "configs/study.py", jobs)
