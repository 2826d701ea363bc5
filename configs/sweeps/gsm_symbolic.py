"""Word problems: pass@16 of AR, lossless and mixing, three seeds, block 16. A toy; needs the `eval` extra.

Command:   python -m experiments.sweep --config=configs/sweeps/gsm_symbolic.py --workdir=results/sweeps/gsm_symbolic
Hardware:  2 CPU cores, one run a core
Time and result: see results/sweeps/gsm_symbolic/.
"""

from ml_collections import ConfigDict

from configs.common import axis, sweep, zipped


def get_config() -> ConfigDict:
    # every training seed meets other test problems
    seeds = zipped(axis("seed", 0, 1, 2), axis("evaluate.seed", 1_000, 2_000, 3_000))
    return sweep("gsm_symbolic", "configs/gsm_symbolic.py", seeds)
