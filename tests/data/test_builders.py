"""Preparing corpora: what is read, how it is split, and how failures look."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from itertools import chain
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import no_file_above
from zaya_jax.data import builders
from zaya_jax.data.builders import SPLIT_PERCENTS, LocalText, StdlibCode, prepare_text
from zaya_jax.data.splits import SPLITS, divide, split_of

ROOT = Path(__file__).parents[2]


def write_jsonl(path: Path, texts, key: str = "text") -> Path:
    path.write_text("".join(json.dumps({key: text}) + "\n" for text in texts))
    return path


def all_texts(source, data_dir) -> dict[str, list[str]]:
    opened = {split: prepare_text(source, data_dir, split) for split in SPLITS}
    return {split: [s[i]["text"] for i in range(len(s))] for split, s in opened.items()}


def temporary_leftovers(data_dir: Path) -> list[Path]:
    return [path for path in data_dir.rglob("*") if "incomplete" in str(path)]


def test_splits_partition_the_documents_whatever_their_order(tmp_path):
    texts = [f"document {i}" for i in range(1000)]
    forward = all_texts([write_jsonl(tmp_path / "a.jsonl", texts)], tmp_path / "1")
    backward = all_texts([write_jsonl(tmp_path / "b.jsonl", texts[::-1])], tmp_path / "2")
    assert sorted(chain(*forward.values())) == sorted(texts)
    for split in SPLITS:
        assert set(forward[split]) == set(backward[split])
    assert 930 < len(forward["train"]) < 985
    assert min(len(forward["validation"]), len(forward["test"])) > 5


def test_a_split_never_changes():
    # Fixed values: a change here would move documents between splits of published results.
    fixed = [split_of(f"document {i}", (50, 25, 25)) for i in range(8)]
    assert fixed == FIXED_SPLITS
    shares = [split_of(str(i), SPLIT_PERCENTS) for i in range(20_000)]
    assert [round(100 * shares.count(split) / 20_000) for split in SPLITS] == [96, 2, 2]


FIXED_SPLITS = ["test", "train", "test", "train", "validation", "test", "test", "train"]


def test_duplicates_and_empty_documents_are_dropped(tmp_path):
    texts = [f"text {i}" for i in range(200)]
    write_jsonl(tmp_path / "a.jsonl", [*texts, *texts, "", "  \n"])
    (tmp_path / "copy.md").write_text("text 7")
    found = all_texts([tmp_path], tmp_path / "data")
    assert sorted(chain(*found.values())) == sorted(texts)


def test_files_directories_globs_and_keys(tmp_path):
    corpus = tmp_path / "corpus"
    (corpus / "deep").mkdir(parents=True)
    (corpus / ".git").mkdir()
    (corpus / ".git" / "config.txt").write_text("hidden")
    (corpus / "deep" / "a.py").write_text("x = 1\n")
    (corpus / "picture.png").write_bytes(b"\xff\x00")
    many = write_jsonl(tmp_path / "[many].jsonl", [f"body {i}" for i in range(300)], key="body")
    odd = tmp_path / "odd.name"
    odd.write_text("named outright")
    source = {"paths": [corpus, str(many), str(tmp_path / "*.name")], "key": "body"}
    found = all_texts(source, tmp_path / "data")
    expected = {"x = 1\n", "named outright", *(f"body {i}" for i in range(300))}
    assert sorted(chain(*found.values())) == sorted(expected)


def test_changed_files_are_prepared_again_and_unchanged_ones_are_not(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [f"old {i}" for i in range(50)])
    first = prepare_text([path], tmp_path / "data", "train")
    stamp = (first.directory / "dataset_info.json").stat().st_mtime_ns
    again = prepare_text([path], tmp_path / "data", "train")
    assert again.directory == first.directory
    assert (again.directory / "dataset_info.json").stat().st_mtime_ns == stamp
    write_jsonl(path, [f"new {i}" for i in range(50)])
    changed = prepare_text([path], tmp_path / "data", "train")
    assert changed.directory != first.directory
    assert changed[0]["text"].startswith("new")


def test_text_comes_back_exactly(tmp_path):
    text = "a\r\nb\n\n\ttab \x00 é 漢 \u2028 \U0001f600"
    path = write_jsonl(tmp_path / "a.jsonl", [text])
    (tmp_path / "b.txt").write_bytes((text + "!").encode())
    found = [
        prepare_text([p], tmp_path / "data", split_of(t.encode(), SPLIT_PERCENTS))[0]
        for p, t in ((path, text), (tmp_path / "b.txt", text + "!"))
    ]
    assert [document["text"] for document in found] == [text, text + "!"]
    assert [document["name"] for document in found] == [f"{path}:1", str(tmp_path / "b.txt")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n\n{"text": \n', r"a\.jsonl:3: not JSON: .* at column \d+"),
        ('{"text": "a"}\n{"text": 3}\n', r"a\.jsonl:2: must be an object whose field 'text'"),
        ('["text"]\n', r"a\.jsonl:1: must be an object whose field 'text'"),
        ('{"text": "\\ud800"}\n', r"a\.jsonl:1: field 'text' holds a lone surrogate"),
        ("\n\n", "is empty: it holds no text"),
        ('{"text": " "}\n', "is empty: it holds no text"),
        ('{"text": "only one"}\n', r"split: '(train|test)' .* holds no document"),
    ],
)
def test_bad_jsonl_is_one_clear_line_and_leaves_nothing(tmp_path, content, message):
    path = tmp_path / "a.jsonl"
    path.write_text(content)

    def prepare_both():
        for split in ("test", "train"):
            prepare_text([path], tmp_path / "data", split)

    with pytest.raises(ValueError, match=message) as error:
        prepare_both()
    assert "\n" not in str(error.value)
    assert not temporary_leftovers(tmp_path / "data")


def test_failed_preparation_leaves_no_directory(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{')
    with pytest.raises(ValueError, match="not JSON"):
        prepare_text([path], tmp_path / "data", "train")
    assert [p for p in (tmp_path / "data" / "local_text").iterdir() if p.is_dir()] == []
    path.write_text("".join(json.dumps({"text": f"mended {i}"}) + "\n" for i in range(9)))
    assert len(prepare_text([path], tmp_path / "data", "train")) > 0


@pytest.mark.parametrize(
    ("source", "split", "error", "message"),
    [
        ("stdlib", "dev", ValueError, "split: got 'dev', must be one of train, validation, test"),
        ("c4", "train", ValueError, "source: got 'c4', must be"),
        ({"path": "x"}, "train", ValueError, r"source: got fields \['path'\]"),
        ([], "train", ValueError, r"paths: got \[\], must be a list"),
        (["/nowhere/*.txt"], "train", FileNotFoundError, r"paths: /nowhere/\*\.txt is no file"),
    ],
)
def test_bad_arguments(tmp_path, source, split, error, message):
    with pytest.raises(error, match=message):
        prepare_text(source, tmp_path, split)
    assert list(tmp_path.iterdir()) == []


def test_unreadable_text_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"ab\xff")
    with pytest.raises(ValueError, match=r"paths: .*a\.txt: not UTF-8 \(byte 2\)"):
        prepare_text([tmp_path / "a.txt"], tmp_path / "data", "train")


def test_a_byte_order_mark_is_no_text_and_a_pipe_no_file(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n")
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "two"}\r\n\r\n')
    texts = [builders._decode(path, builders._read(path)) for path in sorted(tmp_path.iterdir())]
    assert texts == ['{"text": "two"}\r\n\r\n', "one\r\n"]
    os.mkfifo(tmp_path / "b.txt")
    with pytest.raises(ValueError, match=r"paths: .*b\.txt: not a plain file"):
        prepare_text([str(tmp_path / "b.txt")], tmp_path / "data", "train")


def test_stdlib_without_tests_or_installed_packages(tmp_path, caplog):
    for name in ("a.py", "pkg/b.py", "test/c.py", "pkg/tests/d.py", "site-packages/e.py"):
        (tmp_path / "lib" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lib" / name).write_text(f"# {name}\n")
    (tmp_path / "lib" / "latin.py").write_bytes(b"# caf\xe9\n")

    def names(include_tests):
        builder = StdlibCode(include_tests=include_tests, root=tmp_path / "lib", data_dir=tmp_path / "data")
        return [name for name, _ in builder.documents()], builder.data_dir

    plain, plain_dir = names(False)
    tested, tested_dir = names(True)
    assert plain == ["a.py", "pkg/b.py"]
    assert tested == ["a.py", "pkg/b.py", "pkg/tests/d.py", "test/c.py"]
    assert plain_dir != tested_dir
    assert "skipped 1 unreadable or non-UTF-8 files" in caplog.text


def run_python(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_real_stdlib_packs_without_tensorflow(tmp_path):
    output = run_python(
        """
        import sys
        from zaya_jax.data.builders import prepare_text
        from zaya_jax.data.pipeline import make_train_iterator
        from zaya_jax.text.tokenizers import ByteTokenizer
        source = prepare_text("stdlib", sys.argv[1], "train")
        batch = next(make_train_iterator([(source, 1.0)], ByteTokenizer(), 64, 2, seed=0))
        loaded = [name for name in sys.modules if name.split(".")[0] == "tensorflow"]
        print(len(source), batch["tokens"].shape, loaded)
        """,
        tmp_path,
    )
    count, rest = output.strip().splitlines()[-1].split(" ", 1)
    assert int(count) > 400
    assert rest == "(2, 64) []"


def test_a_killed_preparation_is_swept_up_by_the_next(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [f"text {i}" for i in range(100)])
    code = """
        import sys, time
        from zaya_jax.data import builders
        original = builders.LocalText.documents
        def slow(self):
            for number, item in enumerate(original(self)):
                yield item
                if number == 50 and [*builders.Path(sys.argv[2]).rglob("incomplete*")]:
                    print("half", flush=True, file=sys.__stdout__)
                    time.sleep(60)
        builders.LocalText.documents = slow
        builders.prepare_text([sys.argv[1]], sys.argv[2], "train")
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(path), str(tmp_path / "data")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        while "half" not in child.stdout.readline():
            assert child.poll() is None
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert temporary_leftovers(tmp_path / "data")
    started = time.monotonic()
    assert len(prepare_text([path], tmp_path / "data", "train")) > 80
    assert time.monotonic() - started < 30  # The dead process's lock is gone.
    assert not temporary_leftovers(tmp_path / "data")


