"""Tables of results.csv: a run's, a study's, a sweep's."""

import numpy as np

from zaya_jax.reporting.paper.sweep_rows import with_block_size
from zaya_jax.reporting.results import COMPARED, Row
from zaya_jax.reporting.tables.cells import (
    accuracy,
    difference,
    markdown,
    mean,
    mean_if_known,
    number,
    p_value,
    percent_change,
    speedup,
)


def sampling_table(rows: list[Row]) -> str:
    """The four figures every claim of speed needs: tokens per forward, query tokens per forward, speed-up, quality.

    Quality is accuracy where a task checks answers; of continuations of plain text, their log-probability under AR.
    "p, same distribution" tests sampled texts against AR's, where several of a prompt were drawn.

    Args:
      rows: of results.csv; those of kind "sampling" are shown, in their order.
    """
    rows = [row for row in rows if row["kind"] == "sampling"]
    judged = any(row["accuracy"] is not None for row in rows)
    tested = any(row.get("texts_p_value") is not None for row in rows)
    quality = "accuracy (95% interval)" if judged else "log-probability under AR (nats a token)"
    return markdown(
        ("temperature", "sampler", "tokens per forward", "query tokens per forward", "wall-clock vs AR", quality,
         "same tokens as greedy AR", *["p, same distribution"] * tested),
        (
            (
                f"{row['temperature']:g}", row["sampler"], f"{row['tokens_per_forward']:.2f}",
                f"{row['rows_per_forward']:g}", speedup([row]),
                accuracy(row) if judged else number(row.get("ar_log_probability"), ".3f"),
                number(row.get("identical_to_autoregressive"), ".1%"),
                *[number(row.get("texts_p_value"), ".3f")] * tested,
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
        cells = [number(loss.get((source, model)), ".4f") for model in models]
        if compared:
            converted, control = loss.get((source, "convert")), loss.get((source, "control"))
            cells.append(percent_change(converted / control - 1) if converted and control else "")
        lines.append((source, *cells))
    head = [names.get(model, model) for model in models] + ["converted vs control"] * compared
    return markdown(("held-out source", *head), lines)


def study_table(rows: list[Row]) -> str:
    """A run or the study at temperature 1, a line a task, block size and sampler: means over training seeds.

    "Upper bound on T" is that of answers as long as these if no draft were rejected; "decode-only T" counts neither the
    prefill nor the token that it yields.
    A speed-up in brackets is the range over runs; of one run it is one measurement, whose interval is not known unless
    results.csv holds it.
    The interval of the difference from AR treats seeds as independent: half-widths add in squares.
    """
    rows = with_block_size({"run": "", **row} for row in rows if row["kind"] == "sampling")
    cold = {key: group for key, group in _grouped(rows) if key[-1] == 0}
    lines = []
    for (task, size, sampler, temperature), group in _grouped(rows):
        if temperature != 1:
            continue
        t = [row["tokens_per_forward"] for row in group]
        greedy = [row["tokens_per_forward"] for row in cold[task, size, sampler, 0]]
        compared = ("", "") if sampler == "autoregressive" else (difference(group), ", ".join(map(p_value, group)))
        lines.append(
            (
                task, f"{size:g}", sampler, f"{np.mean(greedy):.2f}", f"{np.mean(t):.2f} ({min(t):.2f}-{max(t):.2f})",
                *(mean_if_known(group, f"{other}_forward") for other in ("most_tokens_per", "tokens_per_decoding")),
                f"{mean(group, 'rows_per_forward'):g}", speedup(group),
                *(f"{mean(group, column):.3f}" for column in ("accuracy", "pass_at_4", "pass_at_16")), *compared,
            )
        )  # fmt: skip
    return markdown(
        ("task", "block", "sampler", "T, temperature 0", "T, temperature 1 (seeds)", "upper bound on T",
         "decode-only T", "query tokens per forward", "wall-clock vs AR", "pass@1", "pass@4", "pass@16",
         "pass@16 minus AR (95%)", "p, by seed"),
        lines,
    )  # fmt: skip


def _grouped(rows: list[Row]) -> list[tuple[tuple, list[Row]]]:
    """Rows that differ in training seed alone, in order: ((task, block size, sampler, temperature), rows)."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault((row["source"], row["block_size"], row["sampler"], row["temperature"]), []).append(row)
    return sorted(groups.items(), key=lambda item: (item[0][0], item[0][1], COMPARED.index(item[0][2]), item[0][3]))


def evaluated_table(rows: list[Row]) -> str:
    """pass@1/4/16 of evaluations at one temperature, a line a sampler."""
    return markdown(
        ("seeds from", "sampler", "T", "query tokens per forward", "pass@1", "pass@4", "pass@16",
         "pass@16 minus AR (95%)", "p"),
        (
            (
                f"{row['seed']:g}", row["sampler"], f"{row['tokens_per_forward']:.2f}", f"{row['rows_per_forward']:g}",
                *(f"{row[column]:.3f}" for column in ("accuracy", "pass_at_4", "pass_at_16")),
                *(("", "") if row["sampler"] == "autoregressive" else (difference([row]), p_value(row))),
            )
            for row in rows
        ),
    )  # fmt: skip


def quality_table(models: dict[str, list[Row]]) -> str:
    """What models are worth, a line each: tasks' accuracy, texts' bits per byte.

    Args:
      models: rows of `experiments.evaluate --texts` with autoregressive sampling, by what the model is called.
    """
    first = next(iter(models.values()))
    of = {"sampling": [], "likelihood": []}
    for row in first:
        of[row["kind"]].append(row["source"])
    lines = []
    for name, rows in models.items():
        found = {(row["kind"], row["source"]): row for row in rows}
        cells = [name]
        for source in of["sampling"]:
            row = found["sampling", source]
            low, high = row["accuracy_low"], row["accuracy_high"]
            cells.append(f"{row['accuracy']:.3f} ({low:.3f}-{high:.3f})")
        cells += [f"{found['likelihood', source]['bits_per_byte']:.3f}" for source in of["likelihood"]]
        lines.append(cells)
    tasks = [f"{source} right (95%)" for source in of["sampling"]]
    return markdown(("model", *tasks, *(f"bits per byte of {source}" for source in of["likelihood"])), lines)


def ablation_table(rows: list[Row]) -> str:
    """A line a job of a sweep: what it changed, its losses on held-out problems, T and pass@1 of lossless sampling."""
    lines = []
    for name in dict.fromkeys(row["run"] for row in rows):
        mine = [row for row in rows if row["run"] == name]
        converted = {row["source"]: row for row in mine if row["kind"] == "likelihood" and row["model"] == "convert"}
        for task, loss in converted.items():
            here = [row for row in mine if row["source"] == task and row["sampler"] == "lossless"]
            by = {row["temperature"]: row for row in here}
            changed = {field: value for field, value in mine[0]["changes"].items() if not field.startswith("evaluate.")}
            lines.append(
                (
                    ", ".join(f"{field} = {value}" for field, value in changed.items()), task,
                    f"{loss['ar_loss']:.4f}", f"{loss['draft_loss']:.3f}",
                    *(f"{by[t]['tokens_per_forward']:.2f}" for t in (0, 1)), *(accuracy(by[t]) for t in (0, 1)),
                )
            )  # fmt: skip
    return markdown(
        ("changed", "task", "AR loss", "draft loss", "T, temperature 0", "T, temperature 1", "pass@1, temperature 0",
         "pass@1, temperature 1"),
        lines,
    )  # fmt: skip


def sampling_options_table(rows: list[Row]) -> str:
    """A line a job of a sweep over samplers of one trained model: temperatures, anchors, beta against T and quality."""

    def told(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    lines = []
    for row in rows:
        if row["kind"] != "sampling" or row["sampler"] == "autoregressive":
            continue
        draft = row["changes"].get("evaluate.draft_temperature")
        lines.append(
            (
                row["sampler"], f"{row['temperature']:g}", f"{row['temperature'] if draft is None else draft:g}",
                "" if row["beta"] is None else f"{row['beta']:g}", row["anchors"].replace(" ", ", "),
                f"{row['rows_per_forward']:g}", f"{row['tokens_per_forward']:.2f}", told(row["accuracy"]),
                told(row["pass_at_4"]), told(row["pass_at_16"]), p_value(row),
            )
        )  # fmt: skip
    return markdown(
        ("sampler", "temperature", "of the drafts", "beta", "branch points", "query tokens per forward", "T", "pass@1",
         "pass@4", "pass@16", "p"),
        lines,
    )  # fmt: skip
