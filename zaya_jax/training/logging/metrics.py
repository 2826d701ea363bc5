"""metrics.jsonl: one JSON object a line, plain files first; and what else a run's numbers may go to."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zaya_jax.errors import Diverged
from zaya_jax.parallel import is_first
from zaya_jax.training.logging.sinks import Sink
from zaya_jax.writing import append, write_text


class MetricWriter:
    """Appends to a run's metrics.jsonl; a resumed stage first drops the lines it is about to write again.

    Of several processes, the first alone writes: all know the same.
    """

    def __init__(self, path: Path | str, sinks: Sequence[Sink] = ()):
        self.path = Path(path)
        self.bad_steps_path = self.path.with_name("bad_steps.jsonl")
        self._first = is_first()
        self._sinks = sinks

    def write(self, stage: str, step: int, metrics: dict[str, Any]) -> None:
        """Adds a line. Arrays become lists; numbers keep every digit, so that equal runs have equal lines.

        Raises:
          Diverged: a loss that is not finite, named with its stage and step.
        """
        plain = {name: np.asarray(value).tolist() for name, value in metrics.items()}
        for name, value in plain.items():
            if name.endswith("loss") and not np.isfinite(value):
                raise Diverged(f"{stage} step {step}: {name} is {value}; lower optimizer.learning_rate")
        if self._first:
            _append(self.path, {"stage": stage, "step": step, **plain})
            for sink in self._sinks:
                sink.write(stage, step, plain)

    def bad_step(self, stage: str, step: int, facts: dict[str, Any]) -> None:
        """Adds a line to bad_steps.jsonl beside it."""
        if self._first:
            _append(self.bad_steps_path, {"stage": stage, "step": step, **facts})

    def rewind(self, stage: str, step: int) -> None:
        """Drops the lines of `stage`, its validation included, beyond `step`.

        Of the sinks, TensorBoard hides what it was told beyond `step`; wandb keeps it, so its curves show the repeated
        steps twice (with equal numbers, as a resumed run repeats them exactly).
        """
        if self._first:
            _rewind(self.bad_steps_path, stage, step)
            _rewind(self.path, stage, step)
            for sink in self._sinks:
                sink.rewind(stage, step)


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """All lines of a metrics.jsonl; a last line cut short by a crash is left out."""
    lines = []
    for text in Path(path).read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def _append(path: Path, line: dict[str, Any]) -> None:
    append(path, json.dumps(line) + "\n")


def _rewind(path: Path, stage: str, step: int) -> None:
    if not path.exists():
        return
    kept = [line for line in read_metrics(path) if line["stage"].split("/")[0] != stage or line["step"] <= step]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
