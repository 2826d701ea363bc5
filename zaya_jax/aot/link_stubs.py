"""Empty stand-ins for libraries that a shared object is linked to and this machine lacks, so that it can be loaded.

The ROCm plugin holds a whole compiler, but the loader also wants AMD's runtime libraries, which compiling never calls.
Where they are missing, `make` writes libraries of the same names that define the functions wanted of them: each returns
an error, so whoever does call one is told no. No code of AMD's is in them. Needs gcc and binutils.
"""

import hashlib
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

UNVERSIONED = ""
# The loader hands this one's result on before anything is computed.
HANDLES = {"__hipRegisterFatBinary"}


def missing(library: Path) -> list[str]:
    """Names of the libraries that `library` needs and the loader does not find, in link order."""
    return re.findall(r"^\s*(\S+) => not found$", _run("ldd", str(library)), re.MULTILINE)


def wanted(library: Path, absent: list[str]) -> dict[str, dict[str, list[str]]]:
    """Functions that `library` wants of absent libraries: {absent library: {symbol version: [names]}}.

    A symbol without a version may come from anywhere: all of these are put down to the first absent library. Versions
    that an absent library must have are there even where no function bears them.
    """
    files = _version_files(_run("readelf", "-V", "-W", str(library)))
    out: dict[str, dict[str, list[str]]] = {name: defaultdict(list) for name in absent}
    for file, version in files.values():
        if file in out:
            out[file][version] = []
    for line in _run("readelf", "--dyn-syms", "-W", str(library)).splitlines():
        match = re.match(r"\s*\d+: \S+\s+\d+ FUNC\s+GLOBAL\s+DEFAULT\s+UND (\w+)(?:@\S+ \((\d+)\))?", line)
        if match:
            file, version = files[int(match[2])] if match[2] else (absent[0], UNVERSIONED)
            if file in out:
                out[file][version].append(match[1])
    return {name: dict(versions) for name, versions in out.items()}


def make(library: Path, cache: Path) -> Path | None:
    """A folder of stand-ins for what `library` lacks here, for LD_LIBRARY_PATH; None if it lacks nothing.

    Made once for each library file (by size and name) under `cache`, and whole or not at all.

    Raises:
      FileNotFoundError: no gcc or no readelf (OSError: `ldd` cannot read the file).
    """
    absent = missing(library)
    if not absent:
        return None
    for tool in ("gcc", "readelf"):
        if shutil.which(tool) is None:
            raise FileNotFoundError(f"{tool}: not found, may be Debian's gcc and binutils; they make link stubs")
    functions = wanted(library, absent)
    key = hashlib.blake2b(repr(functions).encode(), digest_size=6).hexdigest()
    folder = cache / f"{library.stem}-{key}"
    if folder.is_dir():
        return folder
    partial = cache / f"{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, versions in functions.items():
        source, script = partial / f"{name}.c", partial / f"{name}.map"
        source.write_text(_source(name, [f for names in versions.values() for f in names]))
        versioned = {version: names for version, names in versions.items() if version != UNVERSIONED}
        script.write_text("".join(_version(version, names) for version, names in versioned.items()))
        options = [f"-Wl,--version-script={script}"] if versioned else []
        _run(
            "gcc", "-w", "-shared", "-fPIC", "-fno-builtin", str(source), "-o", str(partial / name),
            f"-Wl,-soname,{name}", *options,
        )  # fmt: skip
        source.unlink()
        script.unlink()
    partial.rename(folder)
    return folder


def _source(library: str, functions: list[str]) -> str:
    lines = ["static void *handle;"]
    for name in functions:
        if name in HANDLES:
            lines.append(f"void **{name}() {{ return &handle; }}")
        elif re.search("string|ErrorName", name, re.IGNORECASE):  # what turns a status into text
            lines.append(f'const char *{name}() {{ return "{library} is not on this machine"; }}')
        else:
            lines.append(f"int {name}() {{ return 1; }}")  # no library's code for success
    return "\n".join(lines) + "\n"


def _version(version: str, names: list[str]) -> str:
    return f"{version} {{ {'global: ' + '; '.join(names) + ';' if names else ''} }};\n"


def _version_files(text: str) -> dict[int, tuple[str, str]]:
    """`readelf -V` -> {version index: (library, version)} of what is needed."""
    files: dict[int, tuple[str, str]] = {}
    file = ""
    for line in text.partition(".gnu.version_r")[2].splitlines():
        if match := re.search(r"Version: \d+  File: (\S+)", line):
            file = match[1]
        elif match := re.search(r"Name: (\S+)  Flags: .*Version: (\d+)", line):
            files[int(match[2])] = (file, match[1])
    return files


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command[:2])}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    return done.stdout
