"""Tables of reinforcement learning: what each way to make rollouts reached and what it cost, of metrics.jsonl."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from zaya_jax.reporting.tables.cells import markdown

PHASE = "policy"  # of configs/rollouts.py
WINDOW = 10  # updates whose mean reward is "reached"
Line = dict[str, Any]


class Arm(NamedTuple):
    """A way to make rollouts and to train drafts on them, as a run's config says it."""

    sampler: str
    drafts: str


class Run(NamedTuple):
    """What a table needs of a run."""

    arm: Arm
    task: str
    steps: list[Line]
    looks: list[Line]  # validation, the start's first
    tokens: int  # of a step, as its tokens per second count them


def run_of(config: dict[str, Any], lines: Iterable[Line]) -> Run:
    """Of a run's config.json and metrics.jsonl."""
    policy = config[PHASE]
    objective = policy["objective"]
    drafts = {"none": "not trained", "all": "all", "positive": "positive"}[objective["draft_on"]]
    drafts += ", distilled" if objective["distill"] and objective["draft_on"] != "none" else ""
    task = (policy.get("mixture") or config["data"]["mixture"])[0]["task"]
    lines = list(lines)
    steps, looks = ([line for line in lines if line["stage"] == stage] for stage in (PHASE, f"{PHASE}/validation"))
    tokens = policy["batch_size"] * (policy.get("row_length") or config["data"]["row_length"])
    return Run(Arm(policy["rollouts"]["sampler"], drafts), task, steps, looks, tokens)


def rewards_table(runs: Sequence[Run]) -> str:
    """Start and end of every arm: reward, pass@k, entropy, T; means over seeds, with their range in brackets."""
    lines = []
    for arm, group in _by_arm(runs):
        ends = [(run.looks[0], run.looks[-1], run.task) for run in group]
        lines.append(
            (
                arm.sampler, arm.drafts, str(len(group)), str(len(group[0].steps)),
                _change([_mean(run.steps[:WINDOW], "reward") for run in group],
                        [_mean(run.steps[-WINDOW:], "reward") for run in group], ".3f"),
                *(_change([first[f"{task}/{name}"] for first, _, task in ends],
                          [last[f"{task}/{name}"] for _, last, task in ends], form)
                  for name, form in (("pass_at_1", ".3f"), ("pass_at_16", ".3f"), ("tokens_per_forward", ".2f"))),
                _change([_mean(run.steps[:WINDOW], "entropy") for run in group],
                        [_mean(run.steps[-WINDOW:], "entropy") for run in group], ".3f"),
                f"{max(line['log_probability_gap'] for run in group for line in run.steps):.1e}",
            )
        )  # fmt: skip
    head = ("rollouts", "drafts trained on", "seeds", "updates", "reward", "held-out pass@1", "held-out pass@16",
            "held-out T", "entropy, nats a token", "largest log-probability gap")  # fmt: skip
    return markdown(head, lines)


def costs_table(runs: Sequence[Run]) -> str:
    """What rollouts cost: forwards and query tokens against autoregressive rollouts', seconds, and to one reward."""
    target = _common_reward(runs)
    baseline = [run for run in runs if run.arm.sampler == "autoregressive"]
    to_target = np.mean([_forwards_to(run, target) for run in baseline]) if baseline else None
    lines = []
    for arm, group in _by_arm(runs):
        forwards, rows, tokens = (
            np.mean([run.steps[-1][f"total_rollout_{name}"] for run in group])
            for name in ("forwards", "query_tokens", "tokens")
        )
        needed = np.mean([_forwards_to(run, target) for run in group])
        every = [(line, run.tokens) for run in group for line in run.steps]
        seconds = np.median([line["rollout_seconds"] for line, _ in every])
        share = np.median([line["rollout_seconds"] * line["tokens_per_second"] / size for line, size in every])
        skipped = np.mean([run.steps[-1]["total_skipped_groups"] for run in group])
        lines.append(
            (
                arm.sampler, arm.drafts, f"{tokens:,.0f}", f"{forwards:,.0f}", f"{tokens / forwards:.2f}",
                f"{rows / tokens:.1f}", f"{seconds:.2f} s ({share:.0%})", f"{skipped:.0f}", f"{needed:,.0f}",
                "" if to_target is None else f"{needed / to_target:.2f}",
            )
        )  # fmt: skip
    head = ("rollouts", "drafts trained on", "tokens", "forwards", "T", "query tokens a token",
            "making a batch, of a step (medians)", "groups skipped", f"forwards to a reward of {target:.2f}",
            "over autoregressive rollouts'")  # fmt: skip
    return markdown(head, lines)


def _by_arm(runs: Sequence[Run]) -> list[tuple[Arm, list[Run]]]:
    arms = sorted({run.arm for run in runs})
    return [(arm, [run for run in runs if run.arm == arm]) for arm in arms]


def _mean(lines: Sequence[Line], name: str) -> float:
    return float(np.mean([line[name] for line in lines]))


def _change(before: Sequence[float], after: Sequence[float], form: str) -> str:
    """ "0.12 to 0.34 (0.30-0.38)": means, and the range of the second."""
    low, high = min(after), max(after)
    spread = f" ({low:{form}}-{high:{form}})" if len(after) > 1 else ""
    return f"{np.mean(before):{form}} to {np.mean(after):{form}}{spread}"


def _smooth(run: Run) -> np.ndarray:
    """Mean reward of each WINDOW updates."""
    return np.convolve([line["reward"] for line in run.steps], np.full(WINDOW, 1 / WINDOW), "valid")


def _common_reward(runs: Sequence[Run]) -> float:
    """The highest reward, in hundredths, that every run has reached."""
    return float(np.floor(100 * min(_smooth(run).max() for run in runs)) / 100)


def _forwards_to(run: Run, target: float) -> float:
    """Forwards of all rollouts until the mean reward of WINDOW updates is at least `target`."""
    at = int(np.argmax(_smooth(run) >= target)) + WINDOW - 1
    return run.steps[at]["total_rollout_forwards"]
