"""Rows of a sweep: the ones a figure compares, and the footer that says what they are."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from zaya_jax.errors import UserError
from zaya_jax.reporting.plots.style import footer_line
from zaya_jax.reporting.results import COMPARED, TOY_LIMIT, Row

BLOCK_SIZE, SEED = "convert.objective.block_size", "seed"  # fields of a config that sweeps change
CELLS = (  # of the footer: column, and how it is said
    ("block_size", "block size {}"), ("temperature", "temperature {}"), ("batch", "batch {}"),
    ("prompts", "{} prompts"), ("samples", "samples a prompt: {}"), ("seed", "sampling seed {}"),
)  # fmt: skip


class MissingData(UserError):
    """A figure's rows are not there; the message names them."""


def pick(rows: Iterable[Row], kind: str, having: Sequence[str] = (), **equal: Any) -> list[Row]:
    """Rows of a kind with the given cells, and with something in the columns `having`.

    Raises:
      MissingData: there is none.
    """
    found = [
        row
        for row in rows
        if row["kind"] == kind
        and all(row.get(column) == value for column, value in equal.items())
        and all(row.get(column) is not None for column in having)
    ]
    if not found:
        cells = "".join(f", {column} {_text(value)}" for column, value in equal.items())
        wanted = f" that have {' and '.join(having)}" if having else ""
        raise MissingData(f"rows of kind {kind}{cells}{wanted}")
    return found


def anchor_count(row: Row) -> int | None:
    """Accepted lengths after which a row's sampler drafted; None where it does not draft and verify at once."""
    if row["anchors"] is None:
        return None
    return int(row["block_size"]) if row["anchors"] == "all" else len(row["anchors"].split())


def with_same_anchors(rows: Iterable[Row]) -> list[Row]:
    """Rows of COMPARED samplers, one number of branch points a block size: the most frequent; of equals, the larger.

    A sweep may vary the budget of branch points; a figure of something else must not mix them.
    """
    rows = [row for row in rows if row["kind"] == "sampling" and row["sampler"] in COMPARED]
    usual = {}
    for size in {row["block_size"] for row in rows}:
        counts = Counter(n for row in rows if row["block_size"] == size and (n := anchor_count(row)) is not None)
        usual[size] = max(counts, key=lambda n: (counts[n], n), default=None)
    return [row for row in rows if anchor_count(row) in (None, usual[row["block_size"]])]


def anchors_in_words(rows: Iterable[Row]) -> str:
    """Of rows that draft: "all branch points", or "3 branch points", or both where they differ; "" for none."""
    counts = {(n == row["block_size"], n) for row in rows if (n := anchor_count(row)) is not None}
    words = dict.fromkeys("all" if every else str(n) for every, n in sorted(counts))
    return f"{' / '.join(words)} branch points" if words else ""


def with_block_size(rows: Iterable[Row]) -> list[Row]:
    """The same rows, autoregressive ones under the block size that their model was trained for.

    An autoregressive row is sampled with a block of 1; a figure puts it beside the drafting rows of the same run.
    """
    rows = list(rows)
    trained = {row["run"]: row["block_size"] for row in rows if row["sampler"] not in ("autoregressive", None)}
    return [{**row, "block_size": trained.get(row["run"], row["block_size"])} for row in rows]


def matched(
    rows: Iterable[Row], field: str, values: Sequence[Any], usual: Any, besides: Sequence[str] = (SEED,)
) -> tuple[dict[Any, list[Row]], str]:
    """Rows that differ in one field of the config, and in `besides`, alone.

    Args:
      field: the field, as sweeps write it ("convert.objective.masking").
      values: what it must take.
      usual: its value in jobs that leave it unchanged.
      besides: fields that may differ, too.

    Returns:
      The rows of each value, and the other changes that they share, in words ("" for none; those of `evaluate` stand
      in the rows' own cells). Where several settings were run with every value, the first in the file.

    Raises:
      MissingData: no setting was run with every value.
    """
    settings: dict[tuple[str, ...], dict[Any, list[Row]]] = {}
    for row in rows:
        others = {k: v for k, v in row["changes"].items() if k != field and k not in besides}
        setting = tuple(f"{name} = {_text(value)}" for name, value in sorted(others.items()))
        by_value = settings.setdefault(setting, {value: [] for value in values})
        value = row["changes"].get(field, usual)
        if value in by_value:
            by_value[value].append(row)
    for setting, by_value in settings.items():
        if all(by_value.values()):
            return by_value, ", ".join(words for words in setting if not words.startswith("evaluate."))
    raise MissingData(f"a setting that was run with {field} = {' and '.join(map(_text, values))}")


def shared(rows: Iterable[Row], column: str) -> list[Any]:
    """Distinct values of a column in order, blanks aside."""
    return sorted({row.get(column) for row in rows if row.get(column) is not None}, key=lambda v: (str(type(v)), v))


def conditions(rows: Sequence[Row], *more: str) -> str:
    """The footer: toy or not, parameters, block size, branch points, temperature, batch, prompts, seeds, hardware."""
    sizes = shared(rows, "parameters")
    parts = ["toy run" if max(sizes, default=0) < TOY_LIMIT else "", *more]
    told = " / ".join(dict.fromkeys(f"{size / 1e6:.3g}M" for size in sizes))
    parts += [f"{told} parameters" if sizes else "parameters not recorded"]
    drafting = [row for row in rows if row["sampler"] not in ("autoregressive", None)]
    for column, words in CELLS:
        values = shared(drafting if column == "block_size" else rows, column)
        parts += [words.format(" / ".join(map(_text, values)))] if values else []
        parts += [anchors_in_words(drafting)] if column == "block_size" else []
    seeds = shared(rows, "training_seed") or sorted({row["changes"][SEED] for row in rows if SEED in row["changes"]})
    parts += [f"training seed{'s' * (len(seeds) > 1)} {' / '.join(map(_text, seeds))}"] if seeds else []
    return footer_line([*parts, *shared(rows, "hardware")])


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)
