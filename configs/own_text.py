"""Your own text, one file or a folder: a small ZAYA1 trained on it, converted, sampled on what was held back. A toy.

Command:   python -m experiments.run --config=configs/own_text.py:text=my/folder --workdir=runs/own_text
Arguments: text=FILE or DIR (.txt, .md, source files, .jsonl with a field "text"); tokenizer=bytes, or tokenizer=bpe
           with vocab_size=1024: your own BPE, trained on the train split and kept in WORKDIR/tokenizer.json;
           block_size=8; preset=zaya1_300k; :fast, a try of a few steps
Hardware:  CPU cores; nothing has been measured yet
Time and result: none committed. T depends on the text: see report.html

A few documents (one book, say) are divided, 90/5/5; of many, 2% are held back whole for validation and 2% for sampling:
WORKDIR/data/*/*/*/manifest.json says which. There is no task, so the samplers continue prefixes of held-out documents:
the report has tokens per forward, rows, wall-clock, whether greedy tokens are AR's, and the log-probability under AR.
"""

from ml_collections import ConfigDict

from configs.common import data, evaluation, execution, mesh, model, parse_arg, phase
from zaya_jax.errors import UserError
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = parse_arg(
        arg, text="stdlib", tokenizer="bytes", vocab_size=1024, block_size=8, preset="zaya1_300k", fast=False
    )
    if not chosen.text:
        raise UserError("config argument text: got '', may be a file or a folder of text")
    c = ConfigDict()
    c.name = "own_text"
    c.seed = 0
    c.cpu_devices = 1
    c.mesh = mesh()
    c.execution = execution()
    if chosen.tokenizer not in ("bytes", "bpe"):
        raise UserError(f"config argument tokenizer: got {chosen.tokenizer!r}, may be bytes or bpe")
    bpe = chosen.tokenizer == "bpe"
    c.tokenizer = f"bpe:{chosen.vocab_size}" if bpe else "bytes"
    c.model = model(chosen.preset, **({"vocab_size": chosen.vocab_size} if bpe else {}))
    text = chosen.text if chosen.text == "stdlib" else (chosen.text,)
    c.data = data(128 if chosen.fast else 256, {"text": text, "weight": 1.0})

    c.phases = ("pretrain", "convert")
    optimizer = OptimizerConfig(learning_rate=3e-3)
    steps = (20, 20) if chosen.fast else (900, 600)
    c.pretrain = phase(steps[0], Objective("autoregressive"), optimizer)
    c.convert = phase(steps[1], Objective("tidar", block_size=chosen.block_size), optimizer)

    c.evaluate = evaluation((), prompts=128)  # no task: prefixes of held-out documents
    if chosen.fast:
        c.evaluate.update(prompts=8, batch=8, max_new_tokens=32, cost=False)
    return c
