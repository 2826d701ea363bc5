"""A run of seconds, for tests of the commands."""

from pathlib import Path

from ml_collections import ConfigDict

from configs import quickstart
from configs.common import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    """`:lean` reads these tests instead of the standard library, which takes seconds, and measures no forward's cost,
    which compiles five programs.
    """
    lean = parse_arg(arg, lean=False).lean
    c = quickstart.get_config("fast,preset=tiny,block_size=4")
    c.data.row_length = 48
    c.data.task_documents = 400
    c.data.validation_batches = 1
    for name in ("pretrain", "convert", "control"):
        c[name].update(steps=6, batch_size=4, log_every=1, evaluate_every=4, save_every=2)
    c.evaluate.update(prompts=8, batch=4, max_new_tokens=16, cost=not lean)
    if lean:
        c.data.mixture = (c.data.mixture[0], ConfigDict({"text": [str(Path(__file__).parent / "*.py")], "weight": 0.3}))
    return c