@pytest.mark.parametrize("size", [0, 100, 500, 700, 5_000, 70_000, 200_000])
def test_a_full_disk_is_one_line_and_the_same_call_goes_through_when_there_is_room(tmp_path, size):
    path = write_jsonl(tmp_path / "a.jsonl", [random.Random(i).randbytes(1000).hex() for i in range(500)])
    tfds.disable_progress_bar()  # pytest keeps what is printed in a file, too
    with no_file_above(size), pytest.raises(OSError, match=r"local_text.*cannot be written: ") as error:
        prepare_text([path], tmp_path / "data", "train")
    assert "\n" not in str(error.value)
    assert [p for p in (tmp_path / "data").rglob("*") if p.is_file() and p.name != ".lock"] == []
    found = all_texts([path], tmp_path / "data")
    assert len([*chain(*found.values())]) == 500


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [cut_short, flip_a_bit, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("name", ["*-test.*", "*-train.*", "dataset_info.json", "features.json", "manifest.json"])
def test_damaged_data_name_the_file_and_the_remedy_whatever_split_is_opened(tmp_path, name, harm):
    path = write_jsonl(tmp_path / "a.jsonl", [f"text {i}" for i in range(300)])
    folder = prepare_text([path], tmp_path / "data", "train").directory
    (damaged,) = folder.glob(name)
    harm(damaged)
    if not damaged.exists() and damaged.name == "manifest.json":  # as an earlier version left it: made again
        assert len(prepare_text([path], tmp_path / "data", "train")) > 250
        return
    with pytest.raises(ValueError, match=r"delete the folder .*, and the same command makes it again") as error:
        prepare_text([path], tmp_path / "data", "train")
    assert str(damaged) in str(error.value) and "\n" not in str(error.value)
    shutil.rmtree(re.search(r"delete the folder (.*), and", str(error.value))[1])
    assert len(prepare_text([path], tmp_path / "data", "train")) > 250


def test_what_was_written_wrongly_is_noticed_at_once(tmp_path, monkeypatch):
    write = LocalText.download_and_prepare

    def careless(self, **options):
        write(self, **options)
        cut_short(next(Path(self.data_dir).glob("*-validation.*")))

    monkeypatch.setattr(LocalText, "download_and_prepare", careless)
    path = write_jsonl(tmp_path / "a.jsonl", [f"text {i}" for i in range(300)])
    with pytest.raises(OSError, match="cannot be written: what was written"):
        prepare_text([path], tmp_path / "data", "train")
    monkeypatch.undo()
    assert len(prepare_text([path], tmp_path / "data", "validation")) > 0


def lines(count: int, start: int = 0) -> str:
    return "".join(f"line {i} of some text\n" for i in range(start, start + count))


@pytest.mark.parametrize("files", [1, 12])
def test_a_few_files_are_divided_and_nothing_is_lost_or_shared(tmp_path, files):
    texts = [lines(500, 1000 * i) for i in range(files)]
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(text)
    found = all_texts([tmp_path], tmp_path / "data")
    assert [len(found[split]) for split in SPLITS] == [files] * 3
    held = [set("".join(found[split]).splitlines()) for split in SPLITS]
    assert set.union(*held) == {line for text in texts for line in text.splitlines()}
    assert sum(map(len, held)) == len(set.union(*held))  # no line is in two splits
    assert [round(100 * len(lines) / (500 * files)) for lines in held] == [90, 5, 5]
    source = prepare_text([tmp_path], tmp_path / "data", "validation")
    assert source.split_by == "parts"
    names = {source[i]["name"] for i in range(files)}
    assert names == {f"{tmp_path / f'{i}.txt'} (validation part)" for i in range(files)}
    manifest = json.loads((source.directory / "manifest.json").read_text())
    assert manifest["split"] == {"by": "parts", "percents": {"train": 90, "validation": 5, "test": 5}}
    assert all_texts([tmp_path], tmp_path / "again") == found


def test_many_files_are_held_back_whole_unless_the_source_says_otherwise(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [lines(40, 100 * i) for i in range(300)])
    whole = prepare_text([path], tmp_path / "data", "train")
    parts = prepare_text({"paths": [path], "split": "parts"}, tmp_path / "data", "train")
    assert (whole.split_by, parts.split_by) == ("documents", "parts")
    assert len(whole) < len(parts) == 300
    (tmp_path / "one.txt").write_text(lines(500))
    with pytest.raises(ValueError, match="holds no document"):
        all_texts({"paths": [tmp_path / "one.txt"], "split": "documents"}, tmp_path / "data")


@given(st.text(alphabet=st.sampled_from("ab \n漢\U0001f600"), max_size=3000))
def test_dividing_keeps_every_character_in_order(text):
    parts = divide(text, (90, 5, 5))
    if parts is not None:
        assert "".join(parts[split] for split in SPLITS) == text
        assert all(part.strip() for part in parts.values())
    else:
        assert len(text) < 400 or len(text.split()) < 100


def test_two_files_that_end_alike_are_both_divided(tmp_path):
    for i in range(2):
        (tmp_path / f"{i}.txt").write_text(lines(500, 1000 * i) + lines(100, 10_000))
    found = all_texts([tmp_path], tmp_path / "data")
    assert len(found["train"]) == len(found["validation"]) == 2


def test_a_jsonl_with_another_field_names_the_source_to_write(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [f"text {i}" for i in range(300)], key="content")
    with pytest.raises(ValueError, match="whose field 'text' is a string; to read its field 'content'") as error:
        prepare_text([path], tmp_path / "data", "train")
    source = json.loads(str(error.value).rpartition("the source may be ")[2])
    assert source == {"paths": [str(path)], "key": "content"}
    assert len(prepare_text(source, tmp_path / "data", "train")) > 250


def test_preparing_prints_nothing_of_downloads_and_leaves_no_temporary_folder(tmp_path, capsys, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    prepare_text([write_jsonl(tmp_path / "a.jsonl", [f"text {i}" for i in range(50)])], tmp_path / "data", "train")
    assert "ownload" not in capsys.readouterr().out
    assert not any((tmp_path / "temporary").iterdir())
