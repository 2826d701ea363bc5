"""Result tables in and out: results.csv of a run, of a sweep, and the folders that hold them."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zaya_jax import moved
from zaya_jax.checks import no_such, shown
from zaya_jax.errors import UserError
from zaya_jax.files import UNHELD, UTF_8, open_plain, parse_json, read_text, replacing

Row = dict[str, Any]  # a line of results.csv: text, float, or None where the column does not apply

KINDS = ("sampling", "likelihood", "cost")
COMPARED = ("autoregressive", "lossless", "mix_stale")  # samplers that figures and tables set side by side
TEXT_COLUMNS = ("kind", "model", "source", "sampler", "anchors", "hardware")
# Numbers joined by spaces. forwards_by_tokens counts the forwards that yielded 0, 1, 2 .. tokens.
LIST_COLUMNS = ("draft_accuracy_by_slot", "forwards_by_tokens")
RESULT_COLUMNS = (
    "kind", "model", "source", "sampler", "temperature", "beta", "block_size", "anchors", "batch", "prompts", "seed",
    "max_new_tokens", "draft_temperature",
    "accuracy", "accuracy_low", "accuracy_high", "samples", "pass_at_4", "pass_at_4_low", "pass_at_4_high",
    "pass_at_16", "pass_at_16_low", "pass_at_16_high", "pass_at_16_difference", "pass_at_16_difference_low",
    "pass_at_16_difference_high", "p_value", "tokens", "forwards", "tokens_per_forward", "most_tokens_per_forward",
    "tokens_per_decoding_forward", "rows_per_forward", "seconds", "tokens_per_second", "speedup", "speedup_low",
    "speedup_high", "forwards_by_tokens", "identical_to_autoregressive", "ar_log_probability", "entropy", "ar_loss",
    "bits_per_byte", "draft_loss",
    "draft_accuracy_by_slot", "rows", "milliseconds", "cost_ratio", "hardware",
    # of a step: `sampling.planning.work`
    "draft_length", "tree_size", "target_forwards", "target_rows", "draft_passes", "forward_equivalents",
    "row_equivalents", "tokens_per_forward_equivalent", "tokens_per_row_equivalent",
    # of the sampled stage: FLOPs of all its steps, parameters that it added to the model
    "training_flops", "added_parameters",
    # whether chance alone sets texts at temperatures above 0 this far from the autoregressive sampler's
    "texts_p_value",
)  # fmt: skip
SWEEP_COLUMNS = ("run", "changes", *RESULT_COLUMNS)  # of a sweep's results.csv; changes is a JSON object
CONFIG = "config."  # of a sweep's results.csv: such columns hold a field of the job's config, for readers of tables
TOY_LIMIT = 100_000_000  # parameters below which a run is called a toy run
METRICS, RESULTS, SAMPLES, ENVIRONMENT = "metrics.jsonl", "results.csv", "samples.jsonl", "environment.json"


def write_results(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes results.csv at once or not at all; absent and None cells are blank, lists are joined by spaces.

    Raises:
      UserError: a row with an unknown column or kind, or a cell that is no finite number where one belongs.
    """
    path, rows = Path(path), list(rows)
    for i, row in enumerate(rows):
        _check_columns(row, f"{path.name} row {i}", RESULT_COLUMNS)
    _write_table(path, RESULT_COLUMNS, [_cells(row, f"{path.name} row {i}") for i, row in enumerate(rows)])


