"""Rows that were packed once: they hold what reading texts would, whoever makes and whoever reads them."""

import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zaya_jax.data import documents, packed, packing, tfrecord
from zaya_jax.data.builders import LocalText, prepare_text
from zaya_jax.data.packed import PackedRows, decode_row, encode_row, verify
from zaya_jax.data.packing import Preparation, prepare_rows
from zaya_jax.data.pipeline import eval_batches, make_train_iterator, pack
from zaya_jax.errors import UserError
from zaya_jax.tasks import TaskSource, make_task
from zaya_jax.text.tokenizers import ByteTokenizer

TOKENIZER, ROW = ByteTokenizer(), 48
ROOT = Path(__file__).parents[2]


def write_corpus(folder: Path, count: int = 150) -> Path:
    """Text files and .jsonl files, some blank, some equal."""
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:03}.txt").write_text(f"{i % 140}: " + "ab cd " * (i % 140 * 7919 % 23))
    lines = [json.dumps({"text": f"line {i} " + "xyz" * (i % 17)}) for i in range(200)]
    (folder / "more.jsonl").write_text("\n".join([*lines, json.dumps({"text": " "}), lines[3]]) + "\n")
    return folder


def options(corpus: Path, **changes) -> Preparation:
    return Preparation(**{"paths": (str(corpus),), "tokenizer": "bytes", "row_length": ROW} | changes)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "texts")


@pytest.fixture(scope="module")
def rows(corpus, tmp_path_factory) -> Path:
    """The corpus in units of a few hundred bytes."""
    output = tmp_path_factory.mktemp("rows") / "rows"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "UNIT_BYTES", 1000)
        prepare_rows(options(corpus), output, quiet=True)
    return output


def texts_of(source: PackedRows) -> Counter:
    """The documents' beginnings, which stand first in a piece, by text."""
    found: Counter = Counter()
    for number in range(len(source)):
        row = source.read(number, TOKENIZER.pad_id)
        for document in range(row["document"].max() + 1):
            found[TOKENIZER.decode(row["tokens"][row["document"] == document])] += 1
    return found


def test_every_split_holds_the_documents_that_reading_the_texts_gives(corpus, rows, tmp_path):
    for split in ("train", "validation", "test"):
        source = prepare_text([corpus], tmp_path, split)
        expected: Counter = Counter()
        for i in range(len(source)):
            ids = TOKENIZER.encode(source[i]["text"]) + [TOKENIZER.eos_id]
            expected.update(TOKENIZER.decode(ids[at : at + ROW]) for at in range(0, len(ids), ROW))
        assert texts_of(PackedRows(rows, split)) == expected
    manifest = packed.read_manifest(rows)
    assert len(manifest["shards"]) > 10 and manifest["dropped"]["duplicate or blank"] == 10 + 2
    assert sum(c["documents"] for c in manifest["counts"].values()) == 140 + 200
    assert verify(rows) == len(manifest["shards"])


