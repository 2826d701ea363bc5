"""Result rows as Markdown, for the README: the numbers there are made here, from committed result files."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from zaya_jax.reporting.paper.sweep_rows import with_block_size
from zaya_jax.reporting.results import ARMS, Row


def sampling_table(rows: list[Row]) -> str:
    """The four figures every claim of speed needs: tokens per forward, query tokens per forward, speed-up, quality.

    Quality is accuracy where a task checks answers; of continuations of plain text, their log-probability under AR.

    Args:
      rows: of results.csv; those of kind "sampling" are shown, in their order.
    """
    rows = [row for row in rows if row["kind"] == "sampling"]
    judged = any(row["accuracy"] is not None for row in rows)
    quality = "accuracy (95% interval)" if judged else "log-probability under AR (nats a token)"
    return markdown(
        ("temperature", "sampler", "tokens per forward", "query tokens per forward", "wall-clock vs AR", quality,
         "same tokens as greedy AR"),
        (
            (
                f"{row['temperature']:g}", row["arm"], f"{row['tokens_per_forward']:.2f}",
                f"{row['rows_per_forward']:g}", _clock([row]),
                _accuracy(row) if judged else _told(row.get("ar_log_probability"), ".3f"),
                _told(row.get("identical_to_autoregressive"), ".1%"),
            )
            for row in rows
        ),
    )  # fmt: skip


def likelihood_table(rows: list[Row]) -> str:
    """AR loss of every phase, and of convert against control if both are there: rows of kind "likelihood"."""
    names = {"pretrain": "pretrained", "convert": "converted", "control": "AR-only control"}
    loss = {(r["source"], r["model"]): r["ar_loss"] for r in rows if r["kind"] == "likelihood"}
    models = list(dict.fromkeys(model for _, model in loss))
    compared = {"convert", "control"} <= set(models)
    lines = []
    for source in dict.fromkeys(source for source, _ in loss):
        cells = [_told(loss.get((source, model)), ".4f") for model in models]
        if compared:
            converted, control = loss.get((source, "convert")), loss.get((source, "control"))
            cells.append(percent_change(converted / control - 1) if converted and control else "")
        lines.append((source, *cells))
    head = [names.get(model, model) for model in models] + ["converted vs control"] * compared
    return markdown(("held-out source", *head), lines)


def anchors_table(rows: list[dict]) -> str:
    """Budgets of branch points: the "anchors" section of results/bench/samplers.json."""
    batches = list(rows[0]["clock_over_ar"])
    return markdown(
        ("temperature", "K", "branch points", "query tokens per forward", "tokens per forward", "of the T of all",
         "accuracy",
         *(f"wall-clock vs AR, batch {batch}" for batch in batches)),
        (
            (
                f"{row['temperature']:g}", str(row["anchors"]),
                "all" if row["anchors"] == row["block_size"] else ", ".join(map(str, row["list"])),
                f"{row['rows_per_forward']:g}", f"{row['tokens_per_forward']:.2f}", f"{kept_by_anchors(rows, row):.1%}",
                f"{row['accuracy']:.3f}", *(f"{row['clock_over_ar'][batch]:.2f}x" for batch in batches),
            )
            for row in rows
        ),
    )  # fmt: skip


def kept_by_anchors(rows: list[dict], row: dict) -> float:
    """The row's tokens per forward over those of all branch points at the same temperature."""
    everywhere = next(
        r for r in rows if r["anchors"] == r["block_size"] and r["temperature"] == row["temperature"]
    )  # fmt: skip
    return row["tokens_per_forward"] / everywhere["tokens_per_forward"]


def strategies_table(rows: list[dict]) -> str:
    """TiDAR's table of decoding strategies: the "strategies" section of results/bench/samplers.json."""
    by = {(row["strategy"], row["temperature"]): row for row in rows}
    lines = []
    for name in dict.fromkeys(row["strategy"] for row in rows):
        pair = (by[name, 0.0], by[name, 1.0])
        cells = [cell for row in pair for cell in (f"{row['tokens_per_forward']:.2f}", _accuracy(row))]
        lines.append((name, f"{pair[0]['rows_per_forward']:g}", *cells))
    return markdown(
        ("strategy", "query tokens per forward", "T, temperature 0", "accuracy (95% interval)", "T, temperature 1",
         "accuracy (95% interval)"),
        lines,
    )  # fmt: skip


