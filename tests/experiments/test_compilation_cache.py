"""Compiled programs are kept between processes, and nothing about their folder can break a run."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from zaya_jax import compilation_cache

ROOT = Path(__file__).parents[2]
# Compiles two programs and prints the sum, how many came out of the cache, and the folder.
PROGRAM = """
import sys
import jax, jax.numpy as jnp
from zaya_jax import compilation_cache
compilation_cache.start(sys.argv[1] if len(sys.argv) > 1 else None)
print(float(jax.jit(lambda x: (jnp.tanh(x) * 2).sum())(jnp.ones(64))), compilation_cache.loaded())
print(jax.config.jax_compilation_cache_dir)
"""
COMMAND = """
import jax, jax.numpy as jnp
from zaya_jax import compilation_cache
from zaya_jax.command_line import cli
def main():
    jax.jit(lambda x: x + 1)(jnp.ones(3))
    print(compilation_cache.loaded(), jax.config.jax_compilation_cache_dir, jax.config.jax_enable_compilation_cache)
cli.run(main, keep_programs=%s)
"""


def start(*args: str, program: str = PROGRAM, **environ: str) -> subprocess.Popen:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    return subprocess.Popen(
        [sys.executable, "-c", program, *args], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=clean | {"JAX_PLATFORMS": "cpu"} | environ,
    )  # fmt: skip


def finish(process: subprocess.Popen) -> tuple[list[str], str]:
    """(words, stderr)"""
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output.split(), errors


def entries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*-cache"))


def test_the_next_process_compiles_nothing_and_a_damaged_entry_is_written_again(tmp_path):
    place = {"XDG_CACHE_HOME": str(tmp_path)}
    # two at once
    for process in [start(**place), start(**place)]:
        (value, *_, folder), errors = finish(process)
        assert not errors and Path(folder) == tmp_path / "zaya_jax" / "xla" / compilation_cache.machine()
    assert (tmp_path / "zaya_jax" / "xla").stat().st_mode & 0o077 == 0
    kept = {path: path.read_bytes() for path in entries(tmp_path)}
    assert len(kept) >= 2
    assert finish(start(**place)) == ([value, str(len(kept)), folder], "")
    for path, content in kept.items():  # as a process leaves it that is killed while it writes
        path.write_bytes(content[: len(content) // 2])
    (again, loaded, _), errors = finish(start(**place))
    assert (again, loaded) == (value, "0")
    (line,) = errors.splitlines()
    assert line.startswith("warning: a damaged program was removed from ")
    assert finish(start(**place)) == ([value, str(len(kept)), folder], "")


@pytest.mark.slow
def test_a_users_folder_wins_and_an_empty_name_keeps_nothing(tmp_path):
    place = {"XDG_CACHE_HOME": str(tmp_path / "home")}
    mine, off = (
        {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / name), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        for name in ("mine", "off")
    )
    processes = [start(**place, **mine), start("", **place), start("", **place, **off), start(str(tmp_path / "d"))]
    for process, folder in zip(processes, [str(tmp_path / "mine"), "None", None, f"{tmp_path}/d/"], strict=True):
        (*_, used), errors = finish(process)
        assert not errors and (folder is None or used.startswith(folder))
    assert not (tmp_path / "home").exists() and not entries(tmp_path / "off")
    assert entries(tmp_path / "mine") and entries(tmp_path / "d")


def test_a_folder_that_cannot_be_written_is_one_line_and_the_command_continues(tmp_path):
    (tmp_path / "file").touch()
    process = start(XDG_CACHE_HOME=str(tmp_path / "file"))
    (_, loaded, folder), errors = finish(process)
    assert (loaded, folder) == ("0", "None")
    (line,) = errors.splitlines()
    assert line.startswith("warning: compiled programs are not kept: ") and "--compilation_cache=DIR" in line


@pytest.mark.slow
def test_a_command_has_the_flag_and_one_that_measures_compiling_keeps_nothing(tmp_path):
    flag = f"--compilation_cache={tmp_path}"
    processes = [start(flag, program=COMMAND % keeps, XDG_CACHE_HOME=str(tmp_path / "h")) for keeps in (True, False)]
    (_, folder, on), _ = finish(processes[0])
    assert (folder, on) == (str(tmp_path / compilation_cache.machine()), "True")
    assert finish(processes[1])[0] == ["0", "None", "False"]


def test_the_oldest_go_when_there_is_too_much(tmp_path):
    (tmp_path / "machine").mkdir()
    for age in range(10):
        path = tmp_path / "machine" / f"{age}-cache"
        path.write_bytes(bytes(100))
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    compilation_cache.prune(tmp_path, limit=1_000)
    assert len(entries(tmp_path)) == 10
    compilation_cache.prune(tmp_path, limit=900)
    assert [path.name for path in entries(tmp_path)] == [f"{age}-cache" for age in range(6)]


def test_other_processors_and_thread_counts_have_other_folders(monkeypatch):
    monkeypatch.delenv("NPROC", raising=False)
    names = {compilation_cache.machine()}
    for threads in ("1", "7", "64"):
        monkeypatch.setenv("NPROC", threads)
        names.add(compilation_cache.machine())
    assert len(names) >= 3
    monkeypatch.setattr(Path, "read_text", lambda path: "flags\t: fpu another\n")
    assert compilation_cache.machine() not in names


def test_a_full_disk_is_one_line_whatever_is_compiled(tmp_path, monkeypatch, capsys):
    others = []
    monkeypatch.setattr(warnings, "showwarning", lambda *args: others.append(str(args[0])))  # put back in the end
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        compilation_cache._mend(tmp_path)
        (tmp_path / "jit_x-1-cache").write_bytes(b"cut short")
        for program in ("jit_x", "jit_y"):
            text = f"Error writing persistent compilation cache entry for '{program}': OSError: No space left on device"
            warnings.warn(text, stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert not entries(tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"warning: programs cannot be kept in {tmp_path}: OSError: No space left on device"
    assert others == ["something else"]
