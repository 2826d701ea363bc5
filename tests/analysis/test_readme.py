"""The README's tables are made from committed results, and those show what the README claims."""

import json
from pathlib import Path

import pytest

from zaya_jax.analysis.results import read_results
from zaya_jax.analysis.tables import (
    anchors_table,
    auto_table,
    kept_by_anchors,
    likelihood_table,
    rows_table,
    sampling_table,
    strategies_table,
    transformers_table,
)

ROOT = Path(__file__).parents[2]
ROWS = read_results(ROOT / "results" / "quickstart" / "results.csv")


def bench(name: str) -> dict:
    return json.loads((ROOT / "results" / "bench" / f"{name}.json").read_text())


SAMPLERS, FORWARD = bench("samplers"), bench("forward")
TRANSFORMERS = {threads: bench(f"transformers_{threads}")["transformers"] for threads in ("1_thread", "2_threads")}


@pytest.mark.parametrize("table", [sampling_table, likelihood_table])
def test_tables_have_not_drifted(table):
    assert table(ROWS) in (ROOT / "README.md").read_text()


def test_the_committed_run_shows_what_the_readme_claims():
    sampling = {(r["arm"], r["temperature"]): r for r in ROWS if r["kind"] == "sampling"}
    greedy = sampling["lossless", 0]
    assert greedy["identical_to_autoregressive"] == 1
    assert greedy["tokens_per_forward"] >= 3
    assert greedy["accuracy"] >= 0.8
    loss = {(r["source"], r["model"]): r["ar_loss"] for r in ROWS if r["kind"] == "likelihood"}
    for source in {source for source, _ in loss}:
        assert loss[source, "convert"] <= 1.03 * loss[source, "control"]


@pytest.mark.parametrize(
    "text",
    [
        anchors_table(SAMPLERS["anchors"]),
        strategies_table(SAMPLERS["strategies"]),
        auto_table(SAMPLERS["auto"]),
        rows_table(FORWARD["rows"]),
        transformers_table(TRANSFORMERS["1_thread"], TRANSFORMERS["2_threads"]),
    ],
    ids=["anchors", "strategies", "auto", "rows", "transformers"],
)
def test_benchmark_tables_have_not_drifted(text):
    assert text in (ROOT / "README.md").read_text()


def test_three_anchors_keep_nine_tenths_of_the_tokens():
    rows = [row for row in SAMPLERS["anchors"] if row["anchors"] == 3]
    assert len(rows) == 2 and all(kept_by_anchors(SAMPLERS["anchors"], row) >= 0.9 for row in rows)


def test_auto_does_not_lose_to_autoregression():
    assert {(row["prompts"], row["batch"], row["temperature"]) for row in SAMPLERS["auto"]} == {
        (prompts, batch, temperature)
        for prompts in ("addition", "python") for batch in (1, 8) for temperature in (0.0, 1.0)
    }  # fmt: skip
    assert all(row["clock_over_ar"] >= 0.98 for row in SAMPLERS["auto"])


def test_verified_strategies_keep_the_autoregressive_accuracy():
    rows = {(row["strategy"], row["temperature"]): row for row in SAMPLERS["strategies"]}
    for temperature in (0.0, 1.0):
        plain = rows["autoregressive", temperature]
        for name in ("lossless", "lossless, two passes"):
            assert (
                rows[name, temperature]["accuracy_high"] >= plain["accuracy"] >= rows[name, temperature]["accuracy_low"]
            )
