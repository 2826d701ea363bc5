"""Output that somebody may stop reading (`... | head`), or that may not be text."""

import contextlib
import io
import os
import select
import sys
from collections.abc import Iterator

NOBODY_READS = 141  # exit status when the reader of our output is gone, as a shell gives it for SIGPIPE


def print_anything() -> None:
    """What the terminal's encoding cannot hold is printed as an escape: a path is bytes, which need not be text."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def quiet_without_reader() -> Iterator[None]:
    """Ends the program without a word when whoever reads its output is gone (`... | head`)."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not nobody_reads():
            raise
        # What is still buffered would fail once more when the interpreter flushes it in the end.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())
        raise SystemExit(NOBODY_READS) from None


def nobody_reads() -> bool:
    """Whether stdout or stderr is a pipe that nobody reads; another pipe's break is an error like others."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            asked = select.poll()
            asked.register(stream.fileno(), 0)  # POLLERR is always reported: on a pipe, that no reader is left
            if any(event & select.POLLERR for _, event in asked.poll(0)):
                return True
    return False
