"""The processes of a run end together: one that is refused tells all others why, one that is lost is noticed at once.

JAX's own service finds a lost process after 100 seconds and aborts the others; a process that is refused leaves them
waiting for it. Here every process keeps a connection to process 0. The kernel closes a killed process's, and keep-alive
finds a host that is gone in half a minute. Whoever is told ends with one line and a status: `LOST`, which a launcher's
script requeues (docs/distributed.md), or `REFUSED`.
"""

import contextlib
import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from zaya_jax.paths import one_line

LOST, REFUSED = 75, 2  # exit statuses; 75 is also that of a run that was asked to stop and has saved
GRACE = 5.0  # seconds that a process which is told of a refusal has to come to the same end by itself
HEARTBEAT = 30  # seconds in which a silent host is found gone
BYE = {"bye": True}
_ending = False


def is_ending() -> bool:
    """Whether this process ends alone and must not wait for the others: JAX's own end does, for minutes."""
    return _ending


@contextlib.contextmanager
def ending_together(calm: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """While it lasts, an exception in one process or its loss ends all; nothing in a run of one process.

    Args:
      calm: exceptions that all processes raise at once.
    """
    if jax.process_count() == 1:
        yield
        return
    others = _Others()
    try:
        yield
    except calm:
        others.leave(BYE)
        raise
    except BaseException as error:
        global _ending
        _ending = True
        if not isinstance(error, (ValueError, OSError, SystemExit, KeyboardInterrupt)):
            # A collective may have failed because another process has ended: then that is said, and this one ends so.
            others.wait_if_told()
        others.leave({"process": jax.process_index(), "reason": one_line(error)})
        others.wait_until_gone()
        sys.excepthook = _end_alone(sys.excepthook)
        raise
    others.leave(BYE)


def _end_alone(print_traceback):
    def end(*error) -> None:
        print_traceback(*error)
        sys.stderr.flush()
        os._exit(1)

    return end


class _Others:
    """This process's connections: process 0's to all, anybody else's to process 0."""

    def __init__(self) -> None:
        first = jax.process_index() == 0
        self._left, self._told = False, threading.Event()
        # JAX's service is process 0's: whoever outlives it is aborted, so it ends last
        self._patience = 1.0 if first else 0.0
        listener = socket.create_server(("", 0), backlog=1024, reuse_port=False) if first else None
        token = secrets.token_bytes(16)
        told = {"host": socket.gethostname(), "port": 0 if listener is None else listener.getsockname()[1]}
        told |= {"token": token.hex()}
        message = np.zeros(512, np.uint8)
        data = json.dumps(told).encode()
        message[: len(data)] = np.frombuffer(data, np.uint8)
        heard = np.asarray(multihost_utils.broadcast_one_to_all(message)).astype(np.uint8)  # a sum, which is wider
        told = json.loads(heard.tobytes().rstrip(b"\0"))
        if listener is not None:
            self._peers = _accept(listener, told["token"], jax.process_count() - 1)
        else:
            peer = socket.create_connection((told["host"], told["port"]), timeout=60)
            _send(peer, {"token": told["token"], "process": jax.process_index()})
            self._peers = {0: peer}
        for peer in self._peers.values():
            _keep_alive(peer)
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def leave(self, message: dict) -> None:
        """The last message to the others; what they do then is no concern of this process."""
        self._left = True
        for peer in self._peers.values():
            with contextlib.suppress(OSError):
                _send(peer, message)

    def wait_if_told(self) -> None:
        """Returns after two seconds, unless there are bad news: they end this process."""
        if self._told.wait(2):
            time.sleep(4 * GRACE)

    def wait_until_gone(self) -> None:
        """Returns when the others have heard it and ended, or should have."""
        self._watcher.join(2 * GRACE)
        time.sleep(self._patience)

    def _watch(self) -> None:
        """Waits for the first bad news, and ends this process."""
        here = {peer: _Lines() for peer in self._peers.values()}
        names = {peer: process for process, peer in self._peers.items()}
        with selectors.DefaultSelector() as waiting:
            for peer in here:
                waiting.register(peer, selectors.EVENT_READ)
            while waiting.get_map():
                for key, _ in waiting.select():
                    peer = key.fileobj
                    assert isinstance(peer, socket.socket)
                    try:
                        data = peer.recv(65_536)
                    except OSError:
                        data = b""
                    messages = here[peer].add(data)
                    for message in messages:
                        if message != BYE:
                            self._end(message)
                    if not data and BYE not in messages:
                        self._end({"process": names[peer], "reason": None})
                    if not data or BYE in messages or (self._left and messages):
                        waiting.unregister(peer)

    def _end(self, message: dict) -> None:
        """Passes the news on and ends this process, unless it has come to its own end."""
        if self._left:
            return
        self._told.set()
        who, reason = message["process"], message["reason"]
        for process, peer in self._peers.items():
            if process not in (0, who):  # process 0's, all but the one that it is about
                with contextlib.suppress(OSError):
                    _send(peer, message)
        if reason is not None:
            time.sleep(GRACE + self._patience)
            if self._left:  # it has come to the same end
                return
            print(f"error: process {who}: {reason}", file=sys.stderr, flush=True)
            os._exit(REFUSED)
        line = f"lost: process {who} has ended without a word; the same command resumes from the last checkpoint"
        print(line, file=sys.stderr, flush=True)
        time.sleep(self._patience)
        os._exit(LOST)


class _Lines:
    """A stream of JSON lines."""

    def __init__(self) -> None:
        self._rest = b""

    def add(self, data: bytes) -> list[dict]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]


def _accept(listener: socket.socket, token: str, count: int) -> dict[int, socket.socket]:
    """Connections of the other processes, by number; whoever does not know the token is turned away."""
    found: dict[int, socket.socket] = {}
    listener.settimeout(120)
    while len(found) < count:
        peer, _ = listener.accept()
        peer.settimeout(10)
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            line = b""
            while not line.endswith(b"\n") and len(line) < 512:  # no byte beyond it
                line += peer.recv(1) or b"\n"
            said = json.loads(line)
            if secrets.compare_digest(said["token"], token):
                found[int(said["process"])] = peer
                continue
        peer.close()
    listener.close()
    return found


def _keep_alive(peer: socket.socket) -> None:
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", HEARTBEAT // 3), ("TCP_KEEPINTVL", HEARTBEAT // 3), ("TCP_KEEPCNT", 2)):
        if hasattr(socket, name):  # Linux; elsewhere the system's own two hours
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _send(peer: socket.socket, message: dict) -> None:
    peer.sendall(json.dumps(message).encode() + b"\n")