def rows_table(rows: list[dict]) -> str:
    """A forward's cost over the AR forward of one token: the "rows" section of results/bench/forward.json."""
    counts = list(rows[0]["ratio"])
    lines = []
    for row in rows:
        products = row["plain_products"]["touched"]
        cells = {
            f"{row['parameters'] / 1e6:.1f}M": (row["milliseconds"]["1"], row["ratio"]),
            "plain products, experts touched": (products["milliseconds"]["1"], products["ratio"]),
        }
        for title, (one, ratio) in cells.items():
            lines.append((title, str(row["batch"]), f"{one:.3f} ms", *(f"{ratio[n]:.1f}x" for n in counts[1:])))
    return markdown(("model", "batch", "one token", *(f"{n} tokens" for n in counts[1:])), lines)


def few_experts_table(rows: list[dict]) -> str:
    """What a forward costs where all tokens share an expert, and what that predicts: results/bench/few_experts.json.

    The prediction takes the trained model's measured acceptance; nothing of that size has been trained.
    """

    def best(row: dict) -> str:
        chosen = row["predicted_best"]
        if not chosen["anchors"]:
            return "autoregression"
        points = ", ".join(map(str, chosen["anchors"]))
        return f"block {chosen['block_size']}, branch points {points}: {chosen['rows']} tokens"

    counts = list(rows[0]["ratio"])
    return markdown(
        ("parameters", "experts", "one token", *(f"{n} tokens" for n in counts[1:]), "predicted best", "at T",
         "wall-clock vs AR"),
        (
            (
                f"{row['parameters'] / 1e6:.1f}M", str(row["experts"]), f"{row['milliseconds']['1']:.2f} ms",
                *(f"{row['ratio'][n]:.1f}x" for n in counts[1:]), best(row), f"{row['predicted_best']['tokens']:.2f}",
                f"{row['predicted_best']['speedup']:.2f}x",
            )
            for row in rows
        ),
    )  # fmt: skip


def auto_table(rows: list[dict]) -> str:
    """What "auto" chose: the "auto" section of results/bench/samplers.json."""

    def chosen(row: dict) -> str:
        if row["mode"] != "single_pass":
            return row["mode"]
        return f"single_pass, block {row['block_size']}, anchors {', '.join(map(str, row['anchors']))}"

    return markdown(
        ("prompts", "batch", "temperature", "chosen", "query tokens per forward", "tokens per forward",
         "wall-clock vs AR"),
        (
            (
                row["prompts"], str(row["batch"]), f"{row['temperature']:g}", chosen(row),
                f"{row['rows_per_forward']:g}", f"{row['tokens_per_forward']:.2f}", f"{row['clock_over_ar']:.2f}x",
            )
            for row in rows
        ),
    )  # fmt: skip


def transformers_table(one: list[dict], all_cores: list[dict]) -> str:
    """AR decoding beside transformers, with one XLA thread and with one a core: results/bench/transformers_*.json."""
    lines = []
    for row, other in zip(one, all_cores, strict=True):
        cells = [f"{row['parameters'] / 1e6:.1f}M", str(row["batch"])]
        for run in (row, other):
            times = run["milliseconds_per_token"]
            cells += [f"{times['transformers']:.2f}", f"{times['zaya_jax']:.2f}", f"{run['ratio']:.1f}"]
        lines.append(tuple(cells))
    return markdown(
        ("model", "batch", *("transformers, ms a token", "here, 1 thread", "ratio"),
         *("transformers, ms a token", "here, 2 threads", "ratio")),
        lines,
    )  # fmt: skip


def percent_change(share: float, digits: int = 1) -> str:
    """0.0123 -> "+1.2%"; what rounds to nothing has no sign."""
    text = f"{share:+.{digits}%}"
    return text if text.strip("+-0.%") else text[1:]


def _told(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _accuracy(row: Row | dict) -> str:
    if row["accuracy"] is None:
        return ""
    return f"{row['accuracy']:.3f} ({row['accuracy_low']:.3f}-{row['accuracy_high']:.3f})"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(cells) + " |" for cells in rows)])


