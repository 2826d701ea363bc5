"""The architecture's choices one at a time, and the negative control: CCA that looks back along the row. A toy.

Command:   python -m experiments.sweep --config=configs/sweeps/architecture.py --workdir=results/sweeps/architecture
Hardware:  2 CPU cores, one run a core
Time and result: see results/sweeps/architecture/.

Feed-forward "dense" has one expert's size: as many FLOPs a token, fewer parameters.
"""

from ml_collections import ConfigDict

from configs.common import axis, product, sweep, together


def get_config() -> ConfigDict:
    once = together(evaluate__samples=4)
    jobs = [
        *axis("model.succession", "text", "row"),
        *axis("model.attention", "gqa"),
        *axis("model.feed_forward", "dense"),
        *axis("model.router_state", False),
        *axis("model.residual_scaling", False),
    ]
    return sweep("architecture", "configs/study.py", product(once, jobs))
