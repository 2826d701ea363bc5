"""Tables of the stability study: results of `experiments.bench.stability`."""

from typing import Any

import numpy as np

from zaya_jax.reporting.paper.stability import NAMES, arms_of, ends_of
from zaya_jax.reporting.tables.cells import markdown
from zaya_jax.training.stability import largest_stable_rate, margin_interval


def weights_table(study: dict[str, Any]) -> str:
    """Variance of a token's loss weight, measured and in closed form."""
    rows = sorted(study["weights"], key=lambda row: list(NAMES).index(row["arm"]))
    return markdown(
        ("objective", "closed form of Var(w) / E(w)²", "measured", "standard error"),
        (
            (NAMES[row["arm"]], f"{row['closed_form']:.3f}", f"{row['measured']:.3f}", f"{row['error']:.3f}")
            for row in rows
        ),
    )


def noise_table(study: dict[str, Any]) -> str:
    """The gradient's noise by source: of the draft term at the checkpoint and at the end, and of the whole loss."""

    def cell(pair: list[float]) -> str:
        return f"{round(pair[0], 3) + 0.0:.3f} ± {pair[1]:.3f}"  # no -0.000

    lines = []
    for arm in arms_of(study["noise"]):
        for at in ("checkpoint", "end"):
            for term in ("draft", "whole"):
                for row in study["noise"]:
                    if (row["arm"], row["at"], row["term"]) == (arm, at, term):
                        sources = (cell(row["relative"][name]) for name in ("data", "rate", "mask", "noise", "cosine"))
                        lines.append((NAMES[arm], at, term, *sources))
    return markdown(
        ("objective", "at", "loss", "data", "rates and places", "masks", "all", "cosine of two draws of the same data"),
        lines,
    )


def runs_table(study: dict[str, Any]) -> str:
    """What each arm came to at the base rate, and its margin."""
    lines = []
    for arm in arms_of(study["runs"]):
        rows = [row for row in study["runs"] if row["arm"] == arm]
        base = [row for row in rows if row["rate"] == study["base_rate"]]
        ends = ends_of(rows, arm)
        rate, interval = largest_stable_rate(ends), margin_interval(ends)
        between = "" if interval is None else f" ({interval[0]:g}-{interval[1]:g})"
        diverged = sum(row["loss"] is None for row in rows)
        lines.append((
            NAMES[arm], "none" if rate is None else f"{rate:g}{between}", f"{diverged} of {len(rows)}",
            *(_spread(base, name, form) for name, form in (
                ("ar_loss", ".4f"), ("draft_loss", ".3f"), ("variation", ".2f"), ("tail", ".2f"), ("spikes", ".1f"),
                ("load", ".2f"))),
        ))  # fmt: skip
    return markdown(
        ("objective", "largest stable rate (95%)", "not finite", "AR loss", "draft loss, whole blocks",
         "gradient norm: variation", "p99 / median", "spikes a run", "busiest expert"),
        lines,
    )  # fmt: skip


def _spread(rows: list[dict[str, Any]], name: str, form: str) -> str:
    """Mean ± standard deviation over seeds."""
    values = [row[name] for row in rows if row.get(name) is not None]
    if not values:
        return ""
    return f"{np.mean(values):{form}}" + (f" ± {np.std(values, ddof=1):{form}}" if len(values) > 1 else "")


def decode_table(study: dict[str, Any]) -> str:
    """Every arm under every decoder."""
    lines = []
    for arm in arms_of(study["decode"]):
        for row in (row for row in study["decode"] if row["arm"] == arm):
            passed = f"{row['pass_at_16']:.3f}" if row.get("pass_at_16") is not None else ""
            lines.append((
                NAMES[arm], row["sampler"], "yes" if row["lossless"] else "no", f"{row['temperature']:g}",
                f"{row['tokens_per_forward']:.2f}", f"{row['rows_per_forward']:g}",
                f"{row['accuracy']:.3f} ({row['accuracy_low']:.3f}-{row['accuracy_high']:.3f})", passed,
            ))  # fmt: skip
    return markdown(
        ("objective", "decoder", "lossless", "temperature", "tokens per forward", "query tokens per forward",
         "accuracy (95% interval)", "pass@16"),
        lines,
    )  # fmt: skip
