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
