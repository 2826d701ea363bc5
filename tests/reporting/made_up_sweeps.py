"""Made-up rows of sweeps, as `read_sweep` gives them: the shapes of real ones, numbers from formulas."""

from collections.abc import Iterable
from typing import Any

from zaya_jax.reporting.results import RESULT_COLUMNS, Row

BLOCK, MASKING, SUCCESSION = "convert.objective.block_size", "convert.objective.masking", "model.succession"
MORE = (
    "run", "changes", "parameters", "samples", "p_value", "draft_accuracy_by_slot",
    *(f"pass_at_{k}{end}" for k in (4, 16) for end in ("", "_low", "_high")),
    *(f"pass_at_16_difference{end}" for end in ("", "_low", "_high")),
)  # fmt: skip
BLANK: Row = dict.fromkeys((*RESULT_COLUMNS, *MORE))


def sampling(changes: dict[str, Any], sampler: str, task: str, temperature: float, block: int, **cells: Any) -> Row:
    """A row of a sampler: T grows with the block, mixing is faster and worse."""
    drafting = sampler != "autoregressive"
    seed = changes.get("seed", 0)
    t = 1.0 if not drafting else block**0.6 * (0.85 if temperature else 1) * (1.25 if sampler == "mix_stale" else 1)
    quality = (0.9 if temperature == 0 else 0.7) - 0.01 * seed - 0.08 * (sampler == "mix_stale")
    row = BLANK | {
        "kind": "sampling", "model": "convert", "run": _name(changes), "changes": changes, "source": task,
        "sampler": sampler, "temperature": float(temperature),
        "beta": 0.5 if sampler == "mix_stale" else None, "parameters": 1_058_916.0,
        "block_size": float(block if drafting else 1), "anchors": "all" if drafting else None, "batch": 64.0,
        "prompts": 256.0, "samples": 16.0, "seed": 1000.0, "tokens_per_forward": t + 0.1 * seed * drafting,
        "rows_per_forward": float(block * (block + 1) if drafting else 1), "speedup": 0.3 if drafting else 1.0,
        "accuracy": quality, "accuracy_low": quality - 0.04, "accuracy_high": quality + 0.04,
        "hardware": "Made-Up CPU, 2 cores",
    }  # fmt: skip
    if temperature:
        gap = -0.05 if sampler == "mix_stale" else 0.004
        many = min(0.99, quality + 0.15)
        row |= {"pass_at_16": many, "pass_at_16_low": many - 0.03, "pass_at_16_high": min(1.0, many + 0.03)}
        if drafting:
            row |= {"pass_at_16_difference": gap, "pass_at_16_difference_low": gap - 0.02,
                    "pass_at_16_difference_high": gap + 0.02, "p_value": 0.001 if gap < 0 else 0.61}  # fmt: skip
    return row | cells


def likelihood(changes: dict[str, Any], source: str, ar_loss: float, slots: list[float] | None = None) -> Row:
    """A converted model's row."""
    return BLANK | {
        "kind": "likelihood", "model": "convert", "run": _name(changes), "changes": changes, "source": source,
        "ar_loss": ar_loss, "draft_loss": 2 * ar_loss, "draft_accuracy_by_slot": slots, "parameters": 1_058_916.0,
        "hardware": "Made-Up CPU, 2 cores",
    }  # fmt: skip


def study(blocks: Iterable[int] = (4, 8, 16), seeds: Iterable[int] = (0, 1, 2)) -> list[Row]:
    return [
        sampling({"seed": seed, BLOCK: block}, sampler, task, temperature, block)
        for block in blocks for seed in seeds for task in ("list_programs", "countdown")
        for temperature in (0, 1) for sampler in ("autoregressive", "lossless", "mix_stale")
    ]  # fmt: skip


def recipe() -> list[Row]:
    """Masking times alpha, at two block sizes; random masking drafts worse."""
    rows = []
    for block in (4, 8):
        for alpha in (1.0, 0.5):
            for kind in ("full", "random"):
                changes = {MASKING: kind, "convert.objective.alpha": alpha, BLOCK: block, "evaluate.samples": 4}
                for temperature in (0, 1):
                    row = sampling(changes, "lossless", "list_programs", temperature, block)
                    rows.append(row | {"tokens_per_forward": row["tokens_per_forward"] - 0.5 * (kind == "random")})
    return rows


def sampling_options() -> list[Row]:
    """Betas 0 .. 1 at temperature 1, AR and lossless beside them; rows with few anchors and with other drafts."""
    rows = [sampling({}, sampler, "list_programs", 1, 16) for sampler in ("autoregressive", "lossless")]
    rows += [sampling({}, "lossless", "list_programs", 1, 16, anchors="1 7 9", tokens_per_forward=99.0)]
    rows += [sampling({"evaluate.draft_temperature": 0.5}, "lossless", "list_programs", 1, 16, tokens_per_forward=99.0)]
    for beta in (0.0, 0.25, 0.5, 0.75, 1.0):
        cells = {"beta": beta, "tokens_per_forward": 4.5 + 4 * beta, "accuracy": 0.7 - 0.3 * beta**2}
        row = sampling({"evaluate.beta": beta}, "mix_stale", "list_programs", 1, 16, **cells)
        rows.append(row | {"pass_at_16": 0.9 - 0.2 * beta**2})
    return rows


def architecture() -> list[Row]:
    """CCA along the text and along the rows, and grouped attention, which is no part of the negative control."""
    rows = []
    for seed in (0, 1):
        for name, t, first in (("text", 5.0, 0.9), ("row", 1.6, 0.3)):
            changes = {"seed": seed, SUCCESSION: name, "model.attention": "cca"}
            slots = [first * 0.95**slot for slot in range(8)]
            rows.append(likelihood(changes, "list_programs", 0.31 + 0.001 * seed, slots))
            rows += [
                sampling(changes, "lossless", "list_programs", temperature, 8, tokens_per_forward=t - temperature / 2)
                for temperature in (0, 1)
            ]
        changes = {"seed": seed, "model.attention": "gqa"}
        rows += [likelihood(changes, "list_programs", 7.0), sampling(changes, "lossless", "list_programs", 0, 8)]
    return rows


def rivals(steps: int = 400, seeds: Iterable[int] = (0, 1)) -> list[Row]:
    """Two trained methods, prompt lookup in every job; a drafter's pass costs a quarter of a forward."""
    rows = []
    for seed in seeds:
        for method, samplers in (("ngram", ()), ("tidar", ("lossless",)), ("dflash", ("dflash", "dflash_tree"))):
            changes = {":method": method, "seed": seed}
            for temperature in (0, 1):
                for sampler in ("autoregressive", "ngram", *samplers):
                    row = sampling(changes, sampler, "list_programs", temperature, 8)
                    forwards = 1.25 if sampler.startswith("dflash") else 1.0
                    t = row["tokens_per_forward"]
                    flops = steps * 1e9 if samplers else 0
                    rows.append(row | {"tokens_per_forward_equivalent": t / forwards, "training_flops": flops})
    return rows


def _name(changes: dict[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in changes.items())
