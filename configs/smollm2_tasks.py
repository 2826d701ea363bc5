"""SmolLM2-135M-Instruct drafts for itself on two CPU cores: word problems and additions, asked as chats.

Command:   python -m experiments.smollm2 --output=smollm2
           python -m experiments.run --config=configs/smollm2_tasks.py --workdir=runs/joint
Arguments: form=joint, adapters on all rows learn the tasks' worked answers and to draft them (TiDAR's own recipe);
           form=control, the same without drafts; form=drafts, adapters on mask tokens alone learn to draft what the
           published model itself writes, which stays as it is to the bit: answers=FILE.jsonl, from `experiments.ask`;
           adapters=DIR, of `experiments.adapters`: those are trained on;
           start=smollm2, the folder that the first command writes; block_size=8; steps=300; :smoke, two short steps
Hardware:  2 CPU cores
Time and result: docs/results/smollm2.md

A row of 256 tokens is a few chats. 16 blocks of it are drafted, from tokens of answers on (`blocks_per_row`): a grid
would draft questions too, which nobody samples.

Published (docs/method.md#training): the layout, the objective with alpha = 1, one step from masks to tokens, AdamW.
Ours: adapters and their rank, rates, batch, the sampled blocks; and that with form=drafts the drafts learn the model's
own distribution (`distill`): acceptance is all that they are for.
"""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from configs.common import data, evaluation, execution, mesh, model, parse_arg, phase
from zaya_jax.checks import no_such
from zaya_jax.errors import UserError
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig

ADAPTERS = dict(lora_rank=32, lora_alpha=64.0)
TASKS = (
    {"task": "gsm_symbolic", "options": {}, "as_chat": True, "weight": 0.8},
    {"task": "addition", "options": {"digits": 3}, "as_chat": True, "weight": 0.2},
)


def small_batches(
    name: str, start: str, mixture: Sequence[dict[str, Any]], objective: Objective, steps: int,
    freeze: tuple[str, ...], **fields: Any,
) -> ConfigDict:  # fmt: skip
    """All but the evaluation: SmolLM2 in `start`, of which little is trained, on two rows of 256 tokens a step.

    Args:
      fields: of its architecture, what is trained beside it.
    """
    c = ConfigDict()
    c.name = name
    c.seed = 0
    c.cpu_devices = 1
    c.mesh = mesh()
    c.tokenizer = start
    c.model = model("smollm2_135m", **fields, dtype="float32")
    c.execution = execution()
    c.data = data(256, *mixture, chat_template="tokenizer", packing="best_fit")
    c.data.validation_batches = 4
    optimizer = OptimizerConfig(
        learning_rate=1e-3,
        final_learning_rate=0.1,
        warmup_steps=min(20, steps),
        weight_decay=0.0,
        freeze=freeze,
        balancing_rate=0.0,
    )
    c.phases = ("convert",)
    c.convert = phase(steps, objective, optimizer, start=start, batch_size=2, log_every=5, save_every=25)
    return c


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = parse_arg(
        arg, form="joint", start="smollm2", answers="", adapters="", block_size=8, steps=300, smoke=False
    )
    common = dict(block_size=chosen.block_size, loss_on="answers", blocks_per_row=16)
    objectives = {
        "joint": Objective("tidar", **common),
        "control": Objective("autoregressive", loss_on="answers"),
        "drafts": Objective("tidar", **common, alpha=0.0, distill=1.0, slot_decay=0.8),
    }
    if chosen.form not in objectives:
        raise no_such("config argument form", chosen.form, objectives)
    drafts = chosen.form == "drafts"
    if drafts != bool(chosen.answers):
        may_be = "a file that `experiments.ask` wrote" if drafts else "given with form=drafts alone"
        raise UserError(f"config argument answers: got {chosen.answers!r}, may be {may_be}")
    mixture = ({"chat": (chosen.answers,), "weight": 1.0},) if drafts else TASKS
    c = small_batches(
        f"smollm2_{chosen.form}", chosen.start, mixture, objectives[chosen.form], chosen.steps, ("*", "!*lora*"),
        **ADAPTERS, lora_rows="drafts" if drafts else "all",
    )  # fmt: skip
    c.data.task_documents = 40_000
    c.convert.adapters = chosen.adapters or None
    c.evaluate = evaluation(
        ("gsm_symbolic", "addition"), prompts=32, chat=True, max_new_tokens=160, batch=1, cost=False
    )
    c.evaluate.update(samplers=("autoregressive",) if chosen.form == "control" else ("autoregressive", "lossless"))
    c.evaluate.anchor_budget = 0 if chosen.form == "control" else 1
    if chosen.smoke:
        c.data.update(task_documents=2000, validation_batches=1)
        c.convert.update(steps=2, log_every=1, evaluate_every=2)
        c.convert.optimizer.warmup_steps = 1
        c.evaluate.update(tasks=("addition",), prompts=1, max_new_tokens=4, temperatures=(0.0,))
    return c
