"""Two runs of tests/experiments/tiny.py that differ behind pretraining, and one that cannot work."""

from configs.common import axis, product, sweep, together


def get_config():
    small = together(evaluate__temperatures=(1.0,), evaluate__samples=2, evaluate__arms=("autoregressive", "lossless"))
    jobs = product(small, axis("convert.objective.alpha", 1.0, 0.5))
    return sweep("tiny", "tests/experiments/tiny.py", [*jobs, *together(convert__objective__block_size=0)])
