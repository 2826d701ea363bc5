"""Lists a checkpoint of any kind: what it is, its configuration, its tensors, what is missing or should not be there.

    python -m experiments.inspect_checkpoint --checkpoint=results/quickstart/model
    python -m experiments.inspect_checkpoint --checkpoint=runs/quickstart/checkpoints/convert --all --stats

Reads headers only, so it is quick and small for any size. Tensors that differ only in the numbers in their names
(layers, experts) are one line, with a star for each number; --all gives each its own. --stats reads the weights, one
array at a time, and adds least, greatest, root mean square and the count of NaN and infinite values. The exit status is
1 where something is missing or wrong.
"""

import dataclasses

from absl import flags

from zaya_jax.command_line import cli
from zaya_jax.interop.conversion.inventory import Inventory, Row, Statistics, grouped, measurable, take
from zaya_jax.runs.tokens import checkpoint_of

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Folder to list: a Hugging Face one, or WORKDIR/checkpoints/STAGE."
)
_ALL = flags.DEFINE_bool("all", False, "A line for every tensor.")
_STATS = flags.DEFINE_bool("stats", False, "Read the weights and say what values they hold.")


def main() -> None:
    found = take(checkpoint_of(_CHECKPOINT.value))
    for line in [*found.about, *_config(found)]:
        print(line)
    groups = {f"{row.name} {row.dtype}{list(row.shape)}": [row] for row in found.rows} if _ALL.value else None
    for name, rows in (groups or grouped(found.rows)).items():
        size = sum(row.bytes for row in rows)
        times = f" x {len(rows)}" if len(rows) > 1 else ""
        print(f"  {name}{times}: {size:,} bytes{_statistics(found, rows) if _STATS.value else ''}")
    for line in _totals(found.rows):
        print(line)
    for line in found.problems:
        print(f"problem: {line}")
    if found.problems:
        raise SystemExit(1)
    print("complete: every tensor of this configuration is there, and nothing else")


def _config(found: Inventory) -> list[str]:
    if found.config is None:
        return []
    values = dataclasses.asdict(found.config)
    kinds = values.pop("layer_types") or ()
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))
    return ["config: " + ", ".join(f"{name}={value}" for name, value in values.items()), f"layers: {counts}"]


def _totals(rows: list[Row]) -> list[str]:
    lines = []
    for kind in sorted({row.kind for row in rows}):
        mine = [row for row in rows if row.kind == kind]
        values, size = sum(row.values for row in mine), sum(row.bytes for row in mine)
        lines.append(f"{kind}: {len(mine)} arrays, {values:,} values, {size:,} bytes")
    return lines


def _statistics(found: Inventory, rows: list[Row]) -> str:
    statistics = Statistics()
    for row in rows:
        if not measurable(row):
            return f"; {row.dtype} is not measured"
        statistics.add(found.read(row))
    text = f"; {statistics.least:.4g} to {statistics.greatest:.4g}, rms {statistics.rms:.4g}"
    bad = statistics.count - statistics.finite
    return text + (f", {bad} NaN or infinite" if bad else "")


if __name__ == "__main__":
    cli.run(main)
