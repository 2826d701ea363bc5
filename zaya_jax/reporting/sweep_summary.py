"""What a sweep's jobs came to, in a line each and as a table: the terminal's short form of its results.csv."""

from collections.abc import Iterable, Mapping, Sequence

from zaya_jax.reporting.columns import columns
from zaya_jax.reporting.results import Row

HEAD = ("job", "source", "sampler", "temperature", "T", "accuracy", "loss", "seconds")


def headlines(rows: Iterable[Row]) -> list[Row]:
    """One row a source: of the first sampler that drafts, lossless before others, at the first temperature.

    Without any sampling, the likelihood rows of the last model.
    """
    rows = list(rows)
    order = {"lossless": 0, "autoregressive": 2}  # 1: the others
    sampling = [row for row in rows if row["kind"] == "sampling"]
    best: dict[str | None, Row] = {}
    for row in sampling:
        before = best.get(row["source"])
        if before is None or order.get(row["sampler"], 1) < order.get(before["sampler"], 1):
            best[row["source"]] = row
    if best:
        return list(best.values())
    likelihood = [row for row in rows if row["kind"] == "likelihood"]
    return [row for row in likelihood if row["model"] == likelihood[-1]["model"]]


def cells(row: Row) -> tuple[str, ...]:
    """HEAD's cells from "source" to "loss"; blank where a row has no such number."""
    number = lambda column, form: "" if row.get(column) is None else format(row[column], form)  # noqa: E731
    return (
        row["source"] or "", row["sampler"] or row["model"] or "", number("temperature", "g"),
        number("tokens_per_forward", ".2f"), number("accuracy", ".3f"), number("ar_loss", ".4f"),
    )  # fmt: skip


def line(name: str, rows: Iterable[Row], seconds: float) -> str:
    """A finished job in one line."""
    told = []
    for row in headlines(rows):
        source, sampler, temperature, tokens, accuracy, loss = cells(row)
        if loss:
            told.append(f"{source}: loss {loss}")
        else:
            told.append(f"{source} ({sampler}, temperature {temperature}): T {tokens}, accuracy {accuracy}")
    return "; ".join([f"{name}: finished in {seconds:.0f} s", *told])


def table(jobs: Mapping[str, tuple[Sequence[Row], float]]) -> str:
    """All finished jobs, in columns.

    Args:
      jobs: by name, the lines of its results.csv and its seconds.
    """
    lines: list[Sequence[str]] = []
    for name, (rows, seconds) in jobs.items():
        lines += [(name, *cells(row), f"{seconds:.0f}") for row in headlines(rows)]
    kept = [i for i in range(len(HEAD)) if any(line[i] for line in lines)]
    head, *body = ([line[i] for i in kept] for line in (HEAD, *lines))
    return columns(head, body)
