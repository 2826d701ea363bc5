"""Folders and files that cannot be, given to commands: one line names the flag or the path, and nothing is written."""

import pytest

from tests import commands
from tests.fuzz.harness import contents
from zaya_jax.command_line import cli
from zaya_jax.files import WriteError

SWEEP = "--config=tests/experiments/tiny_sweep.py"
RUN = "--config=tests/experiments/tiny.py"
LONG = "a" * 300


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["figures", "speedup", "--output=FILE"], "--output: got FILE: cannot be made as a folder (File exists)"),
        (["figures", "speedup", "--output="], "--output: missing, may be a folder"),
        (["figures", "speedup", f"--output={LONG}"], f"{LONG[:80]!r}: not a path (names may be at most 255 bytes"),
        (["sweep", SWEEP, "--workdir=FILE"], "--workdir: got FILE: cannot be made as a folder (File exists)"),
        (["sweep", SWEEP, "--workdir=FILE/x"], "--workdir: got FILE/x: cannot be made as a folder (Not a directory)"),
        (["run", RUN, "--workdir=FILE/x"], "--workdir: got FILE/x: cannot be made as a folder (Not a directory)"),
        (["inspect_checkpoint", f"--checkpoint={LONG}"], f"{LONG[:80]!r}: not a path"),
        (["generate", f"--checkpoint={LONG}", "--prompt=a"], f"{LONG[:80]!r}: not a path"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_place_that_cannot_be_is_named(arguments, line, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    name, *rest = [argument.replace("FILE", str(file)) for argument in arguments]
    ended = commands.run(f"experiments.{name}", *rest)
    assert ended.returncode == 2 and f"error: {line.replace('FILE', str(file))}" in ended.stderr
    assert contents(tmp_path) == {"file": b"mine"}


def test_what_the_system_refuses_is_said_in_words():
    refused = FileExistsError(17, "File exists", "a/b")
    assert str(refused).startswith("[Errno 17]") and cli._line_of(refused) == "a/b: File exists"
    assert cli._line_of(FileNotFoundError("a: no such file")) == "a: no such file"
    assert cli._line_of(WriteError("a", "No space left on device", 28)) == (
        "a: cannot be written: No space left on device"
    )
