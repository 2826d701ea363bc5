"""Tables of reinforcement learning, of made-up runs."""

from zaya_jax.reporting.tables.rollouts import WINDOW, Run, costs_table, rewards_table, run_of

STEPS = 3 * WINDOW


def made_up(sampler: str, draft_on: str, seed: int, forwards: int, distill: float = 0.0) -> Run:
    objective = {"draft_on": draft_on, "distill": distill}
    config = {
        "policy": {"objective": objective, "rollouts": {"sampler": sampler}, "batch_size": 4, "row_length": 25},
        "data": {"mixture": [{"task": "countdown"}]},
    }
    lines = [
        {
            "stage": "policy", "step": step, "reward": step / STEPS, "entropy": 1 - step / STEPS,
            "log_probability_gap": 1e-6 * (seed + 1), "rollout_seconds": 0.5, "tokens_per_second": 50.0,
            "total_rollout_forwards": forwards * step,
            "total_rollout_query_tokens": 4 * forwards * step, "total_rollout_tokens": 100 * step,
            "total_skipped_groups": step,
        }
        for step in range(1, STEPS + 1)
    ]  # fmt: skip
    looks = [
        {
            "stage": "policy/validation", "step": step, "countdown/pass_at_1": 0.2 + share + 0.1 * seed,
            "countdown/pass_at_16": 0.6, "countdown/tokens_per_forward": 100 / forwards + share,
        }
        for step, share in ((0, 0.0), (STEPS, 0.25))
    ]  # fmt: skip
    return run_of(config, [looks[0], *lines, looks[1], {"stage": "pretrain", "step": 1}])


RUNS = [made_up("lossless", "all", seed, 40, distill=1.0) for seed in (0, 1)] + [
    made_up("autoregressive", "none", 0, 100)
]


def cells(table: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]


def test_rewards_are_means_over_seeds_with_their_range():
    plain, drafting = cells(rewards_table(RUNS))
    assert plain[:4] == ["autoregressive", "not trained", "1", str(STEPS)]
    assert drafting[:3] == ["lossless", "all, distilled", "2"]
    assert plain[4] == "0.183 to 0.850"
    assert drafting[5] == "0.250 to 0.500 (0.450-0.550)"
    assert drafting[7] == "2.50 to 2.75 (2.75-2.75)" and plain[9] == "1.0e-06" and drafting[9] == "2.0e-06"


def test_costs_are_told_against_autoregressive_rollouts():
    plain, drafting = cells(costs_table(RUNS))
    assert plain[2:6] == [f"{100 * STEPS:,}", f"{100 * STEPS:,}", "1.00", "4.0"]
    assert plain[6] == "0.50 s (25%)"
    assert drafting[3:6] == [f"{40 * STEPS:,}", "2.50", "1.6"]
    assert plain[-1] == "1.00" and drafting[-1] == "0.40"  # the same rewards after as many updates
