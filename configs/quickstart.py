"""Quickstart: a 0.37M-parameter ZAYA1 on real text and worked additions, AR -> TiDAR, sampled three ways. A toy.

Command:   python -m experiments.run --config=configs/quickstart.py --workdir=runs/quickstart
Arguments: :fast (seconds, only to see every stage run), :block_size=4, :preset=zaya1_1m, :alpha=0.5, :masking=random
Hardware:  2 CPU cores, under 4 GiB
Time and result: see README.md and results/quickstart/ (made by this file).

The text is this interpreter's own standard library; the task is addition with every column worked out, whose test pairs
never occur in training. `control` trains the pretrained model on for the same clean tokens with the AR loss alone: what
conversion costs is measured against it.
"""

from ml_collections import ConfigDict

from configs.common import data, evaluation, execution, mesh, model, parse_arg, phase
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = parse_arg(arg, fast=False, block_size=8, preset="zaya1_300k", alpha=4.0, masking="full")
    c = ConfigDict()
    c.name = "quickstart"
    c.seed = 0
    c.cpu_devices = 1  # devices the CPU is split into; batches are laid over them
    c.mesh = mesh()
    c.execution = execution()
    c.tokenizer = "bytes"  # or the path of a trained tokenizer.json
    c.model = model(chosen.preset)

    c.data = data(
        128,
        {"task": "addition", "options": {"digits": 3}, "weight": 0.7},
        {"text": "stdlib", "weight": 0.3},
    )

    c.phases = ("pretrain", "convert", "control")
    optimizer = OptimizerConfig(learning_rate=3e-3)
    steps = (20, 20) if chosen.fast else (900, 600)
    c.pretrain = phase(steps[0], Objective("autoregressive"), optimizer)
    draft = Objective("tidar", block_size=chosen.block_size, alpha=chosen.alpha, masking=chosen.masking)
    c.convert = phase(steps[1], draft, optimizer)
    c.control = phase(steps[1], Objective("autoregressive"), optimizer, start="pretrain")

    c.evaluate = evaluation(("addition",), prompts=512)
    if chosen.fast:
        c.evaluate.prompts = c.evaluate.batch = 16
    return c