def write_sweep(
    path: Path | str,
    runs: Mapping[str, tuple[Mapping[str, Any], Iterable[Row]]],
    fields: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Writes a sweep's results.csv at once or not at all.

    Args:
      runs: by name, the overridden fields of its config (JSON-able values) and the lines of its own results.csv.
      fields: by name, values of its config; each of these fields gets a column of its own, "config.FIELD".
    """
    path, lines = Path(path), []
    fields = fields or {}
    columns = list(dict.fromkeys(field for values in fields.values() for field in values))
    for name, (changes, rows) in runs.items():
        own = ["" if (value := fields.get(name, {}).get(field)) is None else str(value) for field in columns]
        for i, row in enumerate(rows):
            lines.append([name, json.dumps(dict(changes), sort_keys=True), *_cells(row, f"{name} row {i}"), *own])
    _write_table(path, (*SWEEP_COLUMNS, *(CONFIG + field for field in columns)), lines)


def read_sweep(path: Path | str) -> list[Row]:
    """Reads a sweep's results.csv: the rows of its runs, each also with "run" (its name) and "changes" (a dict).

    Raises:
      FileNotFoundError, UserError: as `read_results`.
    """
    header, lines = _read_table(Path(path), SWEEP_COLUMNS, needed=SWEEP_COLUMNS[:3])
    rows = []
    for number, line in enumerate(lines, start=2):
        texts, where = dict(zip(header, line, strict=True)), f"{path} line {number}"
        try:
            changes = parse_json(texts["changes"])
        except UserError:
            changes = None
        if not isinstance(changes, dict):
            raise UserError(f"{where}: changes: got {texts['changes']!r:.60}, should be a JSON object")
        changes = {moved.FIELDS.get(field, field): value for field, value in changes.items()}
        rows.append({"run": texts["run"], "changes": changes, **_parsed(texts, where)})
    return rows


def results_folder(given: str | None, usual: Path) -> Path:
    """The folder that a notebook reads: `usual`, this project's results, or a user's own.

    Args:
      given: a folder from here or from one of the two above `usual`; empty or None for `usual`.

    Raises:
      UserError: `given` is no folder, or neither results nor a sweep's nor a run's; one line that says what it may be.
    """
    if not given:
        return usual
    here = Path(given).expanduser()
    folder = next((each for each in (here, *(place / here for place in usual.parents[:2])) if each.is_dir()), None)
    may_be = (
        f"a sweep's folder (its --workdir, with {RESULTS}), a run's (with config.json and {RESULTS}), or one like "
        "this project's results/ (with bench/ or sweeps/)"
    )
    if folder is None:
        raise UserError(f"results: got {given}, which is no folder, may be {may_be}")
    if not any((folder / name).exists() for name in (RESULTS, "bench", "sweeps")):
        unfinished = " (a run that is not evaluated yet)" if (folder / "config.json").exists() else ""
        raise UserError(f"results: got {given}{unfinished}, may be {may_be}")
    return folder


def is_own(folder: Path) -> bool:
    """Whether a folder that `results_folder` gave is one sweep or run, not a collection of results."""
    return (folder / RESULTS).exists()


def read_rows(folder: Path) -> list[Row]:
    """The rows of a sweep's or a run's folder, as `read_sweep` gives them: a run is a sweep of a job without changes.

    Raises:
      FileNotFoundError, UserError: as `read_results`.
    """
    path = folder / RESULTS
    with open_plain(path) as file:
        if file.readline().removeprefix(UTF_8).startswith(f"{SWEEP_COLUMNS[0]},".encode()):
            return read_sweep(path)
    return [{"run": folder.name, "changes": {}, **row} for row in read_results(path)]


def read_results(path: Path | str) -> list[Row]:
    """Reads results.csv: numbers become floats, blank cells None, and so does a column that an older file lacks.

    Raises:
      FileNotFoundError: no such file.
      UserError: an unknown column, no kind, an unknown kind, a cell that is no number; says file and line.
    """
    header, lines = _read_table(Path(path), RESULT_COLUMNS, needed=RESULT_COLUMNS[:1])
    return [
        _parsed(dict(zip(header, line, strict=True)), f"{path} line {number}")
        for number, line in enumerate(lines, start=2)
    ]


def _write_table(path: Path, header: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    with replacing(path) as partial, partial.open("w", encoding="utf-8", errors=UNHELD, newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(lines)


def _read_table(path: Path, columns: Sequence[str], needed: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of a CSV file whose columns are among `columns` and include `needed`."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file, should be a results table (CSV)")
    try:
        table = list(csv.reader(io.StringIO(read_text(path), newline=""), strict=True))
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV table ({error}), should be what write_results writes") from None
    header = [moved.COLUMNS.get(column, column) for column in table[0]] if table else []
    _check_columns(header, str(path), columns)
    if twice := [column for i, column in enumerate(header) if column in header[:i]]:
        raise UserError(f"{path}: column {twice[0]!r:.60} stands in it twice")
    lacking = [c for c in needed if c not in header]
    if lacking:
        raise UserError(f"{path}: column {lacking[0]!r} is missing, should be in the header line")
    for number, line in enumerate(table[1:], start=2):
        if len(line) != len(header):
            raise UserError(f"{path} line {number}: got {len(line)} cells, should be {len(header)}")
    return header, table[1:]


def wilson(successes: int, total: int) -> tuple[float, float]:
    """Wilson's 95% score interval of a share: (low, high) in [0, 1].

    Raises:
      UserError: total < 1, or successes outside 0 .. total.
    """
    if total < 1 or not 0 <= successes <= total:
        raise UserError(f"successes, total: got {successes}, {total}, may be 0 <= successes <= total, total >= 1")
    from scipy import stats  # a second to import, which no other reader of results needs

    interval = stats.binomtest(successes, total).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def _check_columns(columns: Iterable[str], where: str, known: Sequence[str]) -> None:
    unknown = [c for c in columns if c not in known and not (known is SWEEP_COLUMNS and c.startswith(CONFIG))]
    if unknown:
        raise no_such(f"{where}: column", unknown[0], known)


def _cells(row: Mapping[str, Any], where: str) -> list[str]:
    return [_cell(row, column, where) for column in RESULT_COLUMNS]


def _parsed(texts: Mapping[str, str], where: str) -> Row:
    return {column: _parse(texts.get(column, ""), column, where) for column in RESULT_COLUMNS}


def _cell(row: Mapping[str, Any], column: str, where: str) -> str:
    """One cell as text, checked by reading it back."""
    value = row.get(column)
    if isinstance(value, (list, tuple)):
        value = " ".join(map(str, value))
    text = "" if value is None else str(value)
    _parse(text, column, where)
    return text


def _parse(text: str, column: str, where: str) -> str | float | list[float] | None:
    if column == "kind" and text not in KINDS:
        raise UserError(f"{where}: kind: got {shown(text)}, should be one of {KINDS}")
    if text == "":
        return None
    if column in TEXT_COLUMNS:
        return text
    if column in LIST_COLUMNS:
        return [_number(part, column, where) for part in text.split()]
    return _number(text, column, where)


def _number(text: str, column: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where}: {column}: got {shown(text)}, should be a finite number or blank")
    return number
