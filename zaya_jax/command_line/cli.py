"""The command line shared by the commands: absl flags, one-line errors, compiled programs that are kept."""

import json
import os
import platform
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import app, flags, logging

from zaya_jax import compilation_cache
from zaya_jax.checks import natural
from zaya_jax.command_line import terminal
from zaya_jax.errors import Diverged, UserError
from zaya_jax.files import check_writable, write_text
from zaya_jax.parallel import is_ending
from zaya_jax.paths import absolute
from zaya_jax.registry import load_extension
from zaya_jax.runs.configuration import config_files
from zaya_jax.training.signals import Interrupted

_THREADS = flags.DEFINE_integer(
    "threads", None, "CPU threads to compute with; default: one for each core. Decoding with a model whose active "
    "weights fit the processor's cache is faster with 1 (docs/results/benchmarks.md).", lower_bound=1, upper_bound=1024,
)  # fmt: skip
_CACHE = flags.DEFINE_string(
    "compilation_cache", None, "Folder where compiled programs are kept for the next time; empty: nowhere. Default: "
    "$JAX_COMPILATION_CACHE_DIR, else ~/.cache/zaya_jax/xla (a sweep's jobs: WORKDIR/xla).",
)  # fmt: skip
_EXTENSION = flags.DEFINE_multi_string(
    "extension", [], "A .py file that registers tasks, targets, layouts, objectives or model families, such as a run's "
    "config file (docs/extending.md). May be given several times.",
)  # fmt: skip
_TRACEBACK = flags.DEFINE_bool("traceback", False, "Show where a mistake was noticed, not its line alone.")

INTERRUPTED = 75  # exit status of a run that was asked to stop and has saved: sysexits' "try again later"
BY_KEYBOARD = 130  # of one that Ctrl-C ended, as a shell gives it for SIGINT
KEPT_BELOW = 4 << 30  # bytes, see `_keep_memory`
# What becomes one line: a user's mistake, and what the system answers (no such file, no space left). Anything else is
# our bug, or something out of JAX, and keeps its traceback.
USER_ERRORS = (UserError, OSError, Diverged)


def run(main: Callable[..., None], names: bool = False, keep_memory: bool = False, keep_programs: bool = True) -> None:
    """Parses flags and runs `main`; a user's mistake becomes one line on stderr and exit status 2.

    With `names`, `main` gets what is no flag as its arguments; without, that is a mistake. `keep_memory`: see
    `_keep_memory`. Without `keep_programs` everything is compiled anew: for what measures compiling.
    """
    if keep_memory:
        _keep_memory()

    def guarded(argv: Sequence[str]) -> None:
        if len(argv) > 1 and not names:
            fail(f"argument {argv[1]!r}: unexpected, may be flags only (--help lists them)")
        if _THREADS.value:
            os.environ["NPROC"] = str(_THREADS.value)  # what XLA's CPU client sizes its pools by, when it starts
        if keep_programs:
            compilation_cache.start(_CACHE.value)
        else:
            compilation_cache.turn_off()
        try:
            for file in _EXTENSION.value:
                load_extension(absolute(file))
            main(*argv[1:])
        except USER_ERRORS as error:
            pipe = isinstance(error, BrokenPipeError) and terminal.nobody_reads()
            if pipe or terminal.output_is_refused(error):
                raise  # to `quiet_without_reader`
            if _TRACEBACK.value:
                traceback.print_exc()
            fail(_line_of(error))
        except Interrupted as stop:
            print(f"interrupted: {stop}; the same command resumes from there", file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None
        except KeyboardInterrupt:
            fail("interrupted; the same command resumes from the last checkpoint", status=BY_KEYBOARD)

    # Orbax, tfds and JAX log every probe and file; a user's terminal shows progress bars and our own lines.
    logging.set_verbosity(logging.FATAL)
    logging.set_stderrthreshold(logging.FATAL)
    tfds.disable_progress_bar()
    terminal.print_anything()
    with terminal.quiet_without_reader():
        app.run(guarded, flags_parser=_parse)


def _keep_memory() -> None:
    """Starts this program anew with a glibc that keeps freed memory, unless GLIBC_TUNABLES says otherwise.

    XLA on CPU takes a training step's memory anew at every step. By default glibc returns it to the kernel each time,
    which hands it out again page by page, and a virtual machine's host may take back what is free for a moment. From
    4 GiB on a buffer is still the kernel's. Threads take memory from heaps of their own, whose size glibc derives from
    the page size (`hugetlb`, which asks the kernel for nothing below 1 GiB); where the processor has no pages of 1 GiB
    they stay too small for this and nothing changes.

    glibc reads its settings only when a program starts.
    """
    if platform.libc_ver()[0] == "glibc" and "GLIBC_TUNABLES" not in os.environ:
        settings = {"hugetlb": 1 << 30, "mmap_threshold": KEPT_BELOW, "trim_threshold": KEPT_BELOW}
        os.environ["GLIBC_TUNABLES"] = ":".join(f"glibc.malloc.{name}={value}" for name, value in settings.items())
        os.execv(sys.executable, sys.orig_argv)


def chosen_cache() -> str | None:
    """--compilation_cache; None where it was not given."""
    return _CACHE.value


def extensions() -> list[str]:
    """The --extension flags of this command, for one that it starts."""
    return [f"--extension={absolute(file)}" for file in _EXTENSION.value]


def fail(message: str, status: int = 2) -> None:
    """Ends the program with one line."""
    complain([message])
    if is_ending():  # the other processes have been told, and are not waited for
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    raise SystemExit(status)


def _line_of(error: BaseException) -> str:
    """A mistake in words: the system's refusals, which Python writes as "[Errno 17] File exists: 'a'", too."""
    plain = isinstance(error, OSError) and type(error).__str__ is OSError.__str__
    if plain and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error)


