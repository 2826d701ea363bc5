"""What rollouts are drawn with, and what keeps drafts fresh: arms of configs/rollouts.py, three seeds each. A toy.

Command:   python -m experiments.sweep --config=configs/sweeps/rollouts.py --workdir=runs/rollouts
           (--config=configs/sweeps/rollouts.py:task=list_programs for the other task)
Hardware:  2 CPU cores, one run a core
Time and result: see docs/results/rollouts.md, which says which of them were run.

All take as many updates of as many rollouts, on the same problems. `autoregressive` draws a token a forward; `lossless`
several, with drafts that are not trained on (none), trained on every rollout or those of positive advantage, by the
tokens or by the policy's own distribution (distill); `mix_stale` draws from another distribution than the policy's,
with importance weights.
"""

from ml_collections import ConfigDict

from configs.common import axis, parse_arg, product, sweep, together


def get_config(arg: str | None = None) -> ConfigDict:
    task = parse_arg(arg, task="countdown").task

    def arm(sampler: str, **objective: object) -> list:
        fields = {f"policy__objective__{name}": value for name, value in objective.items()}
        return together(policy__rollouts__sampler=sampler, **fields)

    arms = [
        *arm("autoregressive", draft_on="none", distill=0.0),
        *arm("autoregressive", draft_on="all", distill=0.0),
        *arm("lossless", draft_on="none", distill=0.0),
        *arm("lossless", draft_on="all", distill=0.0),
        *arm("lossless", draft_on="positive", distill=0.0),
        *arm("lossless", draft_on="all", distill=1.0),
        *arm("lossless_two_pass", draft_on="all", distill=0.0),
        *arm("mix_stale", draft_on="all", distill=0.0, importance_cap=2.0),
    ]
    return sweep("rollouts", f"configs/rollouts.py:task={task}", product(arms, axis("seed", 0, 1, 2)))
