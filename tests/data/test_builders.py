"""Preparing corpora: what is read, how it is split, and how failures look."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from itertools import chain
from pathlib import Path

import pytest

from zaya_jax.data import builders
from zaya_jax.data.builders import SPLIT_PERCENTS, LocalText, StdlibCode, prepare_text
from zaya_jax.data.splits import SPLITS, split_of

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


def test_a_process_that_waited_for_another_finds_the_data(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [f"text {i}" for i in range(50)])
    first, second = (LocalText(paths=[path], data_dir=tmp_path / "data") for _ in range(2))
    builders._prepare(first)
    builders._prepare(second)
    for split in first.info.splits:
        assert len(second.as_data_source(split)) == first.info.splits[split].num_examples > 0


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
        from zaya_jax.data.tokenizers import ByteTokenizer
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
                    print("half", flush=True)
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
