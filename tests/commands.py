"""Commands as a user runs them, each in a process of its own, without waiting for its imports (tests/forks.py).

`python -m` itself is tested in tests/experiments/test_cli.py.
"""

import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]

_spent = {"seconds": 0.0}


def spent() -> float:
    """CPU seconds of the commands of this process that have ended."""
    return _spent["seconds"]


@functools.cache
def _server() -> tuple[socket.socket, subprocess.Popen]:
    """One for each process of the tests; it ends when that process does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    command = [sys.executable, "-m", "tests.forks", str(theirs.fileno())]
    process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    theirs.close()
    return ours, process


class Command:
    """A running `python -m MODULE ARGUMENTS`, with what tests need of subprocess.Popen. Its output is kept in files.

    Attributes:
      pid: the process's own, for signals.
      returncode: None while it runs; -N where signal N ended it.
    """

    def __init__(
        self, module: str, *arguments: str, folder: Path | str = ROOT, new_session: bool = False,
        together: bool = False, **environment: str | None,
    ) -> None:  # fmt: skip
        """Starts it. `together`: stderr goes where stdout goes. `environment`: changes; None unsets."""
        # A command that keeps memory starts itself anew unless this is set (command_line/cli.py), imports and all.
        changed = os.environ | {"GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", "")} | environment
        request = {
            "module": module, "arguments": list(arguments), "folder": str(folder), "new_session": new_session,
            "environment": {name: value for name, value in changed.items() if value is not None},
        }  # fmt: skip
        self.args, self.returncode, self._together = [module, *arguments], None, together
        self._out = tempfile.TemporaryFile()  # noqa: SIM115
        self._err = self._out if together else tempfile.TemporaryFile()  # noqa: SIM115
        report, end = os.pipe()
        self._report = os.fdopen(report)
        server, _ = _server()
        socket.send_fds(server, [json.dumps(request).encode()], [self._out.fileno(), self._err.fileno(), end])
        os.close(end)
        self.pid = int(self._report.readline())

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        if self.returncode is None and select.select([self._report], [], [], 0)[0]:
            status, seconds = self._report.readline().split()
            self.returncode = int(status)
            _spent["seconds"] += float(seconds)
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        """Waits for its end. Raises subprocess.TimeoutExpired, and kills it, after `timeout` seconds."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            if not select.select([self._report], [], [], max(0.0, end - time.monotonic()))[0]:
                os.kill(self.pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        """(stdout, stderr) once it has ended."""
        self.wait(timeout)
        texts = []
        for file in (self._out, self._err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return texts[0], "" if self._together else texts[1]


def run(module: str, *arguments: str, timeout: float = 600, **options) -> subprocess.CompletedProcess:
    """Runs a command to its end; `options` are `Command`'s."""
    command = Command(module, *arguments, **options)
    out, err = command.communicate(timeout)
    return subprocess.CompletedProcess(command.args, command.returncode, out, err)
