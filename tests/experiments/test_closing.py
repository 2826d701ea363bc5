"""What commands say at their end."""

from pathlib import Path

from zaya_jax.command_line.closing import aligned, closing, run_summary
from zaya_jax.reporting.run_files import load_run

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
