"""Stand-ins for missing libraries, made and loaded for real; and what a target's process is given."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from zaya_jax.aot import link_stubs, targets

if shutil.which("gcc") is None or shutil.which("readelf") is None:
    pytest.skip("link stubs need gcc and readelf", allow_module_level=True)

VENDOR = """
int vendorRun(void) { return 42; }
int vendorPlain(void) { return 43; }
const char *vendorGetErrorString(int code) { return "the real one"; }
"""
USER = """
int vendorRun(void); int vendorPlain(void); const char *vendorGetErrorString(int);
int run(void) { return vendorRun(); }
int plain(void) { return vendorPlain(); }
const char *text(void) { return vendorGetErrorString(1); }
"""
ASK = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.text.restype = ctypes.c_char_p
print(library.run(), library.plain(), library.text())
"""


def gcc(*arguments: str) -> None:
    subprocess.run(["gcc", "-shared", "-fPIC", *arguments], check=True)


@pytest.fixture
def library(tmp_path) -> Path:
    """A library linked to two others that are gone, one of which has symbol versions."""
    folder = tmp_path / "vendor"
    folder.mkdir()
    (folder / "versions").write_text("VENDOR_1 { global: vendorRun; vendorGetErrorString; };\n")
    (folder / "vendor.c").write_text(VENDOR.replace("int vendorPlain(void) { return 43; }", ""))
    (folder / "plain.c").write_text("int vendorPlain(void) { return 43; }")
    (folder / "user.c").write_text(USER)
    gcc(str(folder / "vendor.c"), "-o", str(folder / "libvendor.so.7"), "-Wl,-soname,libvendor.so.7",
        f"-Wl,--version-script={folder}/versions")  # fmt: skip
    gcc(str(folder / "plain.c"), "-o", str(folder / "libplain.so.1"), "-Wl,-soname,libplain.so.1")
    path = tmp_path / "libuser.so"
    gcc(str(folder / "user.c"), "-o", str(path), str(folder / "libvendor.so.7"), str(folder / "libplain.so.1"))
    assert ask(path, folder) == "42 43 b'the real one'"
    shutil.rmtree(folder)
    return path


def ask(library: Path, folder: Path | None) -> str:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder or "")}
    done = subprocess.run([sys.executable, "-c", ASK, str(library)], env=environment, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def test_stand_ins_let_a_library_load_and_say_no(library, tmp_path):
    assert "cannot open shared object" in ask(library, None)
    assert sorted(link_stubs.missing(library)) == ["libplain.so.1", "libvendor.so.7"]
    wanted = link_stubs.wanted(library, ["libvendor.so.7", "libplain.so.1"])
    assert {k: {v: sorted(n) for v, n in d.items()} for k, d in wanted.items()} == {
        "libvendor.so.7": {"VENDOR_1": ["vendorGetErrorString", "vendorRun"], "": ["vendorPlain"]},
        "libplain.so.1": {},
    }
    folder = link_stubs.make(library, tmp_path / "cache")
    assert folder is not None
    assert ask(library, folder) in (
        "1 1 b'libvendor.so.7 is not on this machine'", "1 1 b'libplain.so.1 is not on this machine'"
    )  # fmt: skip
    assert sorted(path.name for path in folder.iterdir()) == ["libplain.so.1", "libvendor.so.7"]
    made = [path.stat().st_mtime_ns for path in folder.iterdir()]
    assert link_stubs.make(library, tmp_path / "cache") == folder
    assert made == [path.stat().st_mtime_ns for path in folder.iterdir()]  # made once


def test_a_library_that_lacks_nothing_gets_nothing(tmp_path):
    (tmp_path / "own.c").write_text("int own(void) { return 1; }")
    gcc(str(tmp_path / "own.c"), "-o", str(tmp_path / "libown.so"))
    assert link_stubs.make(tmp_path / "libown.so", tmp_path / "cache") is None
    assert not (tmp_path / "cache").exists()


def test_no_compiler_is_one_line(library, tmp_path, monkeypatch):
    which = shutil.which
    monkeypatch.setattr(link_stubs.shutil, "which", lambda tool: None if tool == "gcc" else which(tool))
    with pytest.raises(FileNotFoundError, match=r"^gcc: not found, may be Debian's gcc"):
        link_stubs.make(library, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_missing_plugin_is_one_line_with_the_remedy():
    target = dataclasses.replace(targets.TARGETS["mi300x"], plugin="jax_plugins.that_nobody_has")
    with pytest.raises(
        FileNotFoundError, match=r"^MI300X: .*pip install jax-rocm7-plugin==[\d.]+ jax-rocm7-pjrt==[\d.]+$"
    ):
        targets.plugin_library(target)


@pytest.mark.parametrize("gpu", [False, True])
def test_what_a_process_that_compiles_is_given(library, tmp_path, monkeypatch, gpu):
    package = tmp_path / "plugin_of_the_tests"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(library, package / "libuser.so")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(targets, "AMD_GPUS", (str(tmp_path) if gpu else str(tmp_path / "none"),))
    target = dataclasses.replace(targets.TARGETS["mi300x"], plugin=package.name, library="libuser.so")
    given = targets.environment(
        target, tmp_path / "cache", {"HOME": "/h", "LD_LIBRARY_PATH": "/mine", "XLA_FLAGS": "--x"}
    )
    stubs, _, mine = given["LD_LIBRARY_PATH"].partition(os.pathsep)
    assert mine == "/mine" and (Path(stubs) / "libvendor.so.7").is_file()
    # where there is an AMD GPU the plugin makes itself known, and twice is an error
    assert given["PJRT_NAMES_AND_LIBRARY_PATHS"] == ("" if gpu else f"rocm:{package / 'libuser.so'}")
    assert given["HOME"] == "/h" and given["JAX_PLATFORMS"] == "cpu"
    assert given["XLA_FLAGS"].endswith(" --x") and "triton_gemm=false" in given["XLA_FLAGS"]
