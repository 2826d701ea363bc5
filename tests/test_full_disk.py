"""Full and read-only disks: one line that names what was asked for, nothing half-written, and then the same call works.

Commands as a whole on disks that are really full were tried by hand; here is what mended them.
"""

import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import matplotlib.figure
import pytest
from tqdm import tqdm

from tests.helpers import no_file_above, random_variables, small_config
from zaya_jax.command_line import cli, terminal
from zaya_jax.command_line.completions import Completions
from zaya_jax.errors import UserError
from zaya_jax.files import WriteError, check_new, copy_file, make_folder, new_folder, write_text
from zaya_jax.interop import save_huggingface
from zaya_jax.interop.conversion.companions import copy_companions
from zaya_jax.interop.families import smollm2
from zaya_jax.reporting.paper.figures import Drawn, write
from zaya_jax.runs.carried import write_tokenizer
from zaya_jax.text.templates import ChatTemplate


def refused(named: Path, action) -> None:
    """One line that names a file of the folder that was asked for, and nothing is left."""
    with pytest.raises(WriteError) as caught:
        action()
    assert cli._line_of(caught.value) == f"{named}: cannot be written: File too large"
    assert not list(named.parent.parent.glob(f"*{named.parent.name}*"))


@pytest.mark.parametrize(("size", "name"), [(100, "config.json"), (3_000, "model.safetensors")])
def test_a_saved_model(tmp_path, size, name):
    config = small_config()
    variables = random_variables(config)
    with no_file_above(size):
        refused(tmp_path / "out" / name, lambda: save_huggingface(tmp_path / "out", config, variables))
    save_huggingface(tmp_path / "out", config, variables)


def test_files_that_go_along_with_a_model(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "tokenizer.json").write_text("x" * 1000)

    def save() -> None:
        with new_folder(tmp_path / "out") as partial:
            copy_companions(tmp_path / "source", partial)

    with no_file_above(500):
        refused(tmp_path / "out" / "tokenizer.json", save)
    save()
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "x" * 1000


def test_the_small_published_model(tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "find_gguf", lambda: tmp_path)
    monkeypatch.setattr(smollm2, "Gguf", lambda path: None)
    monkeypatch.setattr(smollm2, "folder_files", lambda gguf: {"config.json": "x" * 1000})
    with no_file_above(500):
        refused(tmp_path / "out" / "config.json", lambda: smollm2.write_smollm2(tmp_path / "out"))


def test_a_tokenizer_beside_a_checkpoint(tmp_path):
    template = cast(ChatTemplate, SimpleNamespace(source="x" * 20_000))
    with no_file_above(10_000), pytest.raises(WriteError) as refused:
        write_tokenizer(tmp_path / "a", "bytes", template)
    assert str(refused.value) == f"{tmp_path / 'a' / 'chat_template.jinja'}: cannot be written: File too large"
    assert not list((tmp_path / "a").iterdir())


def test_what_is_copied_and_cannot_be_read_is_named_by_itself(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"/folder: a folder, may be a plain file"):
        copy_file(tmp_path / "folder", tmp_path / "copy")
    assert not list(tmp_path.glob("copy*"))


def test_another_files_refusal_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"), new_folder(tmp_path / "out"):
        (tmp_path / "nowhere").read_text()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("before", [None, "old"])
def test_a_figure_and_its_caption_are_both_new_or_neither(tmp_path, before):
    names = ("a.png", "a.txt")
    if before:
        for name in names:
            (tmp_path / name).write_text(before)
    drawn = Drawn(matplotlib.figure.Figure((1, 1)), "x" * 200_000)
    with no_file_above(100_000), pytest.raises(WriteError, match=r"a\.txt: cannot be written"):
        write("a", drawn, tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == (
        dict.fromkeys(names, before) if before else {}
    )
    write("a", drawn, tmp_path)
    assert (tmp_path / "a.txt").stat().st_size == 200_001 and (tmp_path / "a.png").stat().st_size > 100


def test_a_read_only_disk_is_said_before_anything_is_computed(tmp_path, monkeypatch):
    (tmp_path / "there.jsonl").write_text("")
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and allowed(path, mode))
    for action in (
        lambda: make_folder(tmp_path, "--output"),
        lambda: check_new(tmp_path / "new" / "deep"),
        lambda: cli.check_output(tmp_path / "new.json"),
        lambda: Completions(tmp_path / "new.jsonl", ["a"], 1, {}),
        lambda: Completions(tmp_path / "there.jsonl", ["a"], 1, {}),
    ):
        with pytest.raises(UserError, match=rf"{tmp_path}.*: cannot be written to .*read-only disk"):
            action()
    assert [path.name for path in tmp_path.iterdir()] == ["there.jsonl"]
    monkeypatch.undo()
    for path in ("new.json", "there.jsonl"):
        cli.check_output(tmp_path / path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no device that is full")
@pytest.mark.parametrize("words", ["a line", "many lines\n" * 10_000])
def test_standard_output_on_a_full_disk_is_named(monkeypatch, capsys, words):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as end, terminal.quiet_without_reader():
            print(words)
        monkeypatch.undo()
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: standard output: cannot be written: No space left on device\n"


def test_a_files_refusal_is_not_taken_for_standard_outputs(tmp_path):
    with pytest.raises(WriteError), no_file_above(10), terminal.quiet_without_reader():
        write_text(tmp_path / "a", "x" * 100)


def test_an_error_has_a_line_of_its_own_after_a_progress_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", errors := io.StringIO())
    bar = tqdm(total=3, desc="steps", file=errors)
    bar.update()
    cli.complain(["a.jsonl: cannot be written"])
    bar.update()
    assert errors.getvalue().splitlines()[-1] == "error: a.jsonl: cannot be written"
    assert errors.getvalue().split("\n")[-2] == "error: a.jsonl: cannot be written"


def test_a_folder_that_takes_no_tokenizer_is_named_itself(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise OSError(30, "Read-only file system", str(tmp_path / ".tokenizer.1234"))

    monkeypatch.setattr("tempfile.mkdtemp", refuse)  # root, who runs tests in containers, may write to any folder
    with pytest.raises(WriteError) as refused:
        write_tokenizer(tmp_path, "bytes", None)
    assert str(refused.value) == f"{tmp_path}: cannot be written: Read-only file system"
