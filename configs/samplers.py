"""The model that the sampler benchmarks run on: 1M parameters, block 16, otherwise the quickstart's recipe. A toy.

Command:   python -m experiments.run --config=configs/samplers.py --workdir=runs/samplers
Arguments: those of configs/quickstart.py
Hardware:  2 CPU cores, under 4 GiB
Time and result: see results/samplers/ (made by this file) and results/bench/samplers.json.
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config(arg: str | None = None) -> ConfigDict:
    c = quickstart.get_config(",".join(filter(None, ("block_size=16,preset=zaya1_1m", arg))))
    c.name = "samplers"
    if c.convert.steps > 100:  # not :fast
        c.convert.steps = c.control.steps = 1000
    for phase in (c.pretrain, c.convert, c.control):
        phase.optimizer.learning_rate = 2e-3
    return c
