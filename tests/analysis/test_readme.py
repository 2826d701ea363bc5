"""The README's tables are made from committed results, and those show what the README claims."""

import json
from pathlib import Path

import pytest

from zaya_jax.analysis.results import read_results
from zaya_jax.analysis.tables import (
    anchors_table, auto_table, likelihood_table, rows_table, sampling_table, strategies_table, transformers_table,
)  # fmt: skip

ROOT = Path(__file__).parents[2]
ROWS = read_results(ROOT / "results" / "quickstart" / "results.csv")

SAMPLERS = json.loads((ROOT / "results" / "bench" / "samplers.json").read_text())
TRANSFORMERS = json.loads((ROOT / "results" / "bench" / "transformers.json").read_text())["transformers"]


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
        anchors_table(SAMPLERS["anchors"]), strategies_table(SAMPLERS["strategies"]), rows_table(SAMPLERS["rows"]),
        auto_table(SAMPLERS["auto"]), transformers_table(TRANSFORMERS),
    ],
    ids=["anchors", "strategies", "rows", "auto", "transformers"],
)  # fmt: skip
def test_benchmark_tables_have_not_drifted(text):
    assert text in (ROOT / "README.md").read_text()


def test_three_anchors_keep_nine_tenths_of_the_tokens():
    tokens = {(r["temperature"], r["anchors"]): r["tokens_per_forward"] for r in SAMPLERS["anchors"]}
    for temperature in (0.0, 1.0):
        assert tokens[temperature, 3] >= 0.9 * tokens[temperature, 16]


def test_auto_is_never_slower_than_autoregression():
    assert all(row["clock_over_ar"] >= 0.98 for row in SAMPLERS["auto"])
