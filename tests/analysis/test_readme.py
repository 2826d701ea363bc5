"""The README's tables are results/quickstart/results.csv, and that run met what it must show."""

from pathlib import Path

import pytest

from zaya_jax.analysis.results import read_results
from zaya_jax.analysis.tables import likelihood_table, sampling_table

ROOT = Path(__file__).parents[2]
ROWS = read_results(ROOT / "results" / "quickstart" / "results.csv")


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