def study_table(rows: list[Row]) -> str:
    """A run or the study at temperature 1, a line a task, block size and arm: means over training seeds.

    "Upper bound on T" is that of answers as long as these if no draft were rejected; "decode-only T" counts neither the
    prefill nor the token that it yields.
    A speed-up in brackets is the range over runs; of one run it is one measurement, whose interval is not known unless
    results.csv holds it.
    The interval of the difference from AR treats seeds as independent: half-widths add in squares.
    """
    rows = with_block_size({"run": "", **row} for row in rows if row["kind"] == "sampling")
    cold = {key: group for key, group in _grouped(rows) if key[-1] == 0}
    lines = []
    for (task, size, arm, temperature), group in _grouped(rows):
        if temperature != 1:
            continue
        t = [row["tokens_per_forward"] for row in group]
        greedy = [row["tokens_per_forward"] for row in cold[task, size, arm, 0]]
        compared = ("", "") if arm == "autoregressive" else (_difference(group), ", ".join(map(_p_value, group)))
        lines.append(
            (
                task, f"{size:g}", arm, f"{np.mean(greedy):.2f}", f"{np.mean(t):.2f} ({min(t):.2f}-{max(t):.2f})",
                *(_mean_if_known(group, f"{other}_forward") for other in ("most_tokens_per", "tokens_per_decoding")),
                f"{_mean(group, 'rows_per_forward'):g}", _clock(group),
                *(f"{_mean(group, column):.3f}" for column in ("accuracy", "pass_at_4", "pass_at_16")), *compared,
            )
        )  # fmt: skip
    return markdown(
        ("task", "block", "sampler", "T, temperature 0", "T, temperature 1 (seeds)", "upper bound on T",
         "decode-only T", "query tokens per forward", "wall-clock vs AR", "pass@1", "pass@4", "pass@16",
         "pass@16 minus AR (95%)", "p, by seed"),
        lines,
    )  # fmt: skip


def evaluated_table(rows: list[Row]) -> str:
    """pass@1/4/16 of evaluations at one temperature, a line an arm."""
    return markdown(
        ("seeds from", "sampler", "T", "query tokens per forward", "pass@1", "pass@4", "pass@16",
         "pass@16 minus AR (95%)", "p"),
        (
            (
                f"{row['seed']:g}", row["arm"], f"{row['tokens_per_forward']:.2f}", f"{row['rows_per_forward']:g}",
                *(f"{row[column]:.3f}" for column in ("accuracy", "pass_at_4", "pass_at_16")),
                *(("", "") if row["arm"] == "autoregressive" else (_difference([row]), _p_value(row))),
            )
            for row in rows
        ),
    )  # fmt: skip


def ablation_table(rows: list[Row]) -> str:
    """A line a job of a sweep: what it changed, its losses on held-out problems, T and pass@1 of lossless sampling."""
    lines = []
    for name in dict.fromkeys(row["run"] for row in rows):
        mine = [row for row in rows if row["run"] == name]
        converted = {row["source"]: row for row in mine if row["kind"] == "likelihood" and row["model"] == "convert"}
        for task, loss in converted.items():
            here = [row for row in mine if row["source"] == task and row["arm"] == "lossless"]
            by = {row["temperature"]: row for row in here}
            changed = {field: value for field, value in mine[0]["changes"].items() if not field.startswith("evaluate.")}
            lines.append(
                (
                    ", ".join(f"{field} = {value}" for field, value in changed.items()), task,
                    f"{loss['ar_loss']:.4f}", f"{loss['draft_loss']:.3f}",
                    *(f"{by[t]['tokens_per_forward']:.2f}" for t in (0, 1)), *(_accuracy(by[t]) for t in (0, 1)),
                )
            )  # fmt: skip
    return markdown(
        ("changed", "task", "AR loss", "draft loss", "T, temperature 0", "T, temperature 1", "pass@1, temperature 0",
         "pass@1, temperature 1"),
        lines,
    )  # fmt: skip


