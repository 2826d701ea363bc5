"""A table in columns, as a terminal shows it."""

from collections.abc import Sequence


def columns(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A heading, a rule and a line each: numbers to the right, words to the left."""
    cells = [list(column) for column in zip(head, *body, strict=True)]
    right = [all(cell[:1].isdigit() or cell[:1] in "+-" for cell in column[1:] if cell) for column in cells]
    widths = [max(map(len, column)) for column in cells]

    def shown(line: Sequence[str]) -> str:
        parts = zip(line, widths, right, strict=True)
        return "  ".join(cell.rjust(width) if number else cell.ljust(width) for cell, width, number in parts).rstrip()

    return "\n".join([shown(head), "  ".join("-" * width for width in widths), *map(shown, body)])
