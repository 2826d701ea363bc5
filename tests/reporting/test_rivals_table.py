"""The table of configs/sweeps/rivals.py, of a made-up sweep's file."""

from zaya_jax.reporting.results import read_sweep, write_sweep
from zaya_jax.reporting.tables.rivals import rivals_table


def row(sampler: str, temperature: float, t: float, **cells) -> dict:
    drafts = sampler != "autoregressive"
    return {
        "kind": "sampling", "model": "convert", "source": "list_programs", "sampler": sampler,
        "temperature": temperature, "tokens_per_forward": t, "accuracy": 0.5, "target_forwards": 1,
        "entropy": 0.125 if temperature else None,
        "target_rows": 8 if drafts else 1, "draft_passes": 2 * drafts, "tokens_per_forward_equivalent": t / 1.25,
        "tokens_per_row_equivalent": t / 8, "training_flops": 3.2e12, "added_parameters": 12345, **cells,
    }  # fmt: skip


def test_a_line_says_what_a_method_yields_and_costs(tmp_path):
    runs = {}
    for seed, t in ((0, 3.0), (1, 5.0)):
        rows = [
            {"kind": "likelihood", "model": model, "source": "list_programs", "ar_loss": loss + seed}
            for model, loss in (("pretrain", 9.0), ("convert", 0.25))
        ]
        rows += [row("dflash", 0.0, t + 1), row("dflash", 1.0, t), row("autoregressive", 1.0, 1.0)]
        rows.append(row("autoregressive", 0.0, 1.0))
        runs[f"method=dflash-seed={seed}"] = ({":method": "dflash", "seed": seed}, rows)
    nothing = [{"kind": "likelihood", "model": "pretrain", "source": "list_programs", "ar_loss": 0.3}]
    nothing += [
        row(name, each, 2.0, model="pretrain", training_flops=0)
        for name in ("autoregressive", "ngram") for each in (0.0, 1.0)
    ]  # fmt: skip
    runs["method=ngram-seed=0"] = ({":method": "ngram", "seed": 0}, nothing)
    fields = {name: {"method": changes[":method"]} for name, (changes, _) in runs.items()}
    write_sweep(tmp_path / "results.csv", runs, fields)
    lines = rivals_table(read_sweep(tmp_path / "results.csv")).splitlines()
    assert len(lines) == 2 + 4
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells == [
        "list_programs", "dflash", "dflash", "5.00 (4.00-6.00)", "4.00 (3.00-5.00)", "1 / 8 / 2", "4.00", "3.20",
        "0.50", "0.500", "0.500", "0.750", "0.125", "3.2 TFLOP", "12,345",
    ]  # fmt: skip
    assert "| none |" in lines[5] and "| 0.300 |" in lines[5]
