"""List programs of up to three operations, block 16, drafted at temperature 0.7: where mixing passes T = 6. A toy.

Command:   python -m experiments.run --config=configs/list_programs_3.py --workdir=runs/list_programs_3
Arguments: those of configs/study.py
Hardware:  2 CPU cores
Time and result: see results/list_programs_3/ (made by this file).

It resumes from the model of configs/list_programs.py (results/list_programs/model), which knows one and two operations.
"""

from ml_collections import ConfigDict

from configs import list_programs


def get_config(arg: str | None = None) -> ConfigDict:
    c = list_programs.get_config(arg)
    c.name = "list_programs_3"
    c.data.mixture[0].options.max_operations = 3
    c.pretrain.steps = 0
    c.convert.start = "results/list_programs/model"
    c.evaluate.draft_temperature = 0.7
    return c
