"""The process that `tests.commands` asks for others: it has imported what every command imports, and forks.

    python -m tests.forks SOCKET

Importing JAX, tensorflow_datasets and this package takes 3 to 4 seconds of a processor; a suite that starts a hundred
commands would spend minutes on it. A fork is as much a process of its own as one that was started by name: its
arguments, environment, folder, output, signals and exit status are the command's. JAX has not started here, so that
each command starts it for itself, with its own XLA_FLAGS.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from tests import xla

PRELOADED = ("ml_collections.config_flags", "tensorflow_datasets", "matplotlib.backends.backend_agg")
DEFINES_FLAGS = "zaya_jax.command_line"
OPTIONAL = ("lm_eval_adapter",)  # what imports an extra, which takes longer than all else


def preload() -> None:
    """Imports what commands do; what defines flags is left to them."""
    import zaya_jax

    names = [found.name for found in pkgutil.walk_packages(zaya_jax.__path__, "zaya_jax.")]
    for name in (*PRELOADED, *(name for name in names if not name.endswith(OPTIONAL) and DEFINES_FLAGS not in name)):
        importlib.import_module(name)
    xla.lower_in_place()
    assert threading.active_count() == 1, threading.enumerate()
    keep_imports()


def keep_imports() -> None:
    """What has been imported stays: the garbage collector need not look through it, and looks more rarely."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


def watched(report: int) -> None:
    """Continues in a child; its parent, a fork too, waits for it, writes its status and CPU seconds, and ends."""
    child = os.fork()
    if child == 0:
        return
    _, status, used = os.wait4(child, 0)
    os.write(report, f"{os.waitstatus_to_exitcode(status)} {used.ru_utime + used.ru_stime:.3f}\n".encode())
    os._exit(0)


def next_request(requests: socket.socket) -> dict:
    """Answers requests for ever; returns in each child, which then is the process that was asked for."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those who wait for children are themselves waited for by nobody
    while True:
        message, files, _, _ = socket.recv_fds(requests, 1 << 20, 3)
        if not message:
            os._exit(0)  # whoever asked has ended
        if os.fork() == 0:
            break
        for file in files:
            os.close(file)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    requests.close()
    request = json.loads(message)
    out, err, report = files
    watched(report)
    if request["new_session"]:
        os.setsid()
    os.write(report, f"{os.getpid()}\n".encode())
    os.dup2(out, 1)
    os.dup2(err, 2)
    for file in files:
        os.close(file)
    return request


def end(run: Callable[[], object]) -> NoReturn:
    """Runs it and ends the process with its status, as the interpreter would, but for freeing everything one by one."""
    try:
        run()
        status = 0
    except SystemExit as error:
        if not (error.code is None or isinstance(error.code, int)):
            print(error.code, file=sys.stderr)
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        sys.excepthook(*sys.exc_info())
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        status = 1
    threading._shutdown()  # pyrefly: ignore[missing-attribute]
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def main() -> None:
    preload()
    request = next_request(socket.socket(fileno=int(sys.argv[1])))
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.path.insert(0, request["folder"])
    sys.argv = ["-m", *request["arguments"]]
    end(functools.partial(runpy.run_module, request["module"], run_name="__main__", alter_sys=True))


if __name__ == "__main__":
    main()
