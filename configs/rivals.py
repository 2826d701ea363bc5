"""Ways to draft, each trained from one AR checkpoint for the same FLOPs and sampled losslessly. A toy.

Command:   python -m experiments.run --config=configs/rivals.py:method=eagle3 --workdir=runs/rivals/eagle3
           (all methods, three seeds: python -m experiments.sweep --config=configs/sweeps/rivals.py)
Arguments: :method=NAME (METHODS), :task=list_programs|countdown|gsm_symbolic, :budget=flops|tokens, :block_size=8,
           :steps=400 (TiDAR's, whose FLOPs or tokens everyone gets), :preset=zaya1_300k, :start=DIR (an AR
           checkpoint in place of the pretraining here), :smoke (seconds)
Hardware:  2 CPU cores
Time and result: see results/rivals/ where it is committed.

budget=flops: each method takes as many steps as TiDAR's FLOPs pay for, counted by `zaya_jax.costs.drafters`: a frozen
target's forward once, a drafter's forward and backward. budget=tokens: as many steps, hence clean tokens, as TiDAR.
--config.convert.batch_size and the like change what a step costs, not how many there are.

MTP is trained by three steps of recursion (block_size 4), the others by block_size - 1 drafts; `evaluate.draft_length`
is what a step drafts. Every method is also sampled with its likeliest drafts, blocks also as trees, and "ngram" (prompt
lookup, no training) beside all.
"""

import dataclasses
import math
from typing import Any

from ml_collections import ConfigDict

from configs.common import data, evaluation, execution, mesh, model, parse_arg, phase
from zaya_jax.architecture import ZayaConfig, preset
from zaya_jax.checks import Choice, check
from zaya_jax.costs.drafters import objective_flops
from zaya_jax.costs.flops import ALL, Trained
from zaya_jax.training.drafter_objective import FROZEN_TARGET, DrafterObjective
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig

LORA = dict(lora_rank=8, lora_alpha=16.0, lora_rows="drafts")
RATE = 3e-3
FROZEN = dict(freeze=FROZEN_TARGET, balancing_rate=0.0)


@dataclasses.dataclass(frozen=True)
class Method:
    """What a method trains, and by what it is sampled beside "autoregressive" and "ngram"."""

    objective: Objective | None  # None: nothing is trained
    samplers: tuple[str, ...] = ()
    optimizer: dict[str, Any] = dataclasses.field(default_factory=dict)
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    trained: Trained = ALL  # of the model itself


def methods(block_size: int) -> dict[str, Method]:
    """By name, for blocks of so many slots."""
    scored: dict[str, Any] = dict(loss_on="answers")
    recursed = dict(block_size=4, slot_decay=0.6)
    decay = math.exp(-2 / block_size)  # DFlash's gamma is half a block
    blocks = ("dflash", "dflash_likeliest", "dflash_tree")
    masks = ("lossless", "lossless_two_pass", "mask_block_likeliest", "mask_block_tree")

    def drafter(kind: str, **fields: Any) -> Objective:
        chosen: dict[str, Any] = {"block_size": block_size, **scored, **fields}
        return DrafterObjective(kind, **chosen)

    tidar = Objective("tidar", block_size=block_size, **scored)
    lora = Objective("tidar", block_size=block_size, alpha=0.0, **scored)
    return {
        "ngram": Method(None),
        "ar": Method(Objective("autoregressive", **scored)),
        "tidar": Method(tidar, masks),
        "tidar_lora": Method(
            lora, masks, dict(freeze=("*", "!*lora*"), balancing_rate=0.0), LORA, Trained(context=1, drafts=2)
        ),
        "mtp": Method(drafter("mtp", alpha=1 / 0.3, **recursed), ("mtp", "mtp_likeliest")),
        "mtp_frozen": Method(drafter("mtp", **recursed), ("mtp", "mtp_likeliest"), FROZEN),
        "medusa": Method(
            drafter("medusa", own_head=True, slot_decay=0.8), ("medusa", "medusa_likeliest", "medusa_tree"), FROZEN
        ),
        "eagle3": Method(drafter("eagle3", distill=1.0, slot_decay=0.8), ("eagle3", "eagle3_likeliest"), FROZEN),
        "dflash": Method(drafter("dflash", slot_decay=decay), blocks, FROZEN),
        "dflash_causal": Method(drafter("dflash", causal=True, slot_decay=decay), blocks, FROZEN),
    }


METHODS = tuple(methods(8))
TASKS = {  # options, row length, rows of a batch, steps of pretraining, new tokens
    "list_programs": ({"max_operations": 2}, 256, 16, 1000, 48),
    "countdown": ({"numbers": 3}, 256, 16, 1000, 48),
    "gsm_symbolic": ({"templates": 2}, 512, 8, 800, 224),
}


def steps_for(method: Method, target: ZayaConfig, rows: int, row_length: int, reference: Method, steps: int) -> int:
    """Steps of a method that cost as many FLOPs as `steps` of the reference; at least one."""

    def cost(each: Method) -> int:
        assert each.objective is not None
        config = target.replace(**each.model, drafter=each.objective.drafter)
        return objective_flops(config, each.objective, rows, row_length, trained=each.trained)

    return max(1, round(steps * cost(reference) / cost(method)))


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = parse_arg(
        arg, smoke=False, method="tidar", task="list_programs", budget="flops", block_size=8, steps=400,
        preset="zaya1_300k", start="",
    )  # fmt: skip
    check("config argument method", chosen.method, Choice(METHODS))
    check("config argument task", chosen.task, Choice(tuple(TASKS)))
    check("config argument budget", chosen.budget, Choice(("flops", "tokens")))
    if chosen.smoke:
        chosen.update(preset="tiny", steps=4, block_size=4)
    options, row_length, rows, pretraining, new_tokens = TASKS[chosen.task]
    if chosen.smoke:
        row_length, rows, pretraining, new_tokens = max(128, row_length // 2), 2, 2, 8
    every = methods(chosen.block_size)
    method = every[chosen.method]
    c = ConfigDict()
    c.name = "rivals"
    c.seed = 0
    c.cpu_devices = 1
    c.mesh = mesh()
    c.execution = execution()
    c.tokenizer = "bytes"
    c.model = model(chosen.preset, **method.model)
    c.data = data(row_length, {"task": chosen.task, "options": options, "weight": 1.0}, task_documents=200_000)

    scored = Objective("autoregressive", loss_on="answers")
    c.phases = ("pretrain", "convert")
    c.pretrain = phase(0 if chosen.start else pretraining, scored, OptimizerConfig(learning_rate=RATE), batch_size=rows)
    steps = chosen.steps
    if method.objective is None:
        steps = 0
    elif chosen.budget == "flops":
        steps = steps_for(method, preset(chosen.preset), rows, row_length, every["tidar"], steps)
    optimizer = OptimizerConfig(learning_rate=RATE, **method.optimizer)
    c.convert = phase(steps, method.objective or scored, optimizer, batch_size=rows)
    if chosen.start:
        c.pretrain.start = chosen.start
    for part in (c.pretrain, c.convert):
        part.evaluate_every = part.save_every = 500

    c.evaluate = evaluation((chosen.task,), prompts=256, batch=64, max_new_tokens=new_tokens, cost=False)
    c.evaluate.samplers = ("autoregressive", "ngram", *method.samplers)
    if method.objective is None or not method.samplers:
        c.evaluate.draft_length = chosen.block_size - 1
    if chosen.smoke:
        c.data.update(task_documents=400, validation_batches=1)
        c.evaluate.update(prompts=2, batch=2)
    return c
