"""Runs a command of `experiments` in this process on hostile input, and says whether it broke its promise.

The promise: exit status 0, or status 2 with one `error:` line (of a sweep: one for each mistaken job), within a bound
of time and memory; never a traceback, and nothing half-written where the output was to be. `FUZZ_EXAMPLES=500` tries
more inputs than the usual few, at random, and `FUZZ_REPORT=FILE` writes each broken promise as a JSON line there
instead of failing at the first.
"""

import contextlib
import importlib
import io
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from absl import flags
from hypothesis import settings

from zaya_jax.command_line import cli
from zaya_jax.training.signals import Interrupted

SECONDS = 60  # of one command; the first of a kind also compiles
MEMORY = 4 << 30  # bytes of address space that one command may add
OURS = ("/zaya_jax/", "/experiments/", "/configs/")
_FLAGS: dict[str, dict[str, flags.Flag]] = {}

examples = int(os.environ.get("FUZZ_EXAMPLES", "25"))
fuzzed = settings(max_examples=examples, deadline=None, derandomize="FUZZ_EXAMPLES" not in os.environ, database=None)


class BrokenPromise(AssertionError):
    """A command that ended as none may."""


class OutOfTime(BaseException):
    """Not an Exception: a command's own handlers must not take it for a mistake of the user's."""


@dataclass(frozen=True)
class Ended:
    status: int
    errors: str  # what it wrote to stderr


def run(action: Callable[[], object], about: str = "", each: str = "") -> Ended:
    """Calls `action` as `cli.run` would, and checks how it ends.

    Args:
      each: how every error line begins where there may be several, such as one a job; "": there may be one.

    Raises:
      BrokenPromise: any other end; or, with FUZZ_REPORT, nothing: it is written there.
    """
    status, fault, errors = 0, "", io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors), _bounded():
        try:
            action()
        except cli.USER_ERRORS as error:
            status = 2
            cli.complain([str(error)])
        except Interrupted:
            status = cli.INTERRUPTED
        except SystemExit as end:
            status = int(end.code or 0)
        except (Exception, OutOfTime) as error:
            fault = f"{type(error).__name__} at {_where(error)}: {error}"[:600]
    lines = [line for line in errors.getvalue().splitlines() if line.startswith("error:")]
    if not fault and status not in (0, 1, 2, cli.INTERRUPTED):
        fault = f"exit status {status}"
    several = bool(each) and len(lines) > 1 and all(line.startswith(each) for line in lines)
    if not fault and status == 2 and len(lines) != 1 and not several:
        fault = f"{len(lines)} error lines: {errors.getvalue()[-300:]!r}"
    if not fault and status == 2 and (longest := max(lines, key=len)) and len(longest) > 2_000:
        fault = f"an error line of {len(longest)} letters: {longest[:100]!r}"
    if fault:
        _report(fault, about)
    return Ended(status, errors.getvalue())


def command(name: str, *arguments: str, stdin: str = "", about: str = "") -> Ended:
    """`python -m experiments.NAME ARGUMENTS`, in this process."""
    module = _load(name)
    argv = [f"experiments.{name}", *arguments]

    def action() -> None:
        with _flags_of(name), _replaced(sys, "argv", argv), _replaced(sys, "stdin", io.StringIO(stdin)):
            rest = cli._parse(argv)[1:]
            if name == "figures":
                module.main(*rest)
            elif rest:
                cli.fail(f"argument {rest[0]!r}: unexpected, may be flags only (--help lists them)")
            else:
                module.main(flags.FLAGS) if name == "generate" else module.main()

    return run(action, about or " ".join(argv), each="error: job " if name == "sweep" else "")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def nothing_left(output: Path, ended: Ended, about: str) -> None:
    """A command that failed left no output, and no part of one beside it."""
    if ended.status == 2:
        left = [path.name for path in output.parent.glob(f"*{output.name}*")]
        if left:
            _report(f"left behind after an error: {left}", about)


def _report(fault: str, about: str) -> None:
    path = os.environ.get("FUZZ_REPORT")
    if not path:
        raise BrokenPromise(f"{fault}\n  {about}"[:3_000])
    with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(json.dumps({"fault": fault, "about": about[:1_000]}) + "\n")


def _where(error: BaseException) -> str:
    """The last of our own lines that the error went through."""
    frames = traceback.extract_tb(error.__traceback__)
    mine = [f for f in frames if any(part in f.filename for part in OURS)]
    chosen = (mine or frames)[-1]
    return f"{'/'.join(chosen.filename.rsplit('/', 3)[-3:])}:{chosen.lineno}"


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise OutOfTime(f"more than {SECONDS} s")

    page, old = resource.getpagesize(), resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * page
    handler = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, old[1]))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, old)
        signal.signal(signal.SIGALRM, handler)


def _load(name: str):
    """A command's module; its flags are put away, since several commands have flags of the same name."""
    if name not in _FLAGS:
        before = set(flags.FLAGS)
        module = importlib.import_module(f"experiments.{name}")
        if name == "generate":
            module.define_flags(flags.FLAGS)
        _FLAGS[name] = {flag: flags.FLAGS[flag] for flag in set(flags.FLAGS) - before}
        _remove(_FLAGS[name])
    return importlib.import_module(f"experiments.{name}")


def names_of_flags(name: str) -> list[str]:
    _load(name)
    return sorted(_FLAGS[name])


@contextlib.contextmanager
def _flags_of(name: str) -> Iterator[None]:
    known = set(flags.FLAGS)
    for flag, value in _FLAGS[name].items():
        value.unparse()
        flags.FLAGS[flag] = value
    try:
        yield
    finally:
        _remove(set(flags.FLAGS) - known)  # those that a config file defined, too
        flags.FLAGS.unparse_flags()


def _remove(names: Sequence[str] | set[str] | dict) -> None:
    for name in list(names):
        if name in flags.FLAGS:
            delattr(flags.FLAGS, name)


@contextlib.contextmanager
def _replaced(where: object, name: str, value: object) -> Iterator[None]:
    old = getattr(where, name)
    setattr(where, name, value)
    try:
        yield
    finally:
        setattr(where, name, old)
