"""Is order-constrained drafting more stable to train? Nine objectives from one AR checkpoint. A toy.

Command:   python -m experiments.run --config=configs/stability.py --workdir=runs/stability --train_only \\
               --config.phases="('pretrain',)"
           python -m experiments.bench.stability --config=configs/stability.py --workdir=runs/stability \\
               --output=results/stability/tiny.json
Arguments: :fast (seconds), :arm=sbd (one of ARMS), :preset=zaya1_300k
Hardware:  2 CPU cores, under 3 GiB
Time and result: see docs/results/stability.md and results/stability/.

The first command trains the AR checkpoint; the second measures every arm from it (see there). `convert` is an arm's
phase, so that experiments.run and experiments.sweep can train and sample one of them.
"""

import dataclasses

from ml_collections import ConfigDict

from configs.common import data, evaluation, execution, mesh, model, parse_arg, phase
from zaya_jax.errors import UserError
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig

_RANDOM = Objective("tidar", 8, masking="random")
_LINEAR = dataclasses.replace(_RANDOM, weight="inverse", least_rate=1e-3, average="tokens")
# The context tokens are causal in every arm, also where BD3-LM and SDAR have them see their own block.
ARMS = {
    "tidar": Objective("tidar", 8),
    "random": _RANDOM,
    "sbd": dataclasses.replace(_RANDOM, rate_of="row", block_size=16, smallest_block=2, average="tokens"),
    "bd3": _LINEAR,
    "bd3_no_ar": dataclasses.replace(_LINEAR, alpha=0.0),
    "bd3_clipped": dataclasses.replace(_LINEAR, least_rate=0.45, most_rate=0.95),
    "complementary": dataclasses.replace(_RANDOM, masking="complementary"),
    "llada": dataclasses.replace(_LINEAR, rate_of="row", row_layout="whole", alpha=0.0),
    "autoregressive": Objective("autoregressive"),
}
# Beside the nine: what tells one cause from another.
MORE = {
    "tidar_no_ar": dataclasses.replace(ARMS["tidar"], alpha=0.0),
    "sdar": dataclasses.replace(_LINEAR, rate_of="row", alpha=0.0),
    "sbd_no_ar": dataclasses.replace(ARMS["sbd"], alpha=0.0),
    "random_no_ar": dataclasses.replace(_RANDOM, alpha=0.0),
    "sbd_by_masked": dataclasses.replace(ARMS["sbd"], average="masked"),
    "bd3_by_masked": dataclasses.replace(_LINEAR, average="masked"),
}


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = parse_arg(arg, fast=False, arm="tidar", preset="tiny")
    arms = ARMS | MORE
    if chosen.arm not in arms:
        raise UserError(f"config argument arm: got {chosen.arm!r}, may be one of {', '.join(arms)}")
    c = ConfigDict()
    c.name = "stability"
    c.seed = 0
    c.cpu_devices = 1
    c.mesh = mesh()
    c.execution = execution(expert_backend="dense")  # compiles fast; the experts are tiny
    c.tokenizer = "bytes"
    c.model = model(chosen.preset)

    c.data = data(64, {"task": "addition", "options": {"digits": 2}, "weight": 1.0}, validation_batches=32)

    c.phases = ("pretrain", "convert")
    steps = (20, 20) if chosen.fast else (1000, 60)
    optimizer = OptimizerConfig(learning_rate=3e-3)
    c.pretrain = phase(steps[0], Objective("autoregressive"), optimizer, batch_size=16)
    c.convert = phase(steps[1], arms[chosen.arm], optimizer, batch_size=4)
    for part in (c.pretrain, c.convert):
        part.evaluate_every = part.save_every = 1000

    c.evaluate = evaluation(("addition",), prompts=128, samples=16, max_new_tokens=40, cost=False)
    c.evaluate.samplers = ("autoregressive", "lossless", "threshold", "entropy_bounded")
    if chosen.fast:
        c.evaluate.prompts, c.evaluate.samples, c.evaluate.batch = 8, 1, 8
    return c
