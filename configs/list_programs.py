"""List programs alone, block 16, a conversion nine times as long as the study's: how far T goes. A toy.

Command:   python -m experiments.run --config=configs/list_programs.py --workdir=runs/list_programs
Arguments: those of configs/study.py
Hardware:  2 CPU cores
Time and result: see results/list_programs/ (made by this file). Beside other jobs on one core, 24 minutes of
pretraining (a separate command that shared --stages: environment_training.json), 62 of conversion and 6 of evaluation.
"""

from ml_collections import ConfigDict

from configs import study


def get_config(arg: str | None = None) -> ConfigDict:
    c = study.get_config(arg)
    c.name = "list_programs"
    c.data.mixture = (
        ConfigDict({"task": "list_programs", "options": ConfigDict({"max_operations": 2}), "weight": 1.0}),
    )
    if c.convert.steps > 100:  # not :fast
        c.pretrain.steps, c.convert.steps = 2400, 3600
    c.evaluate.update(tasks=("list_programs",), anchor_budget=0)
    return c
