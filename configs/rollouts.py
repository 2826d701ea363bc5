"""Reinforcement learning on rollouts that several tokens of a forward make: Countdown or list programs. A toy.

Command:   python -m experiments.run --config=configs/rollouts.py --workdir=runs/rollouts
           (its arms: python -m experiments.sweep --config=configs/sweeps/rollouts.py)
Arguments: :smoke (seconds, only to see every stage run), :task=list_programs, :sampler=autoregressive (or
           lossless_two_pass, ...), :draft_on=none (or positive), :distill=1, :algorithm=rloo (or grpo, dapo)
Hardware:  2 CPU cores
Time and result: see docs/results/rollouts.md.

Countdown is pretrained and converted here, briefly, so that many of its problems are solved in some of a group's
answers; list programs start from the model of results/list_programs. Then `policy`: every step draws 8 problems,
answers each 8 times at temperature 1, and takes one step on these 64 answers, exactly on-policy. Its drafts are trained
on the same rows of the same forward (draft_on), or are left to lag after the policy.
"""

from ml_collections import ConfigDict

from configs.common import data, evaluation, execution, mesh, model, parse_arg, phase
from zaya_jax.errors import UserError
from zaya_jax.rollouts.advantages import ALGORITHMS
from zaya_jax.rollouts.objective import PolicyObjective
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig

TASKS = {  # options; tokens of a row and of an answer; draft blocks in a row of rollouts; block size, branch points
    "countdown": ({"numbers": 3}, 36, 16, 3, 8, (1, 2, 3)),
    "list_programs": ({"max_operations": 2}, 160, 48, 4, 16, (1, 3, 6)),
}


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = parse_arg(
        arg, smoke=False, task="countdown", sampler="lossless", draft_on="all", distill=0.0, algorithm="dr_grpo"
    )  # fmt: skip
    for name, known in (("task", TASKS), ("algorithm", ALGORITHMS)):
        if chosen[name] not in known:
            raise UserError(f"config argument {name}: got {chosen[name]!r}, may be one of {', '.join(known)}")
    options, row_length, new_tokens, blocks, size, anchors = TASKS[chosen.task]
    c = ConfigDict()
    c.name = "rollouts"
    c.seed = 0
    c.cpu_devices = 1
    c.mesh = mesh()
    c.execution = execution()
    c.tokenizer = "bytes"
    c.model = model("zaya1_300k")
    c.data = data(
        240, {"task": chosen.task, "options": options, "weight": 1.0}, task_documents=2_000_000, validation_batches=2
    )

    policy = PolicyObjective(
        block_size=size, draft_on=chosen.draft_on, distill=chosen.distill, blocks_per_row=blocks,
        **ALGORITHMS[chosen.algorithm],
    )  # fmt: skip
    slow = OptimizerConfig(learning_rate=6e-4, schedule="constant", warmup_steps=10, weight_decay=0.0)
    c.policy = phase(2 if chosen.smoke else 100, policy, slow, batch_size=64, row_length=row_length)
    c.policy.update(log_every=1, evaluate_every=20, save_every=20)
    c.policy.rollouts = ConfigDict(
        {
            "group": 8,  # answers of each of batch_size / group problems
            "max_new_tokens": new_tokens,
            "sampler": chosen.sampler,
            "anchors": anchors,
            "batch": 16,  # answers side by side
            "updates": 1,  # steps on each batch of rollouts
            "held_out": 32,
            "held_out_samples": 16,
        }
    )
    if chosen.task == "list_programs":
        c.phases = ("policy",)
        c.policy.start = "results/list_programs/model"
    else:
        c.phases = ("pretrain", "convert", "policy")
        quick = OptimizerConfig(learning_rate=3e-3)
        steps = (2, 2) if chosen.smoke else (300, 300)
        c.pretrain = phase(steps[0], Objective("autoregressive", loss_on="answers"), quick)
        c.convert = phase(steps[1], Objective("tidar", block_size=size, loss_on="answers"), quick)
        for part in (c.pretrain, c.convert):
            part.evaluate_every = part.save_every = 100

    c.evaluate = evaluation((chosen.task,), prompts=128, samples=16, batch=64, phase="policy", cost=False)
    c.evaluate.update(max_new_tokens=new_tokens, samplers=("autoregressive", "lossless"), temperatures=(1.0,))
    if chosen.smoke:
        c.policy.batch_size = 8
        c.policy.rollouts.update(group=4, batch=4, held_out=2)
        c.evaluate.update(prompts=4, batch=16)
    return c
