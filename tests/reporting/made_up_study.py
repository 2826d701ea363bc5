"""A made-up result of `experiments.bench.stability`: three arms, two rates, three seeds."""

import math
from typing import Any

ARMS = {"autoregressive": 1.0, "tidar": 1.1, "llada": 3.0}
RATES, SEEDS, STEPS = (0.004, 0.008), 3, 60
SOURCES = {"data": 0.5, "rate": -0.01, "mask": 0.25, "noise": 0.74, "cosine": 0.8}


def study() -> dict[str, Any]:
    drafting = [arm for arm in ARMS if arm != "autoregressive"]
    return {
        "hardware": "Made-Up CPU, 2 cores", "name": "stability", "training_seed": 0, "parameters": 30_000,
        "steps": STEPS, "batch": 4, "row_length": 64, "clip_norm": 1.0, "pretrain_steps": 100, "base_rate": 0.004,
        "weights": [
            {"arm": arm, "rows": 8, "measured": scale, "error": 0.1, "closed_form": scale - 1}
            for arm, scale in ARMS.items() if arm in drafting
        ],
        "noise": [
            {
                "arm": arm, "at": at, "term": term, "draws": [16, 4, 4],
                "relative": {name: [scale * value, 0.05] for name, value in SOURCES.items()},
            }
            for arm, scale in ARMS.items() for at in ("checkpoint", "end")
            for term in (("whole", "draft") if arm == "tidar" else ("whole",))
        ],
        "runs": [
            _run(arm, scale, rate, seed) for arm, scale in ARMS.items() for rate in RATES for seed in range(SEEDS)
        ],
        "decode": [
            _decoded(arm, sampler, temperature)
            for arm in ("autoregressive", "tidar") for temperature in (0.0, 1.0)
            for sampler in ("autoregressive", *(("lossless", "entropy 0.1") if arm == "tidar" else ()))
        ],
    }  # fmt: skip


def _run(arm: str, scale: float, rate: float, seed: int) -> dict[str, Any]:
    lost = arm == "llada" and rate == RATES[-1] and seed
    end = None if lost else round(scale + 0.01 * seed + rate, 4)
    row = {
        "arm": arm, "rate": rate, "seed": seed, "loss": end, "ar_loss": end, "draft_loss": end, "spikes": seed,
        "load": 0.5, "draft_loss_by_slot": [end] * 8,
    }  # fmt: skip
    if not lost:
        row |= {"variation": 0.2 * scale, "tail": 1.5 * scale, "clipped": 0.25}
    if rate == RATES[0]:
        row["norms"] = [scale * (1 + 0.2 * math.sin(step + seed)) for step in range(STEPS)]
    return row


def _decoded(arm: str, sampler: str, temperature: float) -> dict[str, Any]:
    row = {
        "arm": arm, "sampler": sampler, "lossless": sampler != "entropy 0.1", "temperature": temperature,
        "tokens_per_forward": {"autoregressive": 1.0, "lossless": 2.5}.get(sampler, 3.5),
        "rows_per_forward": {"autoregressive": 1, "lossless": 72}.get(sampler, 16),
        "accuracy": 0.9, "accuracy_low": 0.8, "accuracy_high": 0.95,
    }  # fmt: skip
    return row | ({"pass_at_16": 0.97} if temperature else {})
