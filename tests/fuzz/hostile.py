"""Strategies of hostile input: odd values, and files that were whole until something happened to them."""

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

DEEP = "[" * 100_000  # nested further than any reader recurses
ODD_TEXTS = (
    "", " ", "0", "-1", "1e400", "nan", "inf", "None", "null", "true", "[]", "{}", "()", "\0", "\ud800", "../../x", "/",
    "~", "~nobody/x", "a" * 5_000, "é\u200b\ufeff", "%s{0}{{", "=", ",", "--", "1,2", "1e9", "10**10", "99999999999999",
)  # fmt: skip
odd_texts = st.sampled_from(ODD_TEXTS) | st.text(max_size=12)
odd_values = (
    st.sampled_from(
        [
            None,
            True,
            False,
            0,
            -1,
            1,
            2**31,
            2**63,
            -(2**63),
            10**30,
            1e308,
            5e-324,
            float("nan"),
            float("inf"),
            [],
            {},
            [[]],
            "",
            "x",
            [None],
            {"": 0},
        ]
    )
    | st.integers()
    | st.floats()
    | odd_texts
    | st.lists(st.integers(-3, 3), max_size=3)
)
literals = odd_values.map(lambda value: value if isinstance(value, str) else repr(value))


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes that were cut, flipped, doubled, overwritten or emptied; or, if they are JSON, JSON with an odd value."""
    if draw(st.booleans()):
        changed = draw(other_json(data))
        if changed is not None:
            return changed
    kind = draw(st.sampled_from(("cut", "flip", "double", "insert", "empty", "deep", "binary", "bom")))
    at = draw(st.integers(0, max(0, len(data) - 1)))
    more = draw(st.binary(min_size=1, max_size=8))
    return {
        "cut": lambda: data[:at],
        "flip": lambda: (
            data[:at] + bytes(b ^ m for b, m in zip(data[at:], more, strict=False)) + data[at + len(more) :]
        ),
        "double": lambda: data + data[at:],
        "insert": lambda: data[:at] + more + data[at:],
        "empty": lambda: b"",
        "deep": lambda: DEEP.encode(),
        "binary": lambda: more * 9,
        "bom": lambda: b"\xef\xbb\xbf" + data,
    }[kind]()


@st.composite
def other_json(draw: st.DrawFn, data: bytes) -> bytes | None:
    """JSON (or one line of JSON lines) in which one value is odd, gone or under another name; None: it is not JSON."""
    lines = data.split(b"\n")
    try:
        value, line = json.loads(data), None
    except (ValueError, RecursionError):
        line = draw(st.integers(0, len(lines) - 1))
        try:
            value = json.loads(lines[line])
        except (ValueError, RecursionError):
            return None
    changed = json.dumps(_change(draw, value)).encode()
    return changed if line is None else b"\n".join([*lines[:line], changed, *lines[line + 1 :]])


def _change(draw: st.DrawFn, value: Any) -> Any:
    """One place of a tree of JSON changed."""
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(value)))
        how = draw(st.sampled_from(("into", "into", "into", "drop", "rename", "add")))
        rest = {k: v for k, v in value.items() if k != key}
        if how == "into":
            return value | {key: _change(draw, value[key])}
        return rest if how == "drop" else (value if how == "add" else rest) | {draw(odd_texts): value[key]}
    if isinstance(value, list) and value and draw(st.integers(0, 9)):
        at = draw(st.integers(0, min(len(value), 50) - 1))
        return [*value[:at], _change(draw, value[at]), *value[at + 1 :]]
    return draw(odd_values)


@st.composite
def damaged_folder(draw: st.DrawFn, files: dict[str, bytes]) -> tuple[dict[str, bytes], str]:
    """(files of a folder of which one or two are damaged or gone, which ones)."""
    names = draw(st.lists(st.sampled_from(sorted(files)), min_size=1, max_size=2, unique=True))
    changed = dict(files)
    for name in names:
        if draw(st.integers(0, 5)):
            changed[name] = draw(damaged(files[name]))
        else:
            del changed[name]
    return changed, " ".join(names)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    folder.mkdir(exist_ok=True, parents=True)
    return folder
