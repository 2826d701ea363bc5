"""What the commands share."""

import ast
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.__main__ import commands as all_commands
from tests import commands
from zaya_jax import moved
from zaya_jax.checks import natural
from zaya_jax.command_line import cli, terminal
from zaya_jax.errors import UserError
from zaya_jax.text.tokenizers import OWN_BPE, load_tokenizer

ROOT = Path(__file__).parents[2]

COMMAND = """
import os
from absl import flags
from zaya_jax.command_line import cli
NAME = flags.DEFINE_string("name", None, "")
cli.run(lambda: print(NAME.value, os.environ.get("GLIBC_TUNABLES")), keep_memory=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_a_command_that_keeps_memory_starts_itself_anew_once_and_leaves_a_users_settings_alone(tmp_path):
    script = tmp_path / "command.py"
    script.write_text(COMMAND)
    clean = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"} | {"PYTHONPATH": "."}

    def words(environment: dict[str, str]) -> list[str]:
        command = [sys.executable, str(script), "--name=a b"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()

    kept = words(clean)
    assert kept[:2] == ["a", "b"] and "glibc.malloc.trim_threshold=4294967296" in kept[2].split(":")
    mine = "glibc.malloc.arena_max=1"
    assert words(clean | {"GLIBC_TUNABLES": mine}) == ["a", "b", mine]


BREAKS = """
import sys
import jax.numpy as jnp
from zaya_jax.command_line import cli
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
    (tmp_path / "breaking.py").write_text(BREAKS)
    done = commands.run("breaking", *arguments, folder=tmp_path)
    assert done.returncode == (2 if line else 1)
    assert ("Traceback (most recent call last)" in done.stderr) == traced
    assert done.stderr.splitlines()[-1] == line if line else "ValueError" in done.stderr or "TypeError" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["experiments.figures", "--help"], pytest.param(["experiments"], marks=pytest.mark.slow), [None, "--name=x"]],
)
def test_whoever_stops_reading_a_commands_output_sees_no_traceback(tmp_path, arguments):
    script = tmp_path / "command.py"
    script.write_text(COMMAND.replace("NAME.value, os", "'line ' * 100_000, os").replace(", keep_memory=True", ""))
    command = ["-m", *arguments] if arguments[0] else [str(script), *arguments[1:]]
    read, write = os.pipe()
    os.close(read)  # nobody reads, from the first byte on
    environment = os.environ | {"PYTHONPATH": "."}
    line = [sys.executable, *command]
    done = subprocess.run(line, env=environment, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (terminal.NOBODY_READS, "")


def test_a_path_that_is_no_text_is_printed_as_an_escape(tmp_path):
    script = tmp_path / "command.py"
    script.write_text(COMMAND.replace("NAME.value, os", "'é' + NAME.value, os").replace(", keep_memory=True", ""))
    for encoding, shown in (("utf-8", "é"), ("ascii", "\\xe9")):
        environment = os.environ | {"PYTHONPATH": ".", "PYTHONIOENCODING": encoding}
        line = [os.fsencode(each) for each in (sys.executable, script)] + [b"--name=a\xff"]
        done = subprocess.run(line, env=environment, capture_output=True, check=False)
        assert done.stdout.decode().startswith(f"{shown}a\\udcff "), done.stderr.decode()


def test_another_pipe_that_breaks_is_an_error_like_others(capfd):
    with pytest.raises(BrokenPipeError), terminal.quiet_without_reader():
        raise BrokenPipeError("of a child")


def test_the_package_lists_its_commands():
    done = subprocess.run([sys.executable, "-m", "experiments"], capture_output=True, text=True, check=True)
    listed = dict(line.strip().split(maxsplit=1) for line in done.stdout.splitlines()[2:])
    assert listed["sweep"] == "Runs a config under many overrides and gathers the results in one table."
    assert {"run", "generate", "evaluate"} <= set(listed) and not {"cli", "jobs", "settings"} & set(listed)


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nonsense"])
def test_figures_are_imported_under_a_backend_that_is_not_here(tmp_path, backend):
    (tmp_path / "sitecustomize.py").write_text(HIDES)  # as after an installation without extras
    environment = os.environ | {"MPLBACKEND": backend, "PYTHONPATH": f"{tmp_path}:."}
    draws = "from zaya_jax.reporting.plots import plots; plots.Figure().savefig('/dev/null', format='png')"
    subprocess.run([sys.executable, "-c", draws], env=environment, check=True)


HIDES = """
import importlib.metadata, importlib.abc, sys
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "matplotlib_inline":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hide())
real = importlib.metadata.entry_points
importlib.metadata.entry_points = lambda **k: [] if k.get("group") == "matplotlib.backend" else real(**k)
"""


def test_every_file_is_a_command_whose_examples_can_be_typed():
    """Two examples at least, of real flags and values; a file of the clone that one names is there."""
    folder = ROOT / "experiments"
    files = [path for path in [*folder.glob("*.py"), *folder.glob("bench/*.py")] if not path.name.startswith("_")]
    assert {".".join(p.relative_to(folder).with_suffix("").parts) for p in files} == set(all_commands())
    for path in files:
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        examples = re.findall(r"^    python -m experiments\.(.*(?:\\\n.*)*)", text, flags=re.MULTILINE)
        assert len(examples) >= 2, path
        for line in examples:
            assert not re.search(r"\[|\bDIR\b|\bFILE\b|\.\.\.", line), (path, line)
            for flag, named in re.findall(r"--(\w+)=((?:configs|results|tests)/[\w./]+)", line):
                assert flag in ("output", "workdir", "numbers") or (ROOT / named).exists(), (path, named)


def test_help_lists_flags_that_several_benchmarks_share():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.bench.step_cost", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "\nThe device:\n  --device: " in done.stdout


@pytest.mark.parametrize("command", ["inspect", "bench_convert"])
def test_a_command_runs_under_its_earlier_name(command):
    now = moved.COMMANDS[command]
    done = [commands.run(f"experiments.{name}", "--checkpoint=nowhere") for name in (command, now)]
    assert done[0].returncode == done[1].returncode == 2
    assert done[0].stderr.splitlines()[-1] == done[1].stderr.splitlines()[-1] != ""


@pytest.mark.parametrize("word", ["", "-1", "+1", "1.0", "x", "²", "٣", "9" * 20, "9" * 5000])
def test_a_word_that_is_no_number_of_ours_is_none(word):
    assert natural(word) is None
    with pytest.raises(UserError, match=r"--batch: got .{1,210}, may be integers in"):
        cli.integers("batch", ["1", word], 2**62)
    with pytest.raises(UserError, match=r"tokenizer: got .{1,210}, may be bpe:N"):
        load_tokenizer(f"{OWN_BPE}{word}")


def test_numbers_of_a_list_are_each_taken_once():
    assert cli.integers("batch", ["8", "1", "08"], 8) == [8, 1] and natural("0") == 0
