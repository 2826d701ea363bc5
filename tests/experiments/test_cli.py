"""What the doors share."""

import os
import platform
import subprocess
import sys

import pytest

DOOR = """
import os
from absl import flags
from experiments import cli
NAME = flags.DEFINE_string("name", None, "")
cli.run(lambda: print(NAME.value, os.environ.get("GLIBC_TUNABLES")), keep_memory=True)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_a_door_that_keeps_memory_starts_itself_anew_once_and_leaves_a_users_settings_alone(tmp_path):
    door = tmp_path / "door.py"
    door.write_text(DOOR)
    clean = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"} | {"PYTHONPATH": "."}

    def words(environment: dict[str, str]) -> list[str]:
        command = [sys.executable, str(door), "--name=a b"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()

    kept = words(clean)
    assert kept[:2] == ["a", "b"] and "glibc.malloc.trim_threshold=4294967296" in kept[2].split(":")
    mine = "glibc.malloc.arena_max=1"
    assert words(clean | {"GLIBC_TUNABLES": mine}) == ["a", "b", mine]


BREAKS = """
import sys
import jax.numpy as jnp
from experiments import cli
from zaya_jax.errors import Diverged, UserError

def main():
    kind = sys.argv.pop()
    if kind == "jax":
        jnp.zeros(2) + jnp.zeros(3)
    raise {"user": UserError, "diverged": Diverged, "system": FileNotFoundError, "ours": ValueError}[kind]("field: got 1,\\n may be 2")

kind = sys.argv[-1]
sys.argv.remove(kind)
cli.run(lambda: (sys.argv.append(kind), main()))
"""  # noqa: E501


@pytest.mark.parametrize(
    ("arguments", "line", "traced"),
    [
        (["user"], "error: field: got 1, may be 2", False),
        (["diverged"], "error: field: got 1, may be 2", False),
        (["system"], "error: field: got 1, may be 2", False),
        (["--traceback", "user"], "error: field: got 1, may be 2", True),
        (["ours"], "", True),
        (["jax"], "", True),
    ],
)
def test_a_users_mistake_is_one_line_and_any_other_error_keeps_its_traceback(tmp_path, arguments, line, traced):
    command = tmp_path / "command.py"
    command.write_text(BREAKS)
    environment = os.environ | {"PYTHONPATH": "."}
    done = subprocess.run(
        [sys.executable, str(command), *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == (2 if line else 1)
    assert ("Traceback (most recent call last)" in done.stderr) == traced
    assert done.stderr.splitlines()[-1] == line if line else "ValueError" in done.stderr or "TypeError" in done.stderr