def _grouped(rows: list[Row]) -> list[tuple[tuple, list[Row]]]:
    """Rows that differ in training seed alone, in order: ((task, block size, arm, temperature), rows)."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault((row["source"], row["block_size"], row["arm"], row["temperature"]), []).append(row)
    return sorted(groups.items(), key=lambda item: (item[0][0], item[0][1], ARMS.index(item[0][2]), item[0][3]))


def ceiling_table(rows: list[dict]) -> str:
    """T under exact distributions: the "rows" of results/bench/ceiling.json."""
    return markdown(
        ("operations", "examples", "beta", "T", "upper bound on T", "decode-only T"),
        (
            (
                " or ".join(str(n + 1) for n in range(row["max_operations"])), str(row["examples"]), f"{row['beta']:g}",
                f"{row['tokens_per_forward']:.2f}", f"{row['most_tokens_per_forward']:.2f}",
                f"{row['tokens_per_decoding_forward']:.2f}",
            )
            for row in rows
        ),
    )  # fmt: skip


def dial_table(rows: list[Row]) -> str:
    """A line a job of a sweep over samplers of one trained model: temperatures, anchors, beta against T and quality."""

    def told(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    lines = []
    for row in rows:
        if row["kind"] != "sampling" or row["arm"] == "autoregressive":
            continue
        draft = row["changes"].get("evaluate.draft_temperature")
        lines.append(
            (
                row["arm"], f"{row['temperature']:g}", f"{row['temperature'] if draft is None else draft:g}",
                "" if row["beta"] is None else f"{row['beta']:g}", row["anchors"].replace(" ", ", "),
                f"{row['rows_per_forward']:g}", f"{row['tokens_per_forward']:.2f}", told(row["accuracy"]),
                told(row["pass_at_4"]), told(row["pass_at_16"]), _p_value(row),
            )
        )  # fmt: skip
    return markdown(
        ("sampler", "temperature", "of the drafts", "beta", "branch points", "query tokens per forward", "T", "pass@1",
         "pass@4", "pass@16", "p"),
        lines,
    )  # fmt: skip


def training_table(runs: list[dict]) -> str:
    """A training step beside TiDAR's, a dense model's and transformers': results of `experiments.bench.training`."""
    lines = []
    for cores, row in [(run["environment"]["cores"], row) for run in runs for row in run["training"]]:
        ours = f"{row['setting']['how']}, CPU devices: {row['setting']['devices']}"
        for side in ("tidar", "dense", "transformers"):
            lines.append(
                (
                    f"{row['parameters'] / 1e6:.1f}M", f"{row['batch']} x {row['row']}", str(cores), side, ours,
                    f"{row['milliseconds']['autoregressive']:.0f} ms", f"{row['milliseconds'][side]:.0f} ms",
                    f"{row['ratio'][side]:.2f}",
                )
            )  # fmt: skip
    return markdown(
        ("parameters", "batch", "cores", "step", "ours computed by", "our AR step", "this one", "ratio"), lines
    )


def conversions_table(rows: list[dict]) -> str:
    """Full-size conversions (`experiments.bench.convert`)."""
    lines = [
        (
            row["conversion"], "yes" if row["killed_after_s"] else "no", f"{row['peak_rss_gib']:.2f} GiB",
            f"{row['peak_anonymous_gib']:.2f} GiB", f"{row['tensors_verified']:,}",
        )
        for row in rows
    ]  # fmt: skip
    headers = ("conversion", "killed and resumed", "peak memory", "without pages of files", "tensors equal bit for bit")
    return markdown(headers, lines)


def loading_table(rows: list[dict]) -> str:
    """Loading a Hugging Face folder onto devices (`experiments.bench.loading`)."""
    lines = [
        (
            str(row["devices"]), f"{row['weights_gib']:.2f} GiB", f"{row['held_by_devices_gib']:.2f} GiB",
            f"{row['peak_over_start_gib']:.2f} GiB", f"{row['beyond_held_gib']:.2f} GiB",
        )
        for row in rows
    ]  # fmt: skip
    return markdown(("devices", "weights", "held by the devices", "peak", "beyond what is held"), lines)


def cache_table(commands: list[dict]) -> str:
    """Whole commands without and with the compilation cache (`experiments.bench.cache`)."""
    lines = [
        (
            row["command"], *(f"{row[side]['median']:.1f} s" for side in ("off", "cold", "warm")),
            f"{row['warm_over_off']:.2f}", f"{row['cache']['programs']} files, {row['cache']['bytes'] / 1e6:.1f} MB",
        )
        for row in commands
    ]  # fmt: skip
    return markdown(
        ("command", "no cache", "empty cache", "filled cache", "filled over none", "the cache holds"), lines
    )


