"""docs/api.md: every public name with the first sentence of its docstring."""

import importlib
import inspect
import re
from types import ModuleType
from typing import Any

# Each with what it holds for a reader; a package's own names follow those that stand in zaya_jax itself.
MODULES = {
    "zaya_jax": "What a user needs",
    "zaya_jax.architecture": "The model and its layouts",
    "zaya_jax.sampling": "Sampling and its planning",
    "zaya_jax.tasks": "Tasks",
    "zaya_jax.interop": "Checkpoints",
    "zaya_jax.parallel": "Devices and processes",
    "zaya_jax.costs": "Costs",
    "zaya_jax.reporting": "Result files",
}


def api_tables() -> str:
    """A heading and a Markdown table for each of MODULES; a name stands in one table."""
    parts, told = [], set()
    for name, about in MODULES.items():
        module = importlib.import_module(name)
        mine = [public for public in sorted(module.__all__, key=str.lower) if public not in told]
        told.update(mine)
        lines = [f"| `{public}` | {describe(module, public)} |" for public in mine]
        parts.append("\n".join([f"## {about}: `{name}`\n", "| name | what it is |", "|---|---|", *lines]))
    return "\n\n".join(parts)


def describe(module: ModuleType, name: str) -> str:
    """One line for a public name: the first sentence of its docstring; of a constant, its value and comment."""
    value = getattr(module, name)
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return _constant(module, name, value)
    text = inspect.getdoc(value) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[.]) (?=[A-Z`\"'(])", paragraph)[0].rstrip(":;").replace("|", "\\|")


def _constant(module: ModuleType, name: str, value: Any) -> str:
    home = next((m for m in vars(module).values() if isinstance(m, ModuleType) and name in vars(m)), module)
    comment = re.search(rf"^{name}\b[^=\n]*= .*?  # (.*)$", inspect.getsource(home), flags=re.MULTILINE)
    about = comment[1] if comment else f"A {type(value).__name__}."  # what it holds may grow
    return f"{value}: {about}" if isinstance(value, int) else about
