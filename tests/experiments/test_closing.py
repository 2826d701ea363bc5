"""What commands say at their end."""

import dataclasses
import shlex
from pathlib import Path

from zaya_jax.command_line.closing import PROMPT, aligned, closing, generate_with, run_summary
from zaya_jax.reporting.run_files import load_run
from zaya_jax.reporting.tables.cells import percent_change
from zaya_jax.reporting.tables.runs import likelihood_table

ROOT = Path(__file__).parents[2]


def test_a_markdown_table_in_columns():
    table = "| sampler | T | wall-clock |\n|---|---|---|\n| lossless | 4.57 | 0.30x |\n| ar | 1.00 |  |"
    assert aligned(table).splitlines() == [
        "sampler      T  wall-clock",
        "--------  ----  ----------",
        "lossless  4.57       0.30x",
        "ar        1.00",
    ]


def test_files_and_what_to_try_next():
    assert closing({"table": "a.csv", "answers": "b"}, ["x"]) == "table:   a.csv\nanswers: b\ntry next:\n  x"
    assert closing({"report": "r"}) == "report: r"


def test_a_run_is_summed_up_from_its_files():
    """The quickstart's committed run: the README's numbers."""
    said = run_summary(load_run(ROOT / "results/quickstart"))
    assert "Sampling, addition (512 prompts):" in said and "Held-out loss in nats a token:" in said
    line = next(line for line in said.splitlines() if line.split()[1:2] == ["lossless"])
    assert line.split()[:4] == ["0", "lossless", "4.57", "72"]
    assert "On a CPU" in said and "|" not in said


def test_a_run_on_plain_text_has_no_answers_to_judge():
    """Nothing is right or wrong there: what stands in the table is the log-probability under AR."""
    run = load_run(ROOT / "results/quickstart")
    judged = ("accuracy", "accuracy_low", "accuracy_high")
    rows = [row | dict.fromkeys(judged) | {"ar_log_probability": -1.5} for row in run.results]
    said = run_summary(dataclasses.replace(run, results=rows))
    assert "log-probability under AR (nats a token)" in said and "accuracy" not in said and "-1.500" in said


def test_a_source_that_a_phase_has_not_seen_is_left_blank():
    rows = load_run(ROOT / "results/quickstart").rows("likelihood")
    without = [row for row in rows if (row["source"], row["model"]) != ("stdlib", "control")]
    assert likelihood_table(without).splitlines()[-1] == "| stdlib | 2.1646 | 2.0723 |  |  |"


def test_a_change_that_rounds_to_nothing_has_no_sign():
    assert [percent_change(x) for x in (-0.0001, 0.0, 0.0001, -0.001, 0.018)] == [
        "0.0%", "0.0%", "0.0%", "-0.1%", "+1.8%",
    ]  # fmt: skip


def test_a_command_to_try_next_can_be_typed_as_it_stands():
    line = generate_with("runs/my run", True, "it's 1+1=")
    assert shlex.split(line)[3:] == ["--checkpoint=runs/my run", "--prompt=it's 1+1="]
    assert "--mode=autoregressive" in generate_with("m", False)
    for odd in ("", "two\nlines", "x" * 61):
        assert shlex.split(generate_with("m", True, odd))[-1] == f"--prompt={PROMPT}"
