"""SmolLM2-135M-Instruct (a Llama; Apache-2.0, inside a PyPI package) to a block-diffusion model by TiDAR's recipe.

Command:   python -m experiments.smollm2 --output=smollm2
           python -m experiments.run --config=configs/smollm2.py --workdir=runs/smollm2
Arguments: start=smollm2, the folder that the first command writes; block_size=16; :lora, adapters in place of all
           weights; :drafts, adapters on mask tokens alone, so that the model of clean rows is the published one to the
           bit, and drafting from it lossless for it; text=DIR or FILE, your own text in place of the standard library;
           chats=FILE.jsonl, chats to learn beside, such as the model's own answers (`experiments.ask --chat`);
           :smoke, 50 short steps in float32, as many as a CPU can do
Hardware:  the whole run has not been done (below); :smoke, 2 CPU cores
Time and result: results/smollm2 has :smoke's losses. They fall; it shows that the recipe runs, nothing else

What the whole run costs: 1,000 steps of 65,536 clean tokens, 65.5M. A clean token is two slots (itself and its draft),
each 0.81 GFLOP forward and backward (6 x 134.5M parameters) and a third more, since layers are computed again in the
backward pass (remat): 2.15 GFLOP a token, 141 TFLOP a step, 1.41e17 in all. An hour is enough from 39 TFLOP/s on: an
eighth of an A100's bfloat16 peak (312), a 25th of an H100's (989). Adapters need a third less: frozen weights have no
gradients. Memory: 2.2 GB of parameters, gradients and moments in float32 (:lora 0.7), a quarter of a step's rows at a
time (accumulate), each layer's input kept of it, 2.3 GB.

Within minutes of an accelerator that is lent, adapters and their wall-clock by one command (docs/results/smollm2.md):
python -m experiments.bench.adapt --config=configs/smollm2.py:drafts,chats=answers.jsonl --minutes=3 ...

The data are what there is offline: Python's standard library and, as chats, word problems with worked answers
(GSM-Symbolic, extra `eval`; not in :smoke) and additions. They are narrow: whoever wants a good model gives it more.

Published (docs/method.md#training): the layout, the objective with alpha = 1, one step from masks to tokens, AdamW,
cosine with 1% of warm-up to a third. Ours: learning rates (TiDAR's 1e-5 is for 50B tokens), rank and alpha of adapters,
batch, and that with :drafts the drafts learn the model's own distribution (`distill`) rather than the tokens:
acceptance is all that they are for.
"""

import dataclasses

from ml_collections import ConfigDict

from configs.common import data, evaluation, execution, mesh, model, parse_arg, phase
from zaya_jax.errors import UserError
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig

ADAPTERS = dict(lora_rank=32, lora_alpha=64.0)


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = parse_arg(
        arg, start="smollm2", block_size=16, lora=False, drafts=False, text="stdlib", chats="", smoke=False
    )
    if chosen.lora and chosen.drafts:
        raise UserError("config argument drafts: contradicts lora, may be given alone")
    c = ConfigDict()
    c.name = "smollm2"
    c.seed = 0
    c.cpu_devices = 1
    c.mesh = mesh()
    c.tokenizer = chosen.start
    adapters = ADAPTERS | {"lora_rows": "drafts" if chosen.drafts else "all"} if chosen.lora or chosen.drafts else {}
    c.model = model("smollm2_135m", **adapters, dtype="float32" if chosen.smoke else "bfloat16")
    c.execution = execution() if chosen.smoke else execution(remat="full", query_chunk=2048)

    text = chosen.text if chosen.text == "stdlib" else (chosen.text,)
    c.data = data(
        256 if chosen.smoke else 1024,
        {"text": text, "weight": 0.5},
        {"task": "addition", "options": {"digits": 3}, "as_chat": True, "weight": 0.1},
        *(({"chat": (chosen.chats,), "weight": 0.3},) if chosen.chats else ()),
        *(() if chosen.smoke else ({"task": "gsm_symbolic", "options": {}, "as_chat": True, "weight": 0.4},)),
        chat_template="tokenizer",
        packing="best_fit",
        task_documents=40_000,
    )

    objective = Objective("tidar", block_size=chosen.block_size)
    if chosen.drafts:
        objective = dataclasses.replace(objective, alpha=0.0, distill=1.0)
    steps, rows = (50, 1) if chosen.smoke else (1000, 64)
    optimizer = OptimizerConfig(
        learning_rate=1e-3 if adapters else 1e-4,
        final_learning_rate=0.3,
        warmup_steps=max(1, steps // 100),
        weight_decay=0.0,
        accumulate=1 if chosen.smoke else 4,
        freeze=("*", "!*lora*") if adapters else (),
        balancing_rate=0.0,
    )
    c.phases = ("convert",)
    c.convert = phase(steps, objective, optimizer, start=chosen.start, batch_size=rows)
    c.evaluate = evaluation(("gsm_symbolic",), prompts=128, chat=True, max_new_tokens=256, batch=32)
    if chosen.smoke:
        c.data.update(task_documents=2000, validation_batches=1)
        c.convert.update(log_every=1, evaluate_every=25, save_every=50)
        # that samplers run at all; a budget of branch points would be measured first, with all of them
        c.evaluate.update(tasks=("addition",), prompts=1, batch=1, max_new_tokens=4, cost=False)
        c.evaluate.update(samplers=("autoregressive", "lossless"), temperatures=(0.0,))
    return c
