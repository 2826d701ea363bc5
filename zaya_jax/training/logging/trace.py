"""A profiler trace of a few steady steps."""

from pathlib import Path

import jax

WARM_UP = 2  # steps of a run that are not traced: they compile, and fill queues
TRACED = 3  # steps that are


class StepTrace:
    """Traces steps WARM_UP + 1 .. WARM_UP + TRACED after where a run starts, or as many of them as there are.

    The folder is TensorBoard's and xprof's: FOLDER/plugins/profile/DATE/*.xplane.pb. None traces nothing.
    """

    def __init__(self, folder: Path | None, done: int):
        self._folder, self._first, self._on = folder, done + WARM_UP + 1, False

    def before(self, step: int) -> None:
        """Called in front of a step."""
        if self._folder is not None and step == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._on = True

    def after(self, step: int, result: jax.Array) -> None:
        """Called after a step, with an array that it makes: the trace waits for it, and only for the last one."""
        if self._on and step == self._first + TRACED - 1:
            jax.block_until_ready(result)
            self._stop()

    def __enter__(self) -> "StepTrace":
        return self

    def __exit__(self, *_: object) -> None:
        if self._on:
            self._stop()

    def _stop(self) -> None:
        self._on = False
        jax.profiler.stop_trace()
