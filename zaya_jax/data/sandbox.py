"""Runs a program that nobody has read: a model's answer to a coding problem.

A separate process in Linux namespaces of its own (util-linux's `unshare`; no privilege is needed where the kernel lets
users make namespaces): no network, no other process in sight, the file system read-only but for an empty folder in
memory that vanishes with it, an empty environment, no capability, and limits on processor time, memory, file size, open
files, processes and wall-clock time. Where that cannot be had, nothing is run: `require_sandbox` says why.

Not covered: kernel bugs, reading world-readable files, and a program that looks for its own verdict token in its
interpreter's frames. Generated code is careless far more often than hostile; both are contained.
"""

import contextlib
import functools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

JAIL = (Path(__file__).parent / "jail.py").read_text()
MAX_PROGRAM_BYTES = 100_000  # one argument of a command line may hold 128 KiB


class SandboxError(OSError):
    """The sandbox cannot be made here; the message is one line."""


@dataclass(frozen=True)
class Limits:
    """What a program may use."""

    seconds: float = 5.0  # wall-clock, and (rounded up) processor time
    memory_megabytes: int = 1_024  # address space of each process
    folder_megabytes: int = 16  # its folder, and any one file
    processes: int = 16
    open_files: int = 64


@dataclass(frozen=True)
class Verdict:
    """How a program ended."""

    passed: bool  # it ran to its end without an exception
    reason: str  # "passed", "timeout", "failed" or "too long"
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
    verdict = _run("import os\nassert os.getpid() < 9", Limits())
    if not verdict.passed:
        raise SandboxError(
            "sandbox: this machine lets no user make namespaces, so generated code is not run here "
            f"({(verdict.output.strip() or verdict.reason).splitlines()[-1]})"
        )


def _run(program: str, limits: Limits) -> Verdict:
    if len(program.encode(errors="replace")) > MAX_PROGRAM_BYTES:
        return Verdict(False, "too long", "")
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
        settings = _settings(Path(folder), limits)
        command = ["unshare", "--net", "--ipc", "--pid", "--fork", "--kill-child", "--mount"]
        command += [] if _is_root() else ["--user", "--map-root-user"]
        command += [_python(), "-I", "-S", "-B", "-c", JAIL, json.dumps(settings), token]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=output, env={}, cwd="/", start_new_session=True
        ) as process:  # fmt: skip
            late = False
            try:
                process.communicate(program.encode(errors="replace"), timeout=limits.seconds)
            except subprocess.TimeoutExpired:
                late = True
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # unshare takes the whole process namespace with it
        output.seek(max(0, output.seek(0, os.SEEK_END) - 4_000))
        text = output.read().decode(errors="replace")
    passed = not late and process.returncode == 0 and text.endswith(token)
    reason = "passed" if passed else "timeout" if late else "failed"
    return Verdict(passed, reason, text.removesuffix(token).rstrip("\n"))


def _is_root() -> bool:
    return os.geteuid() == 0


def _python() -> str:
    """The interpreter itself, not a virtual environment's link to it."""
    return os.path.realpath(sys.executable)


def _settings(folder: Path, limits: Limits) -> dict:
    """What jail.py reads; makes the folders it needs."""
    folder.chmod(0o755)
    for name in ("root", "own", "python"):
        (folder / name).mkdir(mode=0o755)
    file_bytes = limits.folder_megabytes * 2**20
    return {
        "root": str(folder / "root"),
        "folder": str(folder / "own"),
        "megabytes": limits.folder_megabytes,
        "prefix": sys.base_prefix,
        "python": str(folder / "python"),
        "executable": "/" + os.path.relpath(_python(), os.path.realpath(sys.base_prefix)),
        # The kernel does not count root's processes, so a fork bomb needs another owner; each program gets its own.
        "user": 2**24 + secrets.randbelow(2**24) if _is_root() else None,
        "rlimits": {
            "CPU": int(limits.seconds) + 1, "AS": limits.memory_megabytes * 2**20, "FSIZE": file_bytes,
            "NPROC": limits.processes, "NOFILE": limits.open_files, "CORE": 0,
        },
    }  # fmt: skip