def complain(messages: Sequence[str]) -> None:
    """A line on stderr for each."""
    terminal.close_bars()
    for message in messages:
        print("error: " + " ".join(message.split()), file=sys.stderr)


def check_output(path: Path | str | None) -> None:
    """Raises UserError or FileNotFoundError where a file for --output could not be made; None is no file."""
    if path and not absolute(path).parent.is_dir():
        raise FileNotFoundError(f"--output {path}: its folder does not exist")
    if path:
        check_writable(absolute(path), "--output")


def integers(name: str, given: Sequence[str], most: int) -> list[int]:
    """The integers in [1, most] of a list flag, each once. UserError, naming the flag, for none or anything else."""
    found = [number for number in map(natural, given) if number is not None and 1 <= number <= most]
    if not given or len(found) < len(given):
        raise UserError(f"--{name}: got {','.join(given)[:200]!r}, may be integers in [1, {most}], e.g. 1,8")
    return list(dict.fromkeys(found))


def write_numbers(path: Path | str | None, numbers: dict[str, Any]) -> None:
    """A benchmark's results as JSON; None writes nothing."""
    if path:
        write_text(absolute(path), json.dumps(numbers, indent=2) + "\n")
        print(f"written: {absolute(path)}")


def _help() -> str:
    """The command's purpose and examples, then flags in groups, the sampler's by themselves."""
    groups = {
        "Flags of this command": sys.argv[0],
        "The config": config_files.__name__,
        "Options of the sampler": "zaya_jax.command_line.sampling_flags",
        "The device": "zaya_jax.command_line.measured_device",
        "Flags of every command": __name__,
    }
    parts = [(sys.modules["__main__"].__doc__ or "").rstrip()]
    for title, module in groups.items():
        listed = flags.FLAGS.module_help(module).splitlines()[2:]  # the first two name the module
        if listed:
            parts.append("\n".join([f"{title}:", *listed]))
    return "\n\n".join(parts)


def _parse(argv: Sequence[str]) -> list[str]:
    if any(arg in ("--help", "-h", "-help", "--helpshort") for arg in argv[1:]):
        print(_help())
        raise SystemExit(0)
    try:
        return config_files.parse(argv)
    except UserError as error:
        if "--traceback" in argv:  # which may not have been read yet
            traceback.print_exc()
        fail(str(error))
    return []
