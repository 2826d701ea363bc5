"""SIGTERM and Ctrl-C: finish the step, save, stop."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
    """A run was asked to stop, and has saved; the message is one line."""


class StopRequest:
    """Whether somebody has asked this run to stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def agreed(self, look: bool) -> bool:
        """Whether to stop after this step; the same in every process.

        Args:
          look: with several processes, they ask each other only if this is True, which must be so in all or in none:
            asking makes each wait for the others. A single process need not wait for it.
        """
        asked = self.signal is not None
        if jax.process_count() == 1:
            return asked
        return look and bool(multihost_utils.process_allgather(np.asarray(asked)).any())


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Notes the first SIGTERM or SIGINT instead of dying of it; a second one does what it always does.

    Outside Python's main thread, which alone may handle signals, none is ever noted.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _: FrameType | None) -> None:
        request.signal = signal.Signals(number)
        restore()

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()
