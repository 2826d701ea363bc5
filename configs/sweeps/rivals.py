"""Every way to draft from one AR checkpoint, three seeds, equal training FLOPs. A toy.

Command:   python -m experiments.sweep --config=configs/sweeps/rivals.py --workdir=results/rivals/list_programs
Arguments: :task=countdown, :budget=tokens, :steps=100 (those of configs/rivals.py), :seeds=1
Hardware:  2 CPU cores, one run a core
Time and result: see results/rivals/ where it is committed.

Methods that change the model's own parameters (tidar_lora's adapters) pretrain by themselves; all others share one
checkpoint a seed.
"""

from ml_collections import ConfigDict

from configs.common import axis, parse_arg, product, sweep, zipped
from configs.rivals import METHODS


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = parse_arg(arg, task="list_programs", budget="flops", steps=400, seeds=3, smoke=False)
    # every training seed meets other test problems
    seeds = zipped(
        axis("seed", *range(chosen.seeds)), axis("evaluate.seed", *(1_000 * (i + 1) for i in range(chosen.seeds)))
    )
    base = f"configs/rivals.py:task={chosen.task},budget={chosen.budget},steps={chosen.steps}{',smoke' * chosen.smoke}"
    # a seed's methods together: what an interrupted sweep leaves compares all of them
    return sweep("rivals", base, product(seeds, axis(":method", *METHODS)))
