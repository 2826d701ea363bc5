"""The recipe's choices one at a time: masking, the AR loss's weight, distillation, slots, from scratch. A toy.

Command:   python -m experiments.sweep --config=configs/sweeps/recipe.py --workdir=results/sweeps/recipe
Hardware:  2 CPU cores, one run a core
Time and result: see results/sweeps/recipe/.

From scratch means as many steps as pretraining and conversion together, all of them TiDAR's.
"""

from ml_collections import ConfigDict

from configs.common import axis, product, sweep, together


def get_config() -> ConfigDict:
    once = together(evaluate__samples=4)
    jobs = [
        *axis("convert.objective.masking", "full", "random"),
        *axis("convert.objective.alpha", 0.3, 3.0),
        *axis("convert.objective.distill", 1.0),
        *axis("convert.objective.slot_decay", 0.9),
        *together(pretrain__steps=0, convert__steps=1400),
    ]
    return sweep("recipe", "configs/study.py", product(once, jobs))