def bfloat16_logits_table(rows: list[dict]) -> str:
    """Errors of bfloat16 logits over float32's deviation, by model and side (`experiments.bench.bfloat16`)."""

    def share(value: float) -> str:
        return f"{value:.2%}"

    lines = []
    for row in rows:
        for side in ("zaya_jax", "transformers"):
            if side not in row:
                continue
            found = row[side]
            kept, whole = found["unchanged"], found["all"]
            lines.append(
                (
                    row["model"], side, "" if kept["rms"] is None else f"{kept['rms']:.4f} ({kept['max']:.3f})",
                    f"{row['unchanged_positions']:,} of {row['positions']:,}",
                    f"{whole['rms']:.4f} ({whole['max']:.3f})", share(found["changed_experts"]), f"{found['kl']:.1e}",
                    share(found["top1_differs"]), share(found["top1_ties"]),
                )
            )  # fmt: skip
    head = ("model", "bfloat16 of", "rms (largest) error, experts unchanged", "positions", "all positions",
            "changed experts", "KL, nats", "likeliest token differs", "ties")  # fmt: skip
    return markdown(head, lines)


def bfloat16_greedy_table(rows: list[dict]) -> str:
    """Greedy texts of the lossless sampler against autoregression's (`experiments.bench.bfloat16`)."""

    def gap(row: dict) -> str:
        gaps = [one["gap"] for one in row["differences"] if one["tie"]]
        return f"{max(gaps):.4f} (at most {row['tie_bound']:.4f})" if gaps else ""

    lines = [
        (
            row["model"], row["dtype"], f"{row['identical']} of {row['texts']}", str(row["ties"]), gap(row),
            str(row["failures"]),
        )
        for row in rows
    ]  # fmt: skip
    return markdown(("model", "dtype", "identical texts", "part at a tie", "widest tie", "part elsewhere"), lines)


def bfloat16_cost_table(rows: list[dict]) -> str:
    """Milliseconds of a forward by dtype, and over float32's (`experiments.bench.bfloat16`)."""
    lines = [
        (row["model"], row["kind"], *(f"{time:.2f} ms ({row['over_float32'][side]:.2f}x)" for side, time in
                                      row["milliseconds"].items()))
        for row in rows
    ]  # fmt: skip
    return markdown(("model", "forward", *rows[0]["milliseconds"]), lines)


def long_rows_table(step: dict) -> str:
    """Temporary memory of a training step by row length (`experiments.bench.memory`)."""
    lines, before = [], None
    for row in step["rows"]:
        size = row["temporary_bytes"]
        lines.append((f"{row['clean_tokens']:,}", f"{size / 2**20:.0f} MiB", f"{size / before:.2f}x" if before else ""))
        before = size
    return markdown(("clean tokens", "temporary memory", "for twice the row"), lines)


def trained_rows_table(runs: list[dict]) -> str:
    """One training step of a long row, run (`experiments.bench.memory`)."""
    lines = [
        (
            f"{run['clean_tokens']:,}", str(run.get("documents", 1)), f"{min(run['seconds']):.0f} s",
            f"{run['tokens_per_second']:,.0f}", f"{run['peak_resident_bytes'] / 2**30:.1f} GiB",
        )
        for run in runs
    ]  # fmt: skip
    return markdown(("clean tokens", "documents", "a step", "clean tokens/s", "the process's peak memory"), lines)


def pairs_table(pairs: dict) -> str:
    """Scores computed for each visible one (`experiments.bench.memory`)."""
    return markdown(
        ("rows", "computed / visible"), [(name, f"{row['ratio']:.3f}") for name, row in pairs["rows"].items()]
    )


def _clock(group: list[Row]) -> str:
    """Tokens per second over AR's: with its interval where the run measured one, else the range over runs."""
    speedups = [row["speedup"] for row in group]
    low, high = min(speedups), max(speedups)
    if len(group) == 1 and group[0].get("speedup_low") is not None:
        low, high = group[0]["speedup_low"], group[0]["speedup_high"]
    return f"{np.mean(speedups):.2f}x" + (f" ({low:.2f}-{high:.2f})" if low < high else "")


def _mean_if_known(group: list[Row], column: str) -> str:
    values = [row[column] for row in group]
    return "" if None in values else f"{np.mean(values):.2f}"


def _p_value(row: Row) -> str:
    return "<0.01" if row["p_value"] < 0.01 else f"{row['p_value']:.2f}"


def _mean(rows: list[Row], column: str) -> float:
    return float(np.mean([row[column] for row in rows]))


def _difference(rows: list[Row]) -> str:
    half = [(row["pass_at_16_difference_high"] - row["pass_at_16_difference_low"]) / 2 for row in rows]
    spread = math.sqrt(sum(h * h for h in half)) / len(rows)
    centre = _mean(rows, "pass_at_16_difference")
    return f"{centre:+.3f} ({centre - spread:+.3f} to {centre + spread:+.3f})"
