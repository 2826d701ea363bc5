"""Compiled programs that outlive the process: JAX's persistent compilation cache, made safe to be on by default.

What JAX leaves open is decided here:

* Where: a folder of the user's, or what a command chooses; in it one for each kind of processor and number of threads.
  XLA's programs for CPUs use the instructions of the processor that compiled them and are cut into as many pieces as
  there were threads, and JAX's key does not hold the number of threads.
* How much: the oldest files go when a command starts and finds more than LIMIT. (JAX's own limit,
  `jax_compilation_cache_max_size`, reads a file for every entry whenever it writes one, under one lock: 0.1 ms each,
  a second a program at 9,000 of them. And a process killed while it writes leaves it with an entry that makes every
  later write fail.)
* Damage: JAX writes entries in place and never replaces one, so an entry cut short (kill -9, a full disk) would be
  complained about by every later process. It is removed when it is met, and JAX writes it again.
"""

import contextlib
import glob
import hashlib
import os
import platform
import re
import sys
import tempfile
import warnings
from pathlib import Path

import jax

LIMIT = 2 << 30  # bytes; a program of the quickstart's takes about 20 KiB
CHOSEN_BY_USER = "JAX_COMPILATION_CACHE_DIR"  # JAX reads it: whoever sets it manages that folder
_loaded = {"programs": 0}
_TROUBLE = re.compile(r"Error (reading|writing) persistent compilation cache entry for '(.*?)': (.*)", re.DOTALL)


def start(chosen: str | None, default: Path | None = None) -> None:
    """Turns the cache on, before anything is compiled. A folder that cannot be written to is a warning on stderr.

    Args:
      chosen: --compilation_cache; "" turns it off. None: JAX_COMPILATION_CACHE_DIR if that is set, else `default`.
      default: None: the user's (`user_folder`).
    """
    if chosen == "":
        turn_off()
    elif chosen is not None or CHOSEN_BY_USER not in os.environ:
        try:
            root = Path(chosen).expanduser().absolute() if chosen else default or user_folder()
            root.mkdir(mode=0o700, parents=True, exist_ok=True)  # whoever writes there decides what is executed
            folder = root / machine()
            folder.mkdir(exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder):
                pass
            prune(root)
        except (OSError, RuntimeError) as error:  # RuntimeError: of `Path.home` and `expanduser`, no home
            _warn(f"compiled programs are not kept: {error} (--compilation_cache=DIR chooses another folder)")
            return
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            # Reading the smallest takes a fifth of compiling it, and a run has hundreds of those.
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        _mend(folder)
    jax.monitoring.register_event_listener(_count)


def loaded() -> int:
    """How many programs this process has taken from the cache."""
    return _loaded["programs"]


def _count(event: str, **details: str | int) -> None:
    _loaded["programs"] += event == "/jax/compilation_cache/cache_hits"


def turn_off() -> None:
    """Compiles everything anew, whatever the environment says: for what measures compiling."""
    jax.config.update("jax_enable_compilation_cache", False)


def user_folder() -> Path:
    """$XDG_CACHE_HOME/zaya_jax/xla, or ~/.cache/zaya_jax/xla. RuntimeError where there is no home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "zaya_jax" / "xla"


def machine() -> str:
    """A folder's name for the processor's instruction sets and the threads that XLA computes with."""
    features = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        wanted = ("vendor_id", "cpu family", "model\t", "flags", "Features", "CPU implementer", "CPU part")
        features = "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("NPROC") or cores
    digest = hashlib.blake2b(f"{features}\n{threads}".encode(), digest_size=4).hexdigest()
    return f"{platform.machine()}-{digest}"


def prune(root: Path, limit: int = LIMIT) -> None:
    """Deletes the files below `root` that were not used for longest, down to 3/4 of `limit`, if they take more."""
    found = []
    for path in root.rglob("*"):
        with contextlib.suppress(OSError):  # another process prunes, too
            status = path.lstat()
            if path.is_file():
                found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    total = sum(size for _, size, _ in found)
    if total <= limit:
        return
    for _, size, path in sorted(found):
        if total <= 3 * limit // 4:
            break
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size


def _mend(folder: Path) -> None:
    """Makes JAX's warning of an entry that it cannot read or write one line of ours, and removes the entry."""
    show, said = warnings.showwarning, set()

    def showwarning(message, category, filename, lineno, file=None, line=None) -> None:
        trouble = _TROUBLE.match(str(message))
        if trouble is None:
            show(message, category, filename, lineno, file, line)
            return
        doing, program, reason = trouble.groups()
        for path in folder.glob(f"{glob.escape(program)}-*"):
            with contextlib.suppress(OSError):
                path.unlink()
        if doing not in said:
            said.add(doing)
            what = "a damaged program was removed from" if doing == "reading" else "programs cannot be kept in"
            _warn(f"{what} {folder}: {reason}")

    warnings.showwarning = showwarning


def _warn(text: str) -> None:
    print("warning: " + " ".join(text.split()), file=sys.stderr)
