"""Lists the commands: python -m experiments."""

import ast
from pathlib import Path

from zaya_jax.command_line.terminal import quiet_without_reader


def commands() -> dict[str, str]:
    """The first line of each command's docstring, by the command's name; nothing is imported."""
    here, found = Path(__file__).parent, {}
    for path in [*sorted(here.glob("*.py")), *sorted(here.glob("bench/*.py"))]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        runs = any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body)
        if runs and not path.name.startswith("_"):
            name = ".".join(path.relative_to(here).with_suffix("").parts)
            found[name] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


if __name__ == "__main__":
    with quiet_without_reader():
        print("python -m experiments.COMMAND --help says more of each:\n")
        listed = commands()
        for name, line in listed.items():
            print(f"  {name:{max(map(len, listed))}}  {line}")
