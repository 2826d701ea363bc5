"""Two runs of tests/experiments/tiny.py that differ by what compiles nothing, and one that has no text."""

from configs.common import axis, parse_arg, product, sweep, together


def get_config(arg=None):
    chosen = parse_arg(arg, seed=7, block_size=4)
    small = together(
        phases=("pretrain", "convert"), convert__objective__block_size=chosen.block_size,
        evaluate__temperatures=(1.0,), evaluate__samplers=("autoregressive",), evaluate__prompts=4,
        evaluate__seed=chosen.seed,
    )  # fmt: skip
    nothing = ({"text": ["tests/experiments/empty.txt"], "weight": 1.0},)
    jobs = product(small, [*axis("convert.optimizer.warmup_steps", 2, 3), *axis("convert.mixture", nothing)])
    return sweep("tiny", "tests/experiments/tiny.py:lean", jobs)
