"""What a rollout is worth beside the others of its group, and how much its tokens weigh. NumPy alone.

| algorithm | baseline      | scale | reduction | source                                                     |
|-----------|---------------|-------|-----------|------------------------------------------------------------|
| dr_grpo   | mean          | none  | constant  | Liu et al. 2025 (arXiv 2503.20783)                         |
| grpo      | mean          | group | sequence  | Shao et al. 2024 (arXiv 2402.03300)                        |
| dapo      | mean          | group | token     | Yu et al. 2025 (arXiv 2503.14476); its clipping is .2, .28 |
| rloo      | leave_one_out | none  | constant  | Ahmadian et al. 2024 (arXiv 2402.14740)                    |
"""

from typing import Any

import numpy as np

BASELINES = ("mean", "leave_one_out")
SCALES = ("none", "group", "batch")
REDUCTIONS = ("constant", "sequence", "token")
ALGORITHMS: dict[str, dict[str, Any]] = {  # fields of `PolicyObjective`
    "dr_grpo": {"baseline": "mean", "scale": "none", "reduction": "constant"},
    "grpo": {"baseline": "mean", "scale": "group", "reduction": "sequence"},
    "dapo": {"baseline": "mean", "scale": "group", "reduction": "token", "clip_high": 0.28, "mask_cut": True},
    "rloo": {"baseline": "leave_one_out", "scale": "none", "reduction": "constant"},
}


def mixed(rewards: np.ndarray) -> np.ndarray:
    """Which groups have rewards that differ, bool [groups]; the others have no advantage to tell.

    Args:
      rewards: [groups, group].
    """
    return rewards.max(1) > rewards.min(1)


def advantages(rewards: np.ndarray, baseline: str, scale: str) -> np.ndarray:
    """What each rollout got above its group's baseline, float64 [groups, group]; 0 in groups that are not `mixed`.

    Args:
      rewards: [groups, group] of at least two.
      baseline: "mean" of the group, or "leave_one_out": of its other rollouts.
      scale: what it is divided by: "none", the standard deviation of the "group", or of the whole "batch".
    """
    rewards = np.asarray(rewards, np.float64)
    size, has = rewards.shape[1], mixed(rewards)
    above = rewards - rewards.mean(1, keepdims=True)
    if baseline == "leave_one_out":
        above *= size / (size - 1)
    if scale == "group":
        above /= np.where(has, rewards.std(1), 1)[:, None]
    elif scale == "batch" and has.any():
        above /= rewards.std()
    return np.where(has[:, None], above, 0)


def row_weights(lengths: np.ndarray, counted: np.ndarray, reduction: str, longest: int) -> np.ndarray:
    """What a token of each rollout weighs in the loss, float64 [rows]: the loss is a plain sum over tokens.

    Args:
      lengths: tokens of each rollout, int [rows].
      counted: bool [rows]; tokens of the others weigh 0.
      reduction: "constant": 1 / (rows * longest). "sequence": 1 / (rows * its length), the mean over tokens, then over
        rollouts, so that tokens of long ones weigh less. "token": 1 / all tokens that are counted.
      longest: tokens that a rollout may have.
    """
    lengths, rows = np.maximum(lengths, 1), len(lengths)
    if reduction == "constant":
        weight = np.full(rows, 1 / (rows * longest))
    elif reduction == "sequence":
        weight = 1 / (rows * lengths)
    else:
        weight = np.full(rows, 1 / max(1, lengths[counted].sum()))
    return np.where(counted, weight, 0)
