"""Bad steps: losses that are not finite or jump, seen a few steps late so that nothing waits, and written down."""

import collections
import hashlib
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from zaya_jax.errors import Diverged
from zaya_jax.training.logging.metrics import MetricWriter

LAG = 8  # steps that a verdict may be late: no device is kept waiting unless the host is ahead of it by as many
MOST_IN_A_ROW = 50  # bad steps that "skip" takes for accidents; `recent_loss` has followed any change of level by then


class _Step(NamedTuple):
    step: int
    position: dict[str, Any]
    batch: dict[str, np.ndarray]
    told: dict[str, jax.Array]


class BadSteps:
    """Looks at every step's verdict when LAG more steps are on their way, and keeps their batches until then.

    Processes that step together find the same step bad, and stop in front of the same one.

    A bad step becomes a line of bad_steps.jsonl: loss, gradient norm, what the loss was compared with (null: it was not
    finite), the data position in front of the batch (a pipeline at that position gives it again) and its rows' hashes.
    """

    def __init__(self, stage: str, writer: MetricWriter, skip: bool, spike_factor: float):
        self._stage, self._writer, self._skip, self._factor = stage, writer, skip, spike_factor
        self._waiting: collections.deque[_Step] = collections.deque()
        self._in_a_row = 0

    def add(self, step: int, position: dict[str, Any], batch: dict[str, np.ndarray], metrics: dict[str, Any]) -> None:
        """Takes what only it needs out of a step's metrics (`bad`, `recent_loss`), then looks LAG steps back.

        Args:
          position: of the data before the batch.
          batch: on the host.

        Raises:
          Diverged: see `look`.
        """
        told = {name: metrics.pop(name) for name in ("bad", "recent_loss")}
        told |= {name: metrics[name] for name in ("loss", "grad_norm")}
        self._waiting.append(_Step(step, position, batch, told))
        self.look(LAG)

    def look(self, lag: int = 0) -> None:
        """Writes down the bad ones among all steps but the newest `lag`, waiting until they are done.

        Raises:
          Diverged: one is bad and bad steps stop the run, or too many in a row are.
        """
        while len(self._waiting) > lag:
            step = self._waiting.popleft()
            self._in_a_row = self._in_a_row + 1 if bool(step.told["bad"]) else 0
            if self._in_a_row:
                self._report(step)

    def _report(self, step: _Step) -> None:
        loss, norm, recent = (float(step.told[name]) for name in ("loss", "grad_norm", "recent_loss"))
        finite = math.isfinite(loss) and math.isfinite(norm)
        self._writer.bad_step(self._stage, step.step, {
            "loss": _plain(loss), "grad_norm": _plain(norm), "recent_loss": _plain(recent) if finite else None,
            "data": step.position, "rows": row_hashes(step.batch),
        })  # fmt: skip
        name, value = ("loss", loss) if not math.isfinite(loss) else ("grad_norm", norm)
        what = f"{name} is {value}; lower optimizer.learning_rate"
        if finite:
            what = f"loss is {loss:.4g}, more than {self._factor:g} (spike_factor) x the recent {recent:.4g}"
        if not self._skip:
            raise Diverged(
                f"{self._stage} step {step.step}: {what}; the batch is in {self._writer.bad_steps_path.name}"
            )
        if self._in_a_row > MOST_IN_A_ROW:
            raise Diverged(f"{self._stage} step {step.step}: {self._in_a_row} bad steps in a row: {what}")


def row_hashes(batch: dict[str, np.ndarray]) -> list[str]:
    """16 hex digits for each row of a batch's tokens, int32 [B, T]."""
    rows = np.ascontiguousarray(batch["tokens"], dtype="<i4")
    return [hashlib.blake2b(row.tobytes(), digest_size=8).hexdigest() for row in rows]


def _plain(value: float) -> float | str:
    """JSON has no infinities."""
    return value if math.isfinite(value) else str(value)