@given(st.lists(st.tuples(st.integers(1, 30), st.booleans()), min_size=1, max_size=12), st.sampled_from([2, 4]))
def test_a_record_is_its_row(lengths, token_bytes):
    made = [(np.arange(n) % 256, [1] * n if all_ else [0] * (n // 2) + [1] * (n - n // 2)) for n, all_ in lengths]
    rows = pack(made, 40, 7)
    for number in range(len(rows["tokens"])):
        row = {name: value[number] for name, value in rows.items()}
        read = decode_row(encode_row(row, token_bytes), token_bytes, 40, 7)
        for name, value in row.items():
            assert read[name].dtype == np.int32
            np.testing.assert_array_equal(read[name], value)


def mixture(rows: Path):
    return [(PackedRows(rows, "train"), 3.0), (TaskSource(make_task("addition"), "train", 0, 200), 1.0)]


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_that_read_their_own_rows_have_one_processs_batches_and_resume_each_others_state(rows, processes):
    whole = make_train_iterator(mixture(rows), TOKENIZER, ROW, 8, seed=5)
    batches = list(islice(whole, 12))
    whole = make_train_iterator(mixture(rows), TOKENIZER, ROW, 8, seed=5)
    list(islice(whole, 4))
    saved = json.loads(json.dumps(whole.get_state()))
    states = []
    for process in range(processes):
        own = range(process, 8, processes)
        sources, read = mixture(rows), []
        source = sources[0][0]
        source.read = lambda *args, read=read, real=source.read: read.append(args[0]) or real(*args)
        iterator = make_train_iterator(sources, TOKENIZER, ROW, 8, seed=5, rows=own)
        iterator.set_state(saved)
        for batch in batches[4:8]:
            for name, value in next(iterator).items():
                np.testing.assert_array_equal(value, batch[name][list(own)])
        states.append(iterator.get_state())
        iterator.close()
        assert len(read) <= (4 + 3) * 8 / processes  # its own, and what it has read ahead
    assert all(state == states[0] for state in states)
    whole.set_state(states[0])
    np.testing.assert_array_equal(next(whole)["tokens"], batches[8]["tokens"])


def test_an_epoch_has_every_row_once_and_evaluation_the_first(rows):
    source = PackedRows(rows, "train")
    batch = next(make_train_iterator([(source, 1.0)], TOKENIZER, ROW, len(source), seed=0))
    read = [source.read(i, TOKENIZER.pad_id)["tokens"] for i in range(len(source))]
    assert Counter(map(bytes, batch["tokens"])) == Counter(map(bytes, read))
    (first, *_) = eval_batches(source, TOKENIZER, ROW, 4)
    np.testing.assert_array_equal(first["tokens"], read[:4])
    with pytest.raises(UserError, match="rows of 48 tokens"):
        make_train_iterator([(source, 1.0)], TOKENIZER, 64, 4, seed=0)


def test_a_stopped_preparation_is_finished_with_what_it_has(corpus, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "UNIT_BYTES", 1000)
    real, done = packing._write_unit, []

    def write(what, output, number, *rest):
        if len(done) == 5:
            raise UserError("stopped")
        done.append(number)
        return real(what, output, number, *rest)

    monkeypatch.setattr(packing, "_write_unit", write)
    with pytest.raises(UserError, match="stopped"):
        prepare_rows(options(corpus), tmp_path / "out", quiet=True)
    with pytest.raises(UserError, match="unfinished"):
        PackedRows(tmp_path / "out", "train")
    first = list(done)
    done.clear()
    done.extend([-1] * 6)
    prepare_rows(options(corpus), tmp_path / "out", quiet=True)
    assert first and not set(first) & set(done)
    assert packed.read_manifest(tmp_path / "out") == packed.read_manifest(rows)
    assert not list((tmp_path / "out").rglob("*.partial"))


KILLED = """
import sys
from zaya_jax.data import documents, packing
documents.UNIT_BYTES = 1000
if __name__ == "__main__":
    what = packing.Preparation((sys.argv[1],), "bytes", 48)
    from pathlib import Path
    print("begins", flush=True)
    packing.prepare_rows(what, Path(sys.argv[2]), int(sys.argv[3]), quiet=True)
"""


@pytest.mark.slow
def test_kill_9_at_any_moment_and_any_number_of_processes_give_the_same_rows(corpus, rows, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    output, killed = tmp_path / "out", 0
    for wait in (0.02, 0.1, 0.3, 4.0, 4.5):
        processes = "1" if wait < 1 else "2"
        started = subprocess.Popen(
            [sys.executable, str(script), str(corpus), str(output), processes], cwd=ROOT, stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert started.stdout is not None and started.stdout.readline()
        time.sleep(wait)
        started.send_signal(signal.SIGKILL)
        started.communicate()
        killed += not (output / packed.MANIFEST).exists()
    assert killed
    two = [
        subprocess.Popen([sys.executable, str(script), str(corpus), str(output), "2"], cwd=ROOT,
                         env={**os.environ, "PYTHONPATH": str(ROOT)}) for _ in range(2)
    ]  # fmt: skip
    assert [each.wait(timeout=300) for each in two] == [0, 0]
    assert packed.read_manifest(output) == packed.read_manifest(rows)
    assert verify(output)


def test_a_finished_folder_is_not_taken_for_that_of_edited_texts(tmp_path):
    """Of the same size: its name and bytes of the plan are the same as before."""
    text = tmp_path / "a.txt"
    text.write_text("one line of text\n" * 9)
    what = Preparation((str(text),), "bytes", 64)
    assert prepare_rows(what, tmp_path / "rows") == prepare_rows(what, tmp_path / "rows")
    text.write_text("two lines of text"[:16] + "\n" + "one line of text\n" * 8)
    with pytest.raises(UserError, match="holds rows of other files"):
        prepare_rows(what, tmp_path / "rows")


def test_mistakes_and_damage_are_one_line(corpus, rows, tmp_path):
    with pytest.raises(UserError, match="holds rows of other row_length"):
        prepare_rows(options(corpus, row_length=64), rows, quiet=True)
    with pytest.raises(UserError, match="new or an empty folder"):
        prepare_rows(options(corpus), corpus, quiet=True)
    for wrong, line in (
        ({"packing": "x"}, "packing: got 'x'"), ({"template": "tokenizer"}, "chat_template: may be given for chats"),
        ({"date": "2026-01-01"}, "chat_date: may be given for chats only"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=line):
            options(corpus, **wrong)
    broken = tmp_path / "broken"
    shutil.copytree(rows, broken)
    shard = max((broken / "rows").glob("train*"), key=lambda path: path.stat().st_size)
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2] + bytes(64) + data[len(data) // 2 + 64 :])
    with pytest.raises(UserError, match=f"{shard.name}: not the bytes that were written; delete"):
        verify(broken)
    source = PackedRows(broken, "train")
    with pytest.raises(UserError, match=f"{shard.name}: row .* cannot be read"):
        [source.read(i, 0) for i in range(len(source))]
    shard.write_bytes(data[:-1])
    with pytest.raises(UserError, match="were written"):
        PackedRows(broken, "train")
    (broken / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="not a manifest of packed rows"):
        PackedRows(broken, "train")


LIES = {
    "shards[0].file": (["shards", 0, "file"], "../../x"),
    "shards[0].rows": (["shards", 0, "rows"], "3"),
    "shards[0].bytes": (["shards", 0, "bytes"], None),
    "shards[0].split": (["shards", 0, "split"], []),
    "shards[0].blake2b": (["shards", 0, "blake2b"], 7),
    "token_bytes": (["token_bytes"], 3),
    "row_length": (["row_length"], 10**30),
    "counts.train": (["counts"], None),
    "counts.train.documents": (["counts", "train", "documents"], -1),
    "source.bytes": (["source", "bytes"], "x"),
    "dropped": (["dropped"], [1]),
    "tokenizer_name": (["tokenizer_name"], 3),
}


@pytest.mark.parametrize("field", LIES)
def test_a_manifest_that_lies_is_named_with_its_field(rows, tmp_path, field):
    """One whose digest fits, so that somebody has made it up."""
    places, value = LIES[field]
    manifest = json.loads((rows / "manifest.json").read_text())
    inner = manifest
    for place in places[:-1]:
        inner = inner[place]
    inner[places[-1]] = value
    manifest["digest"] = packed.digest(manifest)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=rf"manifest\.json: {re.escape(field)}: got .*, may be .*; delete the folder"):
        PackedRows(tmp_path, "train")


@pytest.fixture(scope="module")
def unfinished(corpus, tmp_path_factory) -> Path:
    """A preparation that stopped in its second pass, after two units."""
    output, done, real = tmp_path_factory.mktemp("unfinished") / "rows", [], packing._write_unit

    def write(what, output, number, *rest):
        if len(done) == 2:
            raise UserError("stopped")
        done.append(number)
        return real(what, output, number, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "UNIT_BYTES", 1000)
        patch.setattr(packing, "_write_unit", write)
        with pytest.raises(UserError, match="stopped"):
            prepare_rows(options(corpus), output, quiet=True)
    return output


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("plan.json", b"[]"), ("scan/00000.json", b"{}"), ("scan/00000.json", b'{"source": "a", "documents": "3"}'),
        ("scan/00000.hashes", b""), ("scan/00000.hashes", b"x" * 999), ("scan/00001.hashes", None),
        ("units/00000.json", b'{"shards": []}'), ("units/00001.json", b"\xff"),
        ("units/00000.json", b'{"source": "a", "dropped": {}, "counts": {"x": {}}, "shards": []}'),
        ("units/00000.json", b'{"source": "a", "dropped": {}, "counts": {}, "shards": [{}]}'),
    ],
)  # fmt: skip
def test_damaged_notes_of_an_unfinished_preparation_are_named(corpus, unfinished, tmp_path, monkeypatch, name, data):
    monkeypatch.setattr(documents, "UNIT_BYTES", 1000)
    folder = tmp_path / "rows"
    shutil.copytree(unfinished, folder)
    (folder / name).unlink()
    if data is not None:
        (folder / name).write_bytes(data)
    with pytest.raises(UserError, match=rf"{name}.*delete") as caught:
        prepare_rows(options(corpus), folder, quiet=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_a_pipe_is_no_corpus(tmp_path, suffix):
    path = tmp_path / f"pipe{suffix}"
    os.mkfifo(path)
    with pytest.raises(UserError, match=rf"paths: {path}: not a plain file"):
        prepare_rows(options(path), tmp_path / "rows", quiet=True)


def test_a_file_that_changes_on_the_way_is_noticed(tmp_path, monkeypatch):
    corpus = write_corpus(tmp_path / "texts", 10)
    real = packing._first_ones

    def and_change(*args):
        (corpus / "003.txt").write_text((corpus / "003.txt").read_text().replace("3", "7"))
        return real(*args)

    monkeypatch.setattr(packing, "_first_ones", and_change)
    with pytest.raises(UserError, match="has changed"):
        prepare_rows(options(corpus), tmp_path / "out", quiet=True)


def test_long_jsonl_files_are_cut_at_line_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "UNIT_BYTES", 100)
    path = tmp_path / "long.jsonl"
    texts = [f"{i} é " + "x" * (i * 37 % 90) for i in range(60)]
    path.write_text("\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts))
    units = documents.find([str(path)], chats=False)
    assert len(units) > 10
    assert [text for unit in units for text in documents.Reader().documents(unit)] == texts


def _framed(data: bytes) -> bytes:
    """With its masked CRC-32C, a byte after the other."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return data + struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def test_checksums_are_tfrecords():
    data = [bytes(range(n % 256)) * (1 + n // 256) for n in (0, 1, 2, 3, 4, 5, 255, 256, 257, 700)]
    crc = 0xE3069283  # RFC 3720's, of these nine characters
    assert tfrecord.masked_crc32c(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32
    stream = b"".join(_framed(struct.pack("<Q", len(one))) + _framed(one) for one in data)
    assert list(tfrecord.read(io.BytesIO(stream), len(stream))) == data


@pytest.mark.parametrize("kind", ["array_record", "tfrecord"])
def test_folders_of_tfds_are_read_without_tensorflow(tmp_path, kind):
    texts = write_corpus(tmp_path / "texts", 40)
    builder = LocalText(paths=[texts], data_dir=tmp_path / "data")
    builder.download_and_prepare(file_format="array_record")
    folder = Path(builder.data_dir)
    expected = [record["text"].decode() for record in builder.as_data_source("train")]
    if kind == "tfrecord":
        (shard,) = folder.glob("*-train.array_record-*")
        reader = packed.array_record_module.ArrayRecordReader(str(shard))
        frames = [_framed(struct.pack("<Q", len(r))) + _framed(r) for r in reader.read_all()]
        for path in folder.glob("*.array_record-*"):
            path.unlink()
        (folder / shard.name.replace("array_record", "tfrecord")).write_bytes(b"".join(frames))
        info = folder / "dataset_info.json"
        info.write_text(info.read_text().replace("array_record", "tfrecord").replace("ARRAY_RECORD", "TFRECORD"))
    units = documents.find([str(folder)], chats=False)
    assert sorted(text for unit in units for text in documents.Reader().documents(unit)) == sorted(expected)
    manifest = prepare_rows(options(folder), tmp_path / "rows", quiet=True)
    assert sum(c["documents"] for c in manifest["counts"].values()) == len(expected)
    (shard,) = folder.glob(f"*-train.{kind}-*")
    whole = shard.read_bytes()
    # a text of which a letter changes is a text still; ArrayRecord may have compressed it, behind two headers
    at = whole.index(b"ab cd") if kind == "tfrecord" else 120
    flipped = whole[:at] + b"x" + whole[at + 1 :]
    fewer = whole[: -len(frames[-1])] if kind == "tfrecord" else b""
    for broken in (b"", b"x" * len(whole), whole[: len(whole) // 2], flipped, fewer):
        shard.write_bytes(broken)
        with pytest.raises(UserError, match=rf"paths: {shard}: .*(damaged|cannot be read|may hold {len(expected)} )"):
            prepare_rows(options(folder), tmp_path / "broken", quiet=True)
        shutil.rmtree(tmp_path / "broken", ignore_errors=True)
    shard.write_bytes(whole)
    with pytest.raises(UserError, match="key: got 'body', may be a text"):
        prepare_rows(options(folder, key="body"), tmp_path / "other", quiet=True)
    with pytest.raises(UserError, match="tfds_split: got 'dev'"):
        prepare_rows(options(folder, tfds_split="dev"), tmp_path / "other", quiet=True)
    prepare_rows(options(folder, key="name"), tmp_path / "other", quiet=True)  # nothing of the refused ones is there
    assert "tensorflow" not in sys.modules


def tfds_folder(tmp_path: Path, records: list[int]) -> Path:
    """A folder of tfds whose train split has such shards by dataset_info.json."""
    builder = LocalText(paths=[write_corpus(tmp_path / "texts", 9)], data_dir=tmp_path / "data")
    builder.download_and_prepare(file_format="array_record")
    info = Path(builder.data_dir) / "dataset_info.json"
    values = json.loads(info.read_text())
    (train,) = (split for split in values["splits"] if split["name"] == "train")
    train["shardLengths"] = [str(count) for count in records]
    info.write_text(json.dumps(values))
    return info.parent


@pytest.mark.parametrize(("records", "line"), [([], "hold no record of split 'train'"), ([3], "may hold 3 ")])
def test_a_shard_of_tfds_holds_as_many_records_as_its_folder_says(tmp_path, records, line):
    with pytest.raises(UserError, match=rf"^paths: .*{line}"):
        prepare_rows(options(tfds_folder(tmp_path, records)), tmp_path / "rows", quiet=True)


def test_folders_of_tfds_hold_no_chats(tmp_path):
    folder = tfds_folder(tmp_path, [1])
    with pytest.raises(UserError, match=rf"^paths: {folder} is no \.jsonl file of chats"):
        prepare_rows(options(folder, chats=True), tmp_path / "rows", quiet=True)


def test_links_that_lead_in_a_circle_are_no_corpus(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match=r"circle|names nothing|no such file|is no file"):
        prepare_rows(options(tmp_path / "loop"), tmp_path / "rows", quiet=True)


def test_chats_are_written_by_the_template_and_counted(tmp_path):
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"q{i}"},
                {"role": "assistant", "content": "a" * (5 if i % 3 else 90)},
            ]
        }
        for i in range(90)
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    what = options(path, chats=True, packing="best_fit", row_length=64)
    manifest = prepare_rows(what, tmp_path / "rows", quiet=True)
    assert manifest["dropped"]["too long, or refused by the template"] == 30
    row = PackedRows(tmp_path / "rows", "train").read(0, TOKENIZER.pad_id)
    real = row["document"] >= 0
    assert 0 < row["answer"].sum() < real.sum()
    with pytest.raises(UserError, match="split: got 'parts'"):
        options(path, chats=True, split="parts")
