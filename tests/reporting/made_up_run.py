"""A made-up run directory: the shapes of a real one, numbers from formulas."""

import json
import math
import random
from pathlib import Path

from zaya_jax.reporting.results import wilson, write_results

BLOCK = 8
COMPARED = ("autoregressive", "lossless", "mix_stale")
CONFIG = {
    "name": "made_up",
    "seed": 0,
    "tokenizer": "bytes",
    "model": {"preset": "zaya1_300k"},
    "data": {"row_length": 128, "mixture": [{"task": "addition", "weight": 0.7}, {"text": "stdlib", "weight": 0.3}]},
    "pretrain": {"steps": 900, "batch_size": 16, "objective": {"kind": "autoregressive"}},
    "convert": {"steps": 1000, "batch_size": 16, "objective": {"kind": "tidar", "block_size": BLOCK, "alpha": 1.0}},
    "control": {"steps": 1000, "batch_size": 16, "objective": {"kind": "autoregressive"}},
    "evaluate": {"prompts": 512, "batch": 64},
}
ENVIRONMENT = {
    "python": "3.11.9",
    "jax": "0.10.2",
    "packages": {"flax": "0.12.8"},
    "device": "cpu",
    "device_count": 1,
    "cpu": "Made-Up CPU @ 2.0GHz",
    "cores": 2,
    "platform": "Linux",
    "date": "2026-01-01T00:00:00+00:00",
    "git_commit": "0" * 40,
    "seconds": {"pretrain": 160.2, "convert": 355.0, "control": 171.0, "evaluate": 95.5},
}


def build_run(path: Path, stages=("pretrain", "convert", "control"), results=None, samples=None) -> Path:
    """Writes a run directory; fewer stages, or other results rows or samples, on request."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "environment.json").write_text(json.dumps(ENVIRONMENT))
    lines = [line for stage in stages for line in metric_lines(stage)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_results(path / "results.csv", result_rows() if results is None else results)
    texts = [json.dumps(s) + "\n" for s in (sample_lines() if samples is None else samples)]
    (path / "samples.jsonl").write_text("".join(texts))
    return path


def metric_lines(stage: str) -> list[dict]:
    rng = random.Random(stage)
    lines = []
    for step in range(10, CONFIG[stage]["steps"] + 1, 10):
        seen = step + (0 if stage == "pretrain" else 900)
        loss = 0.45 + 4.6 * math.exp(-seen / 120) + 1.1 * math.exp(-seen / 900)
        loss += (0.02 + 0.12 * math.exp(-step / 100)) * (stage == "convert")
        line = {"stage": stage, "step": step, "loss": loss, "grad_norm": 0.4, "ar_tokens": 1900.0}
        line |= {"ar_loss": loss * rng.uniform(0.95, 1.05), "tokens_per_second": 9000.0}
        line |= shares("clean", seen, rng)
        by_slot = [0.05 + 0.9 * (1 - math.exp(-step / 300)) * 0.9**slot for slot in range(BLOCK)]
        if stage == "convert":
            draft = 1.2 + 2.5 * math.exp(-step / 250)
            line |= {"draft_loss": draft * rng.uniform(0.95, 1.05), "draft_loss_by_slot": [draft] * BLOCK}
            line |= {"draft_accuracy_by_slot": [a * rng.uniform(0.95, 1.02) for a in by_slot]} | shares(
                "draft", step, rng
            )
        lines.append(line)
        if step % 100 == 0:
            check = {"stage": f"{stage}/validation", "step": step}
            for source, factor in (("addition", 0.8), ("stdlib", 1.9)):
                check[f"{source}/ar_loss"] = loss * factor
                if source == "stdlib":
                    check["stdlib/bits_per_byte"] = loss * factor / math.log(2)
                if stage == "convert":
                    check[f"{source}/draft_loss"] = draft * factor
                    check[f"{source}/draft_accuracy_by_slot"] = [0.9 * a / factor**0.5 for a in by_slot]
            lines.append(check)
    return lines


def shares(kind: str, step: int, rng: random.Random) -> dict:
    layers = []
    for _ in range(3):
        noise = [1 + rng.uniform(-0.2, 0.2) + 4 * math.exp(-step / 150) * (i == 2) for i in range(8)]
        layers.append([n / sum(noise) for n in noise] + [0.0])
    return {f"expert_load_{kind}": sum(map(max, layers)) / 3, f"expert_share_{kind}": layers}


def result_rows() -> list[dict]:
    rows = []
    for temperature, accuracy in ((0.0, (0.88, 0.88, 0.75)), (1.0, (0.37, 0.36, 0.07))):
        for sampler, share, t, speedup in zip(COMPARED, accuracy, (1.0, 3.14, 3.34), (1.0, 0.31, 0.33), strict=True):
            right = round(512 * share)
            low, high = wilson(right, 512)
            drafts = sampler != "autoregressive"
            rows.append(
                {
                    "kind": "sampling", "model": "convert", "source": "addition", "sampler": sampler,
                    "temperature": temperature, "beta": 0.5 if sampler == "mix_stale" else None,
                    "block_size": BLOCK if drafts else 1, "anchors": "all" if drafts else None, "batch": 64,
                    "prompts": 512, "seed": 1000, "accuracy": right / 512, "accuracy_low": low, "accuracy_high": high,
                    "tokens": 20000, "forwards": round(20000 / t),
                    "tokens_per_forward": t - 0.15 * temperature * drafts,
                    "rows_per_forward": 72 if drafts else 1, "seconds": 4.0 / speedup,
                    "tokens_per_second": 5000 * speedup,
                    "speedup": speedup, "hardware": "Made-Up CPU @ 2.0GHz, 2 cores",
                    "identical_to_autoregressive": None if temperature else [1.0, 1.0, 0.62][COMPARED.index(sampler)],
                }
            )  # fmt: skip
    for model, loss in (("pretrain", 0.616), ("convert", 0.553), ("control", 0.541)):
        for source, factor in (("addition", 1.0), ("stdlib", 2.3)):
            row = {"kind": "likelihood", "model": model, "source": source, "ar_loss": loss * factor}
            row |= {"bits_per_byte": loss * factor / math.log(2)} if source == "stdlib" else {}
            row |= {"draft_loss": 1.32 * factor} if model == "convert" else {}
            rows.append(row)
    for count, ratio in ((1, 1.0), (8, 4.1), (16, 5.2), (24, 6.6), (72, 13.7)):
        row = {"kind": "cost", "model": "convert", "batch": 1, "block_size": BLOCK, "rows": count}
        rows.append(
            row | {"milliseconds": 0.14 * ratio, "cost_ratio": ratio, "hardware": "Made-Up CPU @ 2.0GHz, 2 cores"}
        )
    return rows


def sample_lines() -> list[dict]:
    rng = random.Random(0)
    out = []
    for temperature in (0.0, 1.0):
        for sampler in COMPARED:
            for i in range(4):
                prompt = f"{417 + 31 * i}+{268 + 7 * i}=\n"
                text = f"{7 + i}+8=15 -> 5 carry 1\n1+6+1=8 -> 8\n4+2=6 -> 6\n={685 + 38 * i}\n"
                pieces, accepted = [*text, ""], [1]
                while sum(accepted) < len(pieces):
                    most = 1 if sampler == "autoregressive" else rng.choice([1, 2, 3, 3, 4, 6, 8])
                    accepted.append(min(most, len(pieces) - sum(accepted)))
                sample = {"sampler": sampler, "temperature": temperature, "prompt": prompt, "pieces": pieces}
                out.append(sample | {"accepted": accepted, "correct": rng.random() < 0.8})
    return out
