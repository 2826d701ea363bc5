"""Output that somebody may stop reading (`... | head`), that a full disk may not take, or that may not be text."""

import contextlib
import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import TextIO

from tqdm import tqdm

NOBODY_READS = 141  # exit status when the reader of our output is gone, as a shell gives it for SIGPIPE
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def print_anything() -> None:
    """What the terminal's encoding cannot hold is printed as an escape: a path is bytes, which need not be text."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def quiet_without_reader() -> Iterator[None]:
    """Ends the program without a word when whoever reads its output is gone (`... | head`), with a line when a disk is
    full that stdout goes to.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not nobody_reads():
            raise
        _to_nowhere(sys.stdout, sys.stderr)
        raise SystemExit(NOBODY_READS) from None
    except OSError as error:
        if not output_is_refused(error):
            raise
        _to_nowhere(sys.stdout)
        print(f"error: standard output: cannot be written: {error.strerror}", file=sys.stderr)
        raise SystemExit(2) from None


def _to_nowhere(*streams: TextIO) -> None:
    """What is still buffered would fail once more when the interpreter flushes it in the end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        os.dup2(nowhere, stream.fileno())


def output_is_refused(error: BaseException) -> bool:
    """Whether it is standard output that the system does not take: an error that names no file, seen once more."""
    if not isinstance(error, OSError) or error.filename is not None or error.errno not in REFUSALS:
        return False
    try:
        sys.stdout.flush()
        os.write(sys.stdout.fileno(), b"\n")
    except OSError:
        return True
    return False


def close_bars() -> None:
    """Ends progress bars that an error left open, so that its line begins on one of its own."""
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


def nobody_reads() -> bool:
    """Whether stdout or stderr is a pipe that nobody reads; another pipe's break is an error like others."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            asked = select.poll()
            asked.register(stream.fileno(), 0)  # POLLERR is always reported: on a pipe, that no reader is left
            if any(event & select.POLLERR for _, event in asked.poll(0)):
                return True
    return False
