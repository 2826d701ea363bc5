"""Two runs of tests/experiments/tiny.py that differ by what compiles nothing, and one that has no text.

Both phases train autoregressively and so by one program.
"""

from configs.common import axis, parse_arg, product, sweep, together


def get_config(arg=None):
    chosen = parse_arg(arg, seed=7, prompts=4)
    small = together(
        phases=("pretrain", "control"), evaluate__temperatures=(1.0,), evaluate__samplers=("autoregressive",),
        evaluate__prompts=chosen.prompts, evaluate__seed=chosen.seed,
    )  # fmt: skip
    nothing = ({"text": ["tests/experiments/empty.txt"], "weight": 1.0},)
    jobs = product(small, [*axis("control.optimizer.warmup_steps", 2, 3), *axis("control.mixture", nothing)])
    return sweep("tiny", "tests/experiments/tiny.py:lean", jobs)
