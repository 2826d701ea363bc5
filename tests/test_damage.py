"""Damaged files of a workdir: one line that names the file and what to do, and nothing is rewritten."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

import configs.common
from experiments import sweep
from tests.helpers import no_file_above, no_longer_than
from tests.reporting.made_up_run import build_run, result_rows
from zaya_jax.command_line.completions import Completions
from zaya_jax.data import prepared
from zaya_jax.data.packing import Preparation, prepare_rows
from zaya_jax.errors import UserError
from zaya_jax.evaluation.answers import Answers
from zaya_jax.files import append, write_lines
from zaya_jax.interop.formats.partial import JOURNAL, Partial
from zaya_jax.reporting.paper.figures import Input
from zaya_jax.reporting.results import write_results, write_sweep
from zaya_jax.reporting.run_files import load_run
from zaya_jax.runs import jobs, provenance, run_folder
from zaya_jax.training.logging.metrics import MetricWriter, read_metrics

ROOT = Path(__file__).parents[1]
BASE = str(ROOT / "tests" / "experiments" / "tiny.py")
DEEP = b"[" * 100_000
# What a whole file, or a line of one, becomes.
DAMAGE = {
    "cut": lambda data: data[: len(data) // 2],
    "flipped": lambda data: data.replace(b'":', b'"z', 1),
    "not UTF-8": lambda data: data.replace(b'"', b'"\xff', 1),
    "UTF-16": lambda data: data.decode().encode("utf-16"),
    "binary": lambda data: b"\0\1\2\xff",
    "list": lambda data: b"[" + data.strip() + b"]",
    "null": lambda data: b"null",
    "number": lambda data: b"3",
    "deep list": lambda data: DEEP,
    "deep object": lambda data: b'{"a":' * 100_000,
    "deep in it": lambda data: data.replace(b"{", b'{"z": ' + b"[" * 300 + b"]" * 300 + b", ", 1),
    "many digits": lambda data: data.replace(b"{", b'{"z": ' + b"9" * 5000 + b", ", 1),
}
damage = pytest.mark.parametrize("damage", DAMAGE.values(), ids=[name.replace(" ", "_") for name in DAMAGE])


def refused(path: Path, *actions, says: str = "", error=UserError) -> None:
    """Each action is refused in one line that names `path` and says `says`, and leaves its folder as it was."""
    before = contents(path.parent)
    for action in actions:
        with pytest.raises(error) as caught:
            action()
        message = str(caught.value)
        assert str(path) in message and says in message and "\n" not in message and len(message) < 1000, message
        assert contents(path.parent) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize("before", ["", '{"a": 1}\n', '{"a": 1}\n{"half'])
def test_a_disk_that_fills_within_an_appended_line_leaves_the_lines_that_were_there(tmp_path, before):
    """The system takes a part of the text and refuses the rest."""
    path = tmp_path / "lines.jsonl"
    if before:
        path.write_text(before)
    with no_file_above(100), pytest.raises(OSError, match=r"lines\.jsonl"):
        append(path, "x" * 200 + "\n")
    whole = before[: before.rfind("\n") + 1]
    assert (path.read_text() if path.exists() else "") == whole and path.exists() == bool(before)
    append(path, "next\n")
    assert path.read_text() == whole + "next\n"


def damage_line(path: Path, number: int, damage) -> str:
    """Damages a line, counted from 1; returns what a message says of it."""
    lines = path.read_bytes().splitlines()
    lines[number - 1] = damage(lines[number - 1]).replace(b"\n", b"")
    path.write_bytes(b"\n".join(lines) + b"\n")
    return f"{path} line {number}: "


# --- files of one JSON object -----------------------------------------------------------------------------------------


@damage
@pytest.mark.parametrize("name", ["config.json", "environment.json"])
def test_an_object_of_a_workdir(tmp_path, name, damage):
    config = jobs.read_config(BASE, [])
    folder = build_run(tmp_path / "run")
    (folder / "config.json").write_text(config.to_json_best_effort())
    path = folder / name
    path.write_bytes(damage(path.read_bytes()))
    refused(path, lambda: load_run(folder))
    remedy = {"config.json": "remove the folder or choose another --workdir", "environment.json": "delete the file: "}
    refused(path, lambda: run_folder.claim_workdir(folder, config), says=remedy[name])
    config.evaluate.samples = 3  # the earlier evaluation would move away
    refused(path, lambda: run_folder.claim_workdir(folder, config), says=remedy[name])


def test_an_environment_that_was_deleted_is_written_anew(tmp_path):
    config = jobs.read_config(BASE, [])
    run_folder.claim_workdir(tmp_path, config)
    path = tmp_path / "environment.json"
    for text in ('{"seconds": 3}', '{"seconds": {"data": "x"}}', '{"seconds": {"data": 1e999}}'):
        path.write_text(text)
        refused(path, lambda: run_folder.claim_workdir(tmp_path, config), says="delete the file: ")
    path.unlink()
    run_folder.claim_workdir(tmp_path, config)
    with provenance.timed(tmp_path, "data"):
        pass
    assert set(json.loads(path.read_text())["seconds"]) == {"data"}


@damage
def test_a_sweeps_own_file(tmp_path, damage):
    config = configs.common.sweep("tiny", BASE, configs.common.axis("seed", 1))
    sweep.claim(tmp_path, config)
    path = tmp_path / "sweep.json"
    path.write_bytes(damage(path.read_bytes()))
    refused(path, lambda: sweep.claim(tmp_path, config), says="delete the file")


@damage
def test_a_prepared_corpus_says_what_to_delete(tmp_path, damage):
    path = tmp_path / prepared.MANIFEST
    path.write_bytes(damage(b'{"files": {}, "documents": {}, "split": {}}'))
    refused(path, lambda: prepared.read_manifest(tmp_path), says="delete the folder")


@damage
def test_a_benchmarks_result(tmp_path, damage):
    (tmp_path / "bench").mkdir()
    path = tmp_path / "bench" / "x.json"
    path.write_bytes(damage(b'{"rows": [{"a": 1}]}'))
    refused(path, lambda: Input("bench/x.json", "the command").read(tmp_path), says="is made by `the command`")


# --- files of lines ---------------------------------------------------------------------------------------------------


@damage
@pytest.mark.parametrize("name", ["metrics.jsonl", "bad_steps.jsonl"])
def test_a_damaged_line_of_metrics_is_named_and_kept(tmp_path, name, damage):
    """A rewind used to write the file anew without all that stood after the damaged line."""
    folder = build_run(tmp_path / "run")
    path = folder / name
    lines = [{"stage": "convert", "step": step, "loss": 1.5, "data": {"a": [step]}} for step in range(1, 6)]
    if name == "bad_steps.jsonl":
        write_lines(path, lines)
    says = damage_line(path, 3, damage)
    writer = MetricWriter(folder / "metrics.jsonl")
    refused(path, lambda: run_folder.check_files(folder), lambda: writer.rewind("convert", 4), says=says)
    refused(path, lambda: writer.rewind("convert", 4), says="mend or remove this line")
    refused(path, lambda: read_metrics(path), says=says)
    if name == "metrics.jsonl":
        refused(path, lambda: load_run(folder), says=says)


@pytest.mark.parametrize("tail", ['{"stage": "conv', "{", '{"stage": "convert", "step": 9}', "\0\0\0", '{"st\0\0'])
def test_a_last_line_that_a_kill_cut_short_is_dropped(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    writer = MetricWriter(path)
    for step in (1, 2, 3):
        writer.write("convert", step, {"loss": 1.0})
    whole = path.read_text()
    path.write_text(whole + tail)
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3] and path.read_text() == whole + tail
    writer.rewind("convert", 3)
    assert path.read_text() == whole
    path.write_text(whole + tail)
    writer.write("convert", 4, {"loss": 1.0})
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3, 4]


@pytest.mark.parametrize("text", ["null", "3", "[]", "[" * 100_000, "loss", "\xff"])
def test_a_file_that_is_no_lines_of_ours_is_not_taken_for_an_unfinished_line(tmp_path, text):
    path = tmp_path / "metrics.jsonl"
    path.write_text(text, encoding="latin-1")
    refused(path, lambda: MetricWriter(path).rewind("convert", 0), says="line 1: ")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"step": 1}', "stage: got None, may be text"),
        ('{"stage": "convert"}', "step: got None, may be an integer"),
        ('{"stage": "convert", "step": true}', "step: got True"),
        ('{"stage": "convert", "step": 1e400}', "step: got inf"),
        ('{"stage": "convert", "step": 11, "loss": "low"}', "loss: got 'low', may be numbers"),
        ('{"stage": "convert", "step": 11, "loss": [1.0]}', "loss: got [1.0], may be numbers of shape []"),
        ('{"stage": "convert", "step": 11, "loss": 1' + "0" * 400 + "}", "loss: got 1000"),
        ('{"stage": "convert", "step": 11, "draft_loss_by_slot": [1, [2]]}', "draft_loss_by_slot: got [1, [2]]"),
    ],
)
def test_a_line_of_metrics_of_the_wrong_type(tmp_path, line, says):
    path = build_run(tmp_path / "run") / "metrics.jsonl"
    with path.open("a") as file:
        file.write(line + "\n")
    number = len(path.read_text().splitlines())
    refused(path, lambda: load_run(path.parent), says=f"line {number}: {says}")


MADE = {"task": "addition", "seed": 0}
ANSWER = {"correct": [True, None], "tokens": [[1, 2], [3]], "accepted": [[1, 1], [1]], "seconds": 0.25}


@damage
@pytest.mark.parametrize("number", [1, 2])
def test_a_damaged_line_of_answers(tmp_path, number, damage):
    path = tmp_path / "answers.jsonl"
    Answers(path, MADE).add([{"problem": i, **ANSWER} for i in range(3)])
    says = damage_line(path, number, damage)
    refused(path, lambda: Answers(path, MADE), says=says)
    refused(path, lambda: Answers(path, MADE), says="remove this line and those after it")


@pytest.mark.parametrize(
    "change",
    [
        {"problem": 2}, {"problem": True}, {"correct": 1}, {"correct": [1, 2]}, {"tokens": [1, 2]}, {"accepted": None},
        {"tokens": [[1, 2], [-1]]}, {"seconds": "x"}, {"seconds": 0}, {"seconds": 10**400}, {"accepted": [[1, 1], [2]]},
        {"correct": [True], "tokens": [[1]], "accepted": [[1]]},
    ],
)  # fmt: skip
def test_an_answer_of_the_wrong_type(tmp_path, change):
    path = tmp_path / "answers.jsonl"
    lines = [{"problem": i, **ANSWER} for i in range(3)]
    write_lines(path, [{"made_by": MADE}, lines[0], lines[1] | change, lines[2]])
    refused(path, lambda: Answers(path, MADE), says="line 3: ")


def test_answers_that_a_kill_cut_short(tmp_path):
    path = tmp_path / "answers.jsonl"
    lines = [{"problem": i, **ANSWER} for i in range(2)]
    Answers(path, MADE).add(lines)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        found = Answers(path, MADE)
        assert found.lines == lines[: max(0, whole[:size].count(b"\n") - 1)] and path.read_bytes() == whole[:size]
        found.add(lines[len(found.lines) :])
        assert path.read_bytes() == whole


@damage
@pytest.mark.parametrize("number", [1, 2])
def test_a_conversions_journal(tmp_path, number, damage):
    with Partial(tmp_path / "out", {"source": "a"}) as partial:
        partial.note("x", 1)
        partial.note("y", 2)
    path = partial.path / JOURNAL
    says = damage_line(path, number, damage)
    refused(path, Partial(tmp_path / "out", {"source": "a"}).__enter__, says=says)
    refused(path, Partial(tmp_path / "out", {"source": "a"}).__enter__, says="delete the folder to begin anew")


@pytest.mark.parametrize("line", ['{"piece": [], "is": 1}', '{"piece": "x"}', "{}"])
def test_a_journals_line_of_the_wrong_type(tmp_path, line):
    with Partial(tmp_path / "out", {"source": "a"}) as partial:
        partial.note("x", 1)
    path = partial.path / JOURNAL
    with path.open("a") as file:
        file.write(line + "\n")
    refused(path, Partial(tmp_path / "out", {"source": "a"}).__enter__, says="line 3: ")
    path.write_text('{"conversion": 3}\n')
    refused(path, Partial(tmp_path / "out", {"source": "a"}).__enter__, says="not a journal of ours")


@damage
def test_rows_of_generate(tmp_path, damage):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "a", "index": 0, "sample": sample, "text": "x"} for sample in range(3)]
    Completions(path, ["a"], 3, {"seed": 1}).add(rows, {})
    assert Completions(path, ["a"], 3, {"seed": 1}).done == {(0, 0), (0, 1), (0, 2)}
    says = damage_line(path, 2, damage)
    refused(path, lambda: Completions(path, ["a"], 3, {"seed": 1}), says=says)


def test_a_file_of_somebody_elses_is_no_unfinished_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    for text in ('{"answer": 1}', "text"):
        path.write_text(text)
        refused(path, lambda: Completions(path, ["a"], 1, {}))
    path.write_text('{"prompt": "a", "ind')
    Completions(path, ["a"], 1, {}).add([{"prompt": "a", "index": 0, "sample": 0}], {})
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == [0]


@damage
def test_samples_are_written_whole(tmp_path, damage):
    path = build_run(tmp_path / "run") / "samples.jsonl"
    last = len(path.read_bytes().splitlines())
    for number in (2, last):
        whole = path.read_bytes()
        says = damage_line(path, number, damage)
        path.write_bytes(path.read_bytes().rstrip(b"\n"))
        refused(path, lambda: load_run(path.parent), says=says)
        refused(path, lambda: load_run(path.parent), says="delete the file and results.csv: ")
        path.write_bytes(whole)


SAMPLE = {"sampler": "a", "temperature": 0.0, "prompt": "", "pieces": ["x", "y"], "accepted": [2]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"pieces": ["x", 3]}, "pieces: should be a list of texts"),
        ({"pieces": "xy"}, "pieces: got 'xy', should be list"),
        ({"accepted": [3, -1]}, "accepted: should be integers that sum to len(pieces) = 2"),
        ({"accepted": [True, 1]}, "accepted: should be integers that sum"),
        ({"temperature": True}, "temperature: got True, should be int or float"),
        ({"temperature": float("inf")}, "temperature: got inf, should be int or float"),
        ({"temperature": 10**400}, "temperature: got 1000"),
        ({"prompt": None}, "prompt: got None, should be str"),
    ],
    ids=str,
)
def test_a_sample_of_the_wrong_type(tmp_path, change, says):
    path = build_run(tmp_path / "run") / "samples.jsonl"
    with path.open("a") as file:
        file.write(json.dumps(SAMPLE) + "\n" + json.dumps(SAMPLE | change) + "\n")
    number = len(path.read_text().splitlines())
    refused(path, lambda: load_run(path.parent), says=f"line {number}: {says}")


# --- tables -----------------------------------------------------------------------------------------------------------

TABLES = {
    "not UTF-8": lambda data: data.replace(b"cost", b"\xffost", 1),
    "cut": lambda data: data[: len(data) * 2 // 3],
    "empty": lambda data: b"",
    "a number": lambda data: data.replace(b"0.31", b"1e999", 1),
    "digits": lambda data: data.replace(b"0.31", b"9" * 5000, 1),
    "kind": lambda data: data.replace(b"sampling", b"samplinh", 1),
    "quote": lambda data: data.replace(b"sampling", b'"sampling', 1),
    "a long cell": lambda data: data.replace(b"sampling", b"x" * 200_000, 1),
    "zeros": lambda data: data + b"\0" * 100,
    "an unknown column": lambda data: data.replace(b"kind", b"kinx", 1),
    "a name twice": lambda data: data.replace(b"kind", b"kind,kind", 1),
    "a column twice": lambda data: re.sub(rb"(?m)^([^,\n]*,)", rb"\1\1", data),
    "a cell more": lambda data: data.replace(b"sampling", b"sampling,sampling", 1),
}


@pytest.mark.parametrize("damage", TABLES.values(), ids=[name.replace(" ", "_") for name in TABLES])
def test_a_table_of_results(tmp_path, damage):
    path = build_run(tmp_path / "run") / "results.csv"
    path.write_bytes(damage(path.read_bytes()))
    refused(path, lambda: run_folder.check_files(path.parent), says="delete the file: the same command writes it anew")
    (tmp_path / "results").mkdir()
    path = tmp_path / "results" / "results.csv"
    write_sweep(path, {"a": ({}, result_rows())})
    path.write_bytes(damage(path.read_bytes()))
    refused(path, lambda: Input("results.csv", "the command").read(path.parent), says="is made by `the command`")


@pytest.mark.parametrize("changes", ["[]", "3", "null", "{", "9" * 5000, "[" * 100_000])
def test_what_a_job_changed_is_an_object(tmp_path, changes):
    path = tmp_path / "results.csv"
    path.write_text(f"run,changes,kind\na,{changes},cost\n")
    refused(path, lambda: Input("results.csv", "the command").read(tmp_path), says="line 2: changes: got ")


# --- sweeps -----------------------------------------------------------------------------------------------------------


def finished_jobs(folder: Path) -> dict[str, jobs.Job]:
    """Two jobs of tiny_sweep, finished as far as a sweep reads it."""
    made = jobs.check_jobs(BASE, {"a": {"seed": 1}, "b": {"seed": 2}}, folder)
    for job in made.values():
        job.folder.mkdir(parents=True)
        (job.folder / "config.json").write_text(job.config.to_json_best_effort())
        (job.folder / "environment.json").write_text('{"seconds": {"data": 1.5}}')
        write_results(job.folder / "results.csv", result_rows())
    return made


def test_a_damaged_job_is_named_before_any_starts(tmp_path):
    made = finished_jobs(tmp_path)
    assert not list(sweep.unusable(made, made))
    for name, text in (
        ("config.json", "[]"), ("results.csv", "kind\n3\n"), ("environment.json", "{"),
        ("environment.json", '{"seconds": [1]}'), ("config.json", "\xff"),
    ):  # fmt: skip
        path = made["b"].folder / name
        whole = path.read_bytes()
        path.write_text(text, encoding="latin-1")
        again = jobs.check_jobs(BASE, {"a": {"seed": 1}, "b": {"seed": 2}}, tmp_path)
        (line,) = sweep.unusable(again, ["a"])  # the table is of all jobs, chosen or not
        assert line.startswith("job b: ") and str(path) in line and line.endswith(
            "; --redo=b deletes its folder and runs the job anew"
        )  # fmt: skip
        path.write_bytes(whole)


def test_the_damage_is_told_where_the_file_is_a_folder_or_gone(tmp_path):
    folder = build_run(tmp_path / "run")
    for name in ("metrics.jsonl", "results.csv", "samples.jsonl", "environment.json", "config.json"):
        copy = tmp_path / name.replace(".", "_")
        shutil.copytree(folder, copy)
        (copy / name).unlink()
        (copy / name).mkdir()
        refused(copy / name, lambda: load_run(copy))  # noqa: B023


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_a_lock_that_is_no_file_keeps_nobody_waiting(tmp_path, kind):
    """Opening a pipe to write waits for who reads it."""

    def put(path: Path) -> Path:
        path.parent.mkdir(parents=True)
        {"pipe": os.mkfifo, "folder": Path.mkdir, "device": lambda path: path.symlink_to("/dev/full")}[kind](path)
        return path

    lock = put(tmp_path / "run" / ".lock")
    journal = put(tmp_path / ".out.partial" / JOURNAL)
    rows = put(tmp_path / "rows" / ".lock").parent
    text = tmp_path / "a.txt"
    text.write_text("some text")
    with no_longer_than(20):
        if kind != "device":  # which can be locked like a file
            with pytest.raises(OSError, match=r"\.lock|No such device"), run_folder.locked(lock):
                pass
        with pytest.raises((OSError, UserError)):
            Partial(tmp_path / "out", {"source": "a"}).__enter__()
        if kind != "device":
            with pytest.raises(UserError, match=r"\.lock|No such device"):
                prepare_rows(Preparation((str(text),), "bytes", 16), rows, quiet=True)
    assert journal.parent.is_dir()
