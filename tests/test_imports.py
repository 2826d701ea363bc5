"""The direction of imports: a package imports only from those before it in the list that `zaya_jax` itself gives."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import zaya_jax
from zaya_jax import moved

ROOT = Path(__file__).parents[1]
# Files beside the packages, which every one of them may import; each imports only those before it.
BASICS = ("errors", "checks", "paths", "files", "timing", "compilation_cache", "memory", "registry", "moved")
ORDER = tuple(re.findall(r"^\* (\w+): ", zaya_jax.__doc__ or "", re.MULTILINE))[::-1]  # from the bottom


def test_the_list_is_the_folder():
    here = {path.parent.name for path in (ROOT / "zaya_jax").glob("*/__init__.py")}
    assert set(ORDER) == here
    files = {path.stem for path in (ROOT / "zaya_jax").glob("*.py")} - {"__init__"}
    assert set(BASICS) == files


def test_imports_go_down_only():
    order = BASICS + ORDER
    wrong = []
    for path, module in _imports(ROOT / "zaya_jax"):
        parts = path.relative_to(ROOT / "zaya_jax").with_suffix("").parts
        mine, other = parts[0], (module.split(".") + [""])[1]
        if mine == "__init__":
            continue  # of zaya_jax: what a user needs, from everywhere
        if not module.startswith("zaya_jax.") or other not in order or order.index(other) > order.index(mine):
            wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong


def test_only_commands_import_commands():
    """Libraries live in zaya_jax; experiments/ and configs/ are not installed."""
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path, module in _imports(ROOT / "zaya_jax")
        if module.split(".")[0] in ("experiments", "configs", "tests")
    ]
    assert not wrong


def test_every_package_says_what_it_is_for_and_what_it_imports():
    for init in (ROOT / "zaya_jax").rglob("__init__.py"):
        said = ast.get_docstring(ast.parse(init.read_text())) or ""
        assert (said and "mport" in said) or "Standard library only" in said, init


def test_no_file_shadows_the_standard_library():
    """`python experiments/run.py` puts experiments/ first on the path: its files are then top-level modules."""
    shadows = {path.stem for path in (ROOT / "experiments").glob("*.py")} & set(sys.stdlib_module_names)
    assert not shadows - {"__init__", "__main__"}


def _imports(folder: Path) -> Iterator[tuple[Path, str]]:
    """Every module of this repository that a file imports, also inside functions."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                names = whole if node.module == "zaya_jax" else [node.module]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            yield from ((path, name) for name in names if name.split(".")[0] in _ours())


def _ours() -> set[str]:
    return {"zaya_jax", "experiments", "configs", "tests"}


def test_what_has_moved_is_found_under_its_old_name():
    """By every name that 0.1.0's documentation gave; the module is one, not two."""
    names = [f"zaya_jax.{name}" for name in moved.MOVED]
    code = "; ".join(
        f"import {name}; assert sys.modules['{name}'] is sys.modules[sys.modules['{name}'].__spec__.name]"
        for name in names
    )
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", f"import sys; {code}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "zaya_jax.data.tokenizers is now zaya_jax.text.tokenizers" in done.stderr
