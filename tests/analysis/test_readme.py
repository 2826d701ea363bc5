"""The README's tables are made from committed results, and those show what the README claims."""

import json
from pathlib import Path

import pytest

from zaya_jax.analysis.results import read_results
from zaya_jax.analysis.tables import (
    anchors_table,
    likelihood_table,
    rows_table,
    sampling_table,
)  # fmt: skip

ROOT = Path(__file__).parents[2]
ROWS = read_results(ROOT / "results" / "quickstart" / "results.csv")

SAMPLERS = json.loads((ROOT / "results" / "bench" / "samplers.json").read_text())


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
    "text", [anchors_table(SAMPLERS["anchors"]), rows_table(SAMPLERS["rows"])], ids=["anchors", "rows"]
)
def test_benchmark_tables_have_not_drifted(text):
    assert text in (ROOT / "README.md").read_text()


def test_three_anchors_keep_nine_tenths_of_the_tokens_at_temperature_1():
    """Greedy, they keep 89%: measured, and not the 90% that was hoped for."""
    tokens = {(r["temperature"], r["anchors"]): r["tokens_per_forward"] for r in SAMPLERS["anchors"]}
    assert tokens[1.0, 3] >= 0.9 * tokens[1.0, 16]
    assert tokens[0.0, 3] >= 0.89 * tokens[0.0, 16]
