"""Two runs of tests/experiments/tiny.py that differ after pretraining, and one that cannot work: it has no text."""

from configs.common import axis, parse_arg, product, sweep, together


def get_config(arg=None):
    chosen = parse_arg(arg, samples=2, block_size=4)
    small = together(
        evaluate__temperatures=(1.0,), evaluate__samples=chosen.samples, evaluate__arms=("autoregressive", "lossless"),
        convert__objective__block_size=chosen.block_size,
    )  # fmt: skip
    nothing = ({"text": ["tests/experiments/empty.txt"], "weight": 1.0},)
    jobs = product(small, [*axis("convert.objective.alpha", 1.0, 0.5), *axis("control.mixture", nothing)])
    return sweep("tiny", "tests/experiments/tiny.py", jobs)
