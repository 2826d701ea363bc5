"""One trained model, block 16, many samplers: beta, temperature, draft temperature, budget of anchors. A toy.

Command:   python -m experiments.sweep --config=configs/sweeps/samplers.py --workdir=results/sweeps/samplers
Hardware:  2 CPU cores, one run a core
Time and result: see results/sweeps/samplers/.
"""

from ml_collections import ConfigDict

from configs.common import axis, product, sweep, together


def get_config() -> ConfigDict:
    common = together(evaluate__tasks=("list_programs",), evaluate__prompts=128)
    mixing = product(
        common,
        together(evaluate__samplers=("autoregressive", "mix_stale"), evaluate__temperatures=(1.0,)),
        axis("evaluate.beta", 0.0, 0.25, 0.5, 0.75, 1.0),
    )
    lossless = product(
        common,
        together(evaluate__samplers=("autoregressive", "lossless"), evaluate__samples=4),
        [
            *product(axis("evaluate.temperatures", (1.0,)), axis("evaluate.anchor_budget", 1, 2, 3, 5, 0)),
            *product(axis("evaluate.temperatures", (1.0,)), axis("evaluate.draft_temperature", 0.0, 0.5, 0.7)),
            *axis("evaluate.temperatures", (0.5,), (0.7,)),
        ],
    )
    return sweep("samplers", "configs/study.py", [*mixing, *lossless])
