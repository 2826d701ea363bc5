"""metrics.jsonl: one JSON object a line, plain files first; and what else a run's numbers may go to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zaya_jax.checks import shown
from zaya_jax.errors import Diverged, UserError
from zaya_jax.files import append_lines, read_lines, remedy, write_lines
from zaya_jax.parallel import is_first
from zaya_jax.training.logging.sinks import Sink

BAD_STEPS = "bad_steps.jsonl"
# Training resumes from its checkpoint, so nothing but curves is lost.
REMEDY = "mend or remove this line (the curves then lack it), and the same command resumes"


class MetricWriter:
    """Appends to a run's metrics.jsonl; a resumed stage first drops the lines it is about to write again.

    Of several processes, the first alone writes: all know the same.
    """

    def __init__(self, path: Path | str, sinks: Sequence[Sink] = ()):
        self.path = Path(path)
        self.bad_steps_path = self.path.with_name(BAD_STEPS)
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
            append_lines(self.path, [{"stage": stage, "step": step, **plain}])
            for sink in self._sinks:
                sink.write(stage, step, plain)

    def bad_step(self, stage: str, step: int, facts: dict[str, Any]) -> None:
        """Adds a line to bad_steps.jsonl beside it."""
        if self._first:
            append_lines(self.bad_steps_path, [{"stage": stage, "step": step, **facts}])

    def rewind(self, stage: str, step: int) -> None:
        """Drops the lines of `stage`, its validation included, beyond `step`.

        Of the sinks, TensorBoard hides what it was told beyond `step`; wandb keeps it, so its curves show the repeated
        steps twice (with equal numbers, as a resumed run repeats them exactly).

        Raises:
          UserError: a damaged file, which stays as it is: which line, and what to do.
        """
        if self._first:
            for path in (self.bad_steps_path, self.path):
                _rewind(path, stage, step)
            for sink in self._sinks:
                sink.rewind(stage, step)


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """All lines of a metrics.jsonl, or of a bad_steps.jsonl; a last line cut short by a crash is left out.

    Raises:
      FileNotFoundError: no such file.
      UserError: a line that is damaged, or that names no stage and step.
    """
    lines = read_lines(path)
    for number, line in enumerate(lines, start=1):
        for field, kind, words in (("stage", str, "text"), ("step", int, "an integer")):
            if type(value := line.get(field)) is not kind:
                raise UserError(f"{path} line {number}: {field}: got {shown(value)}, may be {words}")
    return lines


def _rewind(path: Path, stage: str, step: int) -> None:
    if path.exists():
        with remedy(REMEDY):
            lines = read_metrics(path)
        write_lines(path, [line for line in lines if line["stage"].split("/")[0] != stage or line["step"] <= step])
