"""Programs that misbehave are contained and reported as failures; honest ones pass."""

import os
import tempfile
import time
from pathlib import Path

import pytest

from zaya_jax.data import sandbox
from zaya_jax.data.sandbox import Limits, SandboxError, require_sandbox, run_program

QUICK = Limits(seconds=3)
HOSTILE = {
    "endless loop": ("while True: pass", "timeout"),
    "sleeper": ("import time\ntime.sleep(60)", "timeout"),
    "fork bomb": ("import os\nwhile True: os.fork()", None),
    "memory hog": ("x = bytearray(4 << 30)", "MemoryError"),
    "endless printer": ("import sys\nwhile True: sys.stdout.write('x' * 10_000)", None),
    "huge file": ("open('big', 'wb').write(b'x' * (64 << 20))", "File too large"),
    "file deletion": ("import os\nos.remove(PATH)", "Read-only file system"),
    "file writing": ("open(PATH, 'w').write('mine')", "Read-only file system"),
    "socket": ("import socket\nsocket.create_connection(('127.0.0.1', 22), 2)", "Error"),
    "parent's environment": ("print(open('/proc/%d/environ' % __import__('os').getppid()).read())", "FileNotFound"),
    "killer of others": ("import os\nos.kill(PARENT, 9)", "ProcessLookupError"),
    "early exit": ("import os\nos._exit(0)", "failed"),
    "polite exit": ("raise SystemExit", "failed"),
    "remount": (
        "import ctypes\nassert ctypes.CDLL(None).mount(b'none', b'/', None, ctypes.c_ulong(0x1020), None) == 0",
        "AssertionError",
    ),
    "new namespace": ("import ctypes\nassert ctypes.CDLL(None).unshare(0x20000) == 0", "AssertionError"),
    "too long": ("#" * 200_000, "too long"),
}


@pytest.fixture(params=["as we are", "in a user namespace"])
def owner(request, monkeypatch):
    """Root is contained without a user namespace, anybody else in one; as root both can be had but for counting."""
    try:
        require_sandbox()
    except SandboxError as error:
        pytest.skip(str(error))
    if request.param == "in a user namespace":
        if os.geteuid() != 0:
            pytest.skip("that is what we are")
        monkeypatch.setattr(sandbox, "_is_root", lambda: False)
    return request.param


@pytest.fixture
def open_folder():
    """A folder that everybody may write to, so that nothing but the sandbox protects what is in it."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_is_contained(name, open_folder, owner):
    program, reason = HOSTILE[name]
    if name == "fork bomb" and owner == "in a user namespace":
        pytest.skip("the kernel does not count processes of the real root")
    mine = open_folder / "mine.txt"
    mine.write_text("ours")
    mine.chmod(0o666)
    program = program.replace("PATH", repr(str(mine))).replace("PARENT", str(os.getpid()))
    clock = time.monotonic()
    verdict = run_program(program, QUICK)
    assert not verdict.passed and time.monotonic() - clock < 20
    assert reason is None or reason in verdict.reason + verdict.output
    assert mine.read_text() == "ours" and len(verdict.output) <= 4_000


def test_an_honest_program_passes(owner, monkeypatch):
    monkeypatch.setenv("SECRET", "do not tell")
    program = "import os, json\nopen('a.txt', 'w').write('x')\nprint(os.listdir('.'), 'SECRET' in os.environ)"
    verdict = run_program(program, QUICK)
    assert (verdict.passed, verdict.reason, verdict.output) == (True, "passed", "['a.txt'] False")
    assert run_program("import os\nprint(os.listdir('.'))", QUICK).output == "[]"  # every program finds an empty folder


def test_a_program_cannot_print_its_own_verdict(owner):
    verdict = run_program("import os, sys\nsys.stdout.write('passed ' * 99)\nsys.stdout.flush()\nos._exit(0)", QUICK)
    assert not verdict.passed


def test_no_sandbox_no_run(monkeypatch):
    require_sandbox.cache_clear()
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    with pytest.raises(SandboxError, match="needs Linux and util-linux's unshare"):
        run_program("print(1)")
    require_sandbox.cache_clear()
    monkeypatch.undo()
    monkeypatch.setattr(sandbox, "JAIL", "raise OSError('not permitted')")
    with pytest.raises(SandboxError, match=r"no user make namespaces.*not permitted"):
        run_program("print(1)")
    require_sandbox.cache_clear()
