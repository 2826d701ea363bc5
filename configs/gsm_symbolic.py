"""Word problems with worked answers (two templates of GSM-Symbolic), block 16, pass@16. A toy; needs the `eval` extra.

Command:   python -m experiments.run --config=configs/gsm_symbolic.py --workdir=runs/gsm_symbolic
           (three seeds: python -m experiments.sweep --config=configs/sweeps/gsm_symbolic.py)
Arguments: those of configs/study.py
Hardware:  2 CPU cores
Time and result: see results/sweeps/gsm_symbolic/.

A template's wording is learned in minutes, arithmetic on its numbers is not: digits are what the model is unsure of.
"""

from ml_collections import ConfigDict

from configs import study


def get_config(arg: str | None = None) -> ConfigDict:
    c = study.get_config(arg)
    c.name = "gsm_symbolic"
    c.data.mixture = (ConfigDict({"task": "gsm_symbolic", "options": ConfigDict({"templates": 2}), "weight": 1.0}),)
    c.data.row_length = 512  # a document has at most 350 bytes
    c.data.task_documents = 40_000  # 5 ms each to draw
    for part in (c.pretrain, c.convert):
        part.batch_size = 8
    if c.convert.steps > 100:  # not :fast
        c.pretrain.steps, c.convert.steps = 800, 1000
    c.evaluate.update(tasks=("gsm_symbolic",), prompts=128, max_new_tokens=224)
    return c
