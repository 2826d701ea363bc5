"""A drafter beside SmolLM2-135M-Instruct, which stays as it is to the bit: trained on what the model itself wrote.

Command:   python -m experiments.smollm2 --output=smollm2
           python -m experiments.run --config=configs/smollm2_rivals.py:method=dflash --workdir=runs/smollm2_dflash
Arguments: method=dflash|dflash_causal|eagle3|mtp_frozen (docs/training.md#drafters), steps=200, block_size=4;
           answers=FILE.jsonl, from `experiments.ask`; start=smollm2, the folder that the first command writes;
           :smoke, two short steps
Hardware:  2 CPU cores
Time and result: docs/results/rivals.md

Rows, answers and rates are those of configs/smollm2_tasks.py:form=drafts, the same model's adapters on mask tokens, so
that T can be compared by training tokens; objectives are those of configs/rivals.py. Medusa is left out: each of its
heads would be a fifth of the model.
"""

import dataclasses

from ml_collections import ConfigDict

from configs.common import evaluation, parse_arg
from configs.rivals import methods
from configs.smollm2_tasks import small_batches
from zaya_jax.checks import Choice, check
from zaya_jax.training.drafter_objective import FROZEN_TARGET

METHODS = ("dflash", "dflash_causal", "eagle3", "mtp_frozen")
ANSWERS = "results/smollm2/drafts/answers.jsonl"
BLOCKS = 48  # of dflash in a row of 256 tokens


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = parse_arg(arg, method="dflash", start="smollm2", answers=ANSWERS, block_size=4, steps=200, smoke=False)
    check("config argument method", chosen.method, Choice(METHODS))
    method = methods(chosen.block_size)[chosen.method]
    objective = method.objective
    assert objective is not None
    if chosen.method.startswith("dflash"):
        objective = dataclasses.replace(objective, blocks_per_row=BLOCKS)
    answers = ({"chat": (chosen.answers,), "weight": 1.0},)
    c = small_batches(f"smollm2_{chosen.method}", chosen.start, answers, objective, chosen.steps, FROZEN_TARGET)
    c.evaluate = evaluation(("gsm_symbolic",), prompts=12, chat=True, max_new_tokens=128, batch=1, cost=False)
    c.evaluate.update(samples=1, samplers=("autoregressive", "ngram", *method.samplers))
    if chosen.smoke:
        c.data.validation_batches = 1
        c.convert.update(steps=2, log_every=1, evaluate_every=2)
        c.convert.optimizer.warmup_steps = 1
        c.evaluate.update(prompts=1, max_new_tokens=4, temperatures=(0.0,))
    return c
