"""What a user's path means, and which files are read."""

import os
from pathlib import Path

import pytest

from zaya_jax.errors import UserError
from zaya_jax.files import blake2b_of, lines_of, make_folder, open_plain, read_object, read_text
from zaya_jax.paths import absolute, resolved


def test_a_path_is_absolute_without_tilde_and_dots(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "real" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "inner")
    monkeypatch.chdir(tmp_path / "real")
    assert absolute("~/a") == tmp_path / "a"
    assert absolute("../x/y") == tmp_path / "x" / "y"
    assert absolute(".") == tmp_path / "real"
    # the system follows the link before it goes up
    assert absolute(tmp_path / "link" / ".." / "new") == tmp_path / "real" / "new"
    # a link without ".." after it is kept: WORKDIR/checkpoints/STAGE may be one, and its WORKDIR is meant
    assert absolute(tmp_path / "link" / "x") == tmp_path / "link" / "x"
    assert absolute("é" * 127).name == "é" * 127
    for bad in ("~nobody_of_that_name/x", "a\0b/..", "a" * 256, "é" * 128, "a/" * 2048, "\ud800"):
        with pytest.raises(UserError, match="not a path"):
            absolute(bad)


def test_links_that_lead_in_a_circle_are_no_path_and_links_to_nothing_are(tmp_path):
    """On every Python: 3.13 leaves such links as they are."""
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nothing").symlink_to("missing")
    for path in (tmp_path / "loop", tmp_path / "loop" / "x"):
        with pytest.raises(UserError, match=rf"^{path}: not a path \(its links lead in a circle\)$"):
            resolved(path)
    with pytest.raises(UserError, match=r"loop/\.\.: not a path \(its links lead in a circle\)$"):
        absolute(tmp_path / "loop" / ".." / "x")
    assert absolute(tmp_path / "loop") == tmp_path / "loop"  # a name; whoever opens it is told
    assert resolved(tmp_path / "nothing") == tmp_path / "missing"


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_nothing_but_plain_files_is_read(tmp_path, kind):
    path = Path("/dev/zero") if kind == "device" else tmp_path / "x"
    if kind == "pipe":
        os.mkfifo(path)  # without a writer: opening it would wait for ever
    elif kind == "folder":
        path.mkdir()
    for read in (read_text, blake2b_of, lambda path: open_plain(path).__enter__()):
        with pytest.raises(UserError, match=f"{path}: (not a plain file|a folder)"):
            read(path)


def test_text_of_windows_and_of_no_encoding(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes("\ufeffä\r\nb\u2028c\n\n".encode())
    assert read_text(path) == "ä\r\nb\u2028c\n\n"
    assert lines_of(read_text(path)) == ["ä", "b\u2028c", ""]
    path.write_bytes("ä".encode("utf-16"))
    with pytest.raises(UserError, match=r"x\.txt: not UTF-8 \(UTF-16, may be saved as UTF-8\)"):
        read_text(path)
    path.write_bytes(b"ab\xff")
    with pytest.raises(UserError, match=r"x\.txt: not UTF-8 \(byte 2\)"):
        read_text(path)
    with pytest.raises(UserError, match="3 bytes, may be at most 2"):
        read_text(path, limit=2)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_text(tmp_path / "none")


@pytest.mark.parametrize("text", ["", "[", "null", "3", "[]", "[" * 100_000, '{"a": ' + "1" * 5000 + "}"])
def test_an_object_or_one_line(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"config\.json: (not valid JSON|got)") as caught:
        read_object(path)
    assert "\n" not in str(caught.value)
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_object(path) == {"a": 1}


@pytest.mark.parametrize("kind", ["a file", "below a file", "a pipe", "a device"])
def test_a_folder_that_cannot_be_made_names_its_flag(tmp_path, kind):
    (tmp_path / "x").touch()
    os.mkfifo(tmp_path / "pipe")
    places = {"a file": tmp_path / "x", "below a file": tmp_path / "x" / "y", "a pipe": tmp_path / "pipe"}
    path = places.get(kind, Path("/dev/null"))
    with pytest.raises(UserError, match=rf"^--output: got {path}: cannot be made as a folder \((File|Not a) "):
        make_folder(path, "--output")
    assert make_folder(tmp_path / "new" / "folder").is_dir() and make_folder(tmp_path / "new").is_dir()
