"""metrics.jsonl: one JSON object a line, plain files first."""

import json
from pathlib import Path
from typing import Any

import numpy as np


class MetricWriter:
    """Appends to a run's metrics.jsonl; a resumed stage first drops the lines it is about to write again."""

    def __init__(self, path: Path | str):
        self.path = Path(path)

    def write(self, stage: str, step: int, metrics: dict[str, Any]) -> None:
        """Adds a line. Arrays become lists; numbers keep every digit, so that equal runs have equal lines.

        Raises:
          FloatingPointError: a loss that is not finite, named with its stage and step.
        """
        plain = {name: np.asarray(value).tolist() for name, value in metrics.items()}
        for name, value in plain.items():
            if name.endswith("loss") and not np.isfinite(value):
                raise FloatingPointError(f"{stage} step {step}: {name} is {value}; lower optimizer.learning_rate")
        with self.path.open("a") as file:
            file.write(json.dumps({"stage": stage, "step": step, **plain}) + "\n")

    def rewind(self, stage: str, step: int) -> None:
        """Drops the lines of `stage` beyond `step`."""
        if not self.path.exists():
            return
        lines = [line for line in read_metrics(self.path) if line["stage"] != stage or line["step"] <= step]
        swap = self.path.with_suffix(".partial")
        swap.write_text("".join(json.dumps(line) + "\n" for line in lines))
        swap.replace(self.path)


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """All lines of a metrics.jsonl; a last line cut short by a crash is left out."""
    lines = []
    for text in Path(path).read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
