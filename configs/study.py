"""The study's base: one small model on two verifiable tasks, pretrained, converted, sampled for pass@16. A toy.

Command:   python -m experiments.run --config=configs/study.py --workdir=runs/study
           (all its variants: python -m experiments.sweep --config=configs/sweeps/study.py)
Arguments: :fast (seconds), :block_size=8, :preset=zaya1_1m
Hardware:  2 CPU cores
Time and result: see results/sweeps/ (each made by the sweep of its name).
"""

from ml_collections import ConfigDict

from configs.common import data, evaluation, execution, mesh, model, parse_arg, phase
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = parse_arg(arg, fast=False, block_size=16, preset="zaya1_300k")
    c = ConfigDict()
    c.name = "study"
    c.seed = 0
    c.cpu_devices = 1
    c.mesh = mesh()
    c.execution = execution()
    c.tokenizer = "bytes"
    c.model = model(chosen.preset)

    c.data = data(
        256,
        {"task": "list_programs", "options": {"max_operations": 2}, "weight": 0.6},
        {"task": "countdown", "options": {"numbers": 3}, "weight": 0.4},
        task_documents=2_000_000,
    )

    c.phases = ("pretrain", "convert")
    optimizer = OptimizerConfig(learning_rate=3e-3)
    steps = (20, 20) if chosen.fast else (1000, 400)
    c.pretrain = phase(steps[0], Objective("autoregressive", loss_on="answers"), optimizer)
    draft = Objective("tidar", block_size=chosen.block_size, alpha=1.0, loss_on="answers")
    c.convert = phase(steps[1], draft, optimizer)
    for part in (c.pretrain, c.convert):
        part.evaluate_every = part.save_every = 500

    c.evaluate = evaluation(("list_programs", "countdown"), prompts=256, samples=16, batch=128)
    c.evaluate.update(anchor_budget=3, max_new_tokens=48, cost=False)
    if chosen.fast:
        c.evaluate.update(prompts=8, batch=32)
    return c
