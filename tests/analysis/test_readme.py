"""The README's tables are made from committed results, and those show what the README claims."""

import json
from pathlib import Path

import pytest

from zaya_jax.analysis.readme import TABLES, regenerate
from zaya_jax.analysis.results import read_results
from zaya_jax.analysis.tables import kept_by_anchors

ROOT = Path(__file__).parents[2]
RESULTS, README = ROOT / "results", ROOT / "README.md"
ROWS = read_results(RESULTS / "quickstart" / "results.csv")
SAMPLERS = json.loads((RESULTS / "bench" / "samplers.json").read_text())


def test_tables_have_not_drifted():
    text = README.read_text()
    assert regenerate(text, RESULTS) == text


def test_a_number_that_drifts_is_found_and_put_right():
    text = README.read_text()
    wrong = text.replace("| lossless | 4.57 |", "| lossless | 7.57 |", 1)
    assert wrong != text
    assert regenerate(wrong, RESULTS) == text


def test_markers_are_checked():
    text = README.read_text()
    with pytest.raises(ValueError, match=r"README\.md: table 'speed' is unknown, may be one of quickstart"):
        regenerate(text.replace("<!-- table quickstart -->", "<!-- table speed -->"), RESULTS)
    with pytest.raises(ValueError, match=r"README\.md: has no place for table 'quickstart'"):
        regenerate(text.replace("<!-- table quickstart -->", ""), RESULTS)
    assert len(TABLES) == text.count("<!-- table ")


def test_the_committed_run_shows_what_the_readme_claims():
    sampling = {(r["arm"], r["temperature"]): r for r in ROWS if r["kind"] == "sampling"}
    greedy = sampling["lossless", 0]
    assert greedy["identical_to_autoregressive"] == 1
    assert greedy["tokens_per_forward"] >= 3
    assert greedy["accuracy"] >= 0.8
    loss = {(r["source"], r["model"]): r["ar_loss"] for r in ROWS if r["kind"] == "likelihood"}
    for source in {source for source, _ in loss}:
        assert loss[source, "convert"] <= 1.03 * loss[source, "control"]


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
