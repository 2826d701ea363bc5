"""Runs on rows that were packed beforehand: what the config may name, and keys that read no row."""

import json
import shutil
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from tests.experiments import tiny
from zaya_jax.data import packed
from zaya_jax.data.packed import PackedRows
from zaya_jax.data.packing import Preparation, prepare_rows
from zaya_jax.errors import UserError
from zaya_jax.runs.configuration import settings
from zaya_jax.runs.configuration.stage_keys import stage_keys
from zaya_jax.runs.stages import same_rows, texts_of
from zaya_jax.text.tokenizers import BPETokenizer


def config_of(folder: Path | str, **changes) -> ConfigDict:
    c = tiny.get_config("lean")
    c.data.mixture = (c.data.mixture[0], ConfigDict({"packed": str(folder), "weight": 0.3}))
    c.data.update(changes)
    return c


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    text = folder / "lines.jsonl"
    lines = [json.dumps({"text": f"line {i} " + "abc " * (i % 9)}) for i in range(400)]
    text.write_text("\n".join(lines))
    prepare_rows(Preparation((str(text),), "bytes", 48), folder / "rows", quiet=True)
    return folder / "rows"


def test_keys_are_the_rows_wherever_they_lie_and_no_row_is_read(rows, tmp_path, monkeypatch):
    moved = tmp_path / "moved"
    shutil.copytree(rows, moved)
    opened = []
    monkeypatch.setattr(packed.array_record_module, "ArrayRecordReader", lambda *args: opened.append(args))
    keys = [stage_keys(config, settings.read(config)) for config in (config_of(rows), config_of(moved))]
    assert keys[0] == keys[1] and not opened
    text = tmp_path / "other.jsonl"
    text.write_text((rows.parent / "lines.jsonl").read_text().replace("line 7 ", "line 8 "))
    monkeypatch.undo()
    prepare_rows(Preparation((str(text),), "bytes", 48), tmp_path / "other", quiet=True)
    other = config_of(tmp_path / "other")
    assert stage_keys(other, settings.read(other)) != keys[0]


def test_its_source_is_text_that_nobody_continues(rows, tmp_path):
    setup = settings.read(config_of(rows))
    source = setup.sources["packed"]
    assert source.counts_bytes and not source.is_text and not setup.texts
    assert len(source.open("validation", tmp_path, 1, 0)) > 0


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"row_length": 64}, "pretrain: .*holds rows of row_length 48, may be of the phase's 64"),
        ({"packing": "best_fit"}, "pretrain: .*holds rows of packing 'first_fit', may be of the phase's 'best_fit'"),
    ],
)
def test_rows_of_another_kind_are_one_line(rows, changes, line):
    with pytest.raises(UserError, match=line):
        settings.read(config_of(rows, **changes))


def test_rows_of_another_tokenizer_and_folders_that_are_none_are_one_line(rows, tmp_path):
    with pytest.raises(UserError, match=r"mixture\[1\].packed: .*manifest.json: no such file; may be a folder that"):
        settings.read(config_of(tmp_path))
    c = config_of(rows)
    BPETokenizer.train(["some words and some more words"] * 3, 270).save(tmp_path / "words.json")
    c.tokenizer = str(tmp_path / "words.json")
    c.model.vocab_size = 320
    with pytest.raises(UserError, match=r"holds rows of the tokenizer bytes, may be of .*words\.json"):
        settings.read(c)


def test_a_run_goes_on_with_the_rows_it_began_with(rows, tmp_path):
    same_rows(tmp_path, {"packed": PackedRows(rows, "train")})
    same_rows(tmp_path, {"packed": PackedRows(rows, "validation")})
    text = tmp_path / "other.jsonl"
    text.write_text((rows.parent / "lines.jsonl").read_text().replace("line 7 ", "line 8 "))
    prepare_rows(Preparation((str(text),), "bytes", 48), tmp_path / "other", quiet=True)
    with pytest.raises(UserError, match=r"packed: .*/other holds other rows than this run began with"):
        same_rows(tmp_path, {"packed": PackedRows(tmp_path / "other", "train")})


def test_a_run_that_is_left_to_train_goes_on_with_the_texts_it_began_with(tmp_path):
    text, workdir = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("one " * 400)
    c = tiny.get_config("lean")
    c.data.mixture = (c.data.mixture[0], ConfigDict({"text": [str(text)], "weight": 0.3}))
    setup = settings.read(c)
    folders = {name: workdir / "checkpoints" / name for name in setup.stages}
    same_rows(workdir, {}, texts_of(setup, workdir, folders))
    same_rows(workdir, {}, texts_of(setup, workdir, folders))
    text.write_text("two " * 400)
    with pytest.raises(UserError, match=r"^text: its texts are others than this run began with; put them back, or"):
        same_rows(workdir, {"text": []}, texts_of(setup, workdir, folders))
    shared = {name: tmp_path / "shared" / name for name in setup.stages}
    assert not texts_of(setup, workdir, shared)  # their names say what they are trained on


@pytest.mark.parametrize("text", ["[]", "{", '{"packed": []}', '{"other": [], "packed": 3}'])
def test_a_damaged_note_of_the_rows_is_one_line(rows, tmp_path, text):
    path = tmp_path / "data" / "packed.json"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(UserError, match=r"packed\.json: .*delete the file|holds other rows than this run began with"):
        same_rows(tmp_path, {"packed": PackedRows(rows, "train")})
    path.write_text('{"other": []}')
    same_rows(tmp_path, {"packed": PackedRows(rows, "train")})
