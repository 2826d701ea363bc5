"""results.csv and run directories: what goes in comes out, and what is garbled is named in one line."""

import json
import os

import pytest

from tests.helpers import no_longer_than
from tests.reporting.made_up_run import CONFIG, result_rows
from zaya_jax.errors import UserError
from zaya_jax.reporting.html.report import write_report
from zaya_jax.reporting.result_files import begun
from zaya_jax.reporting.results import (
    RESULT_COLUMNS,
    read_results,
    read_rows,
    read_sweep,
    wilson,
    write_results,
    write_sweep,
)
from zaya_jax.reporting.run_files import load_run
from zaya_jax.reporting.tables.runs import sampling_table


def test_round_trip_keeps_every_cell(tmp_path):
    rows = result_rows()
    write_results(tmp_path / "results.csv", rows)
    back = read_results(tmp_path / "results.csv")
    assert len(back) == len(rows)
    for row, read in zip(rows, back, strict=True):
        assert tuple(read) == RESULT_COLUMNS
        assert read == {column: row.get(column) for column in RESULT_COLUMNS}


def test_lists_become_words(tmp_path):
    write_results(tmp_path / "r.csv", [{"kind": "sampling", "anchors": [1, 8]}])
    assert read_results(tmp_path / "r.csv")[0]["anchors"] == "1 8"


def test_numbers_of_a_list_come_back_and_a_column_that_an_old_file_lacks_is_blank(tmp_path):
    write_results(tmp_path / "r.csv", [{"kind": "likelihood", "draft_accuracy_by_slot": [0.5, 0.25]}])
    assert read_results(tmp_path / "r.csv")[0]["draft_accuracy_by_slot"] == [0.5, 0.25]
    (tmp_path / "old.csv").write_text("kind,accuracy\nsampling,0.5\n")
    assert read_results(tmp_path / "old.csv") == [dict.fromkeys(RESULT_COLUMNS) | {"kind": "sampling", "accuracy": 0.5}]


def test_a_sweep_keeps_what_each_run_changed(tmp_path):
    runs = {"a": ({"seed": 0, "evaluate.temperatures": [0.0, 1.0]}, result_rows()), "b": ({}, result_rows()[:1])}
    write_sweep(tmp_path / "results.csv", runs)
    back = read_sweep(tmp_path / "results.csv")
    assert [row["run"] for row in back] == ["a"] * len(result_rows()) + ["b"]
    assert back[0]["changes"] == runs["a"][0] and back[-1]["changes"] == {}
    write_results(tmp_path / "one.csv", result_rows())
    assert [{c: row[c] for c in RESULT_COLUMNS} for row in back[:-1]] == read_results(tmp_path / "one.csv")
    text = (tmp_path / "results.csv").read_text()
    (tmp_path / "results.csv").write_text(text.replace(',"{}",', ",{,").replace(",{},", ",{,"))
    with pytest.raises(ValueError, match=r"results\.csv line .*: changes: got '\{', should be a JSON object"):
        read_sweep(tmp_path / "results.csv")


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"kind": "sampling", "speed": 2}, "got 'speed', did you mean seed or speedup"),
        ({"kind": "guess"}, "kind: got 'guess'"),
        ({"sampler": "lossless"}, "kind: got ''"),
        ({"kind": "cost", "rows": "many"}, "rows: got 'many'"),
        ({"kind": "cost", "rows": float("nan")}, "rows: got 'nan'"),
    ],
)
def test_bad_rows_are_refused_and_leave_the_old_table(tmp_path, row, named):
    path = tmp_path / "results.csv"
    write_results(path, result_rows())
    before = path.read_bytes()
    with pytest.raises(ValueError, match=named) as error:
        write_results(path, [row])
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["results.csv"]


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda text: text.replace("speedup", "speed_up", 1), "got 'speed_up', did you mean speedup"),
        (lambda text: text.replace("kind,model", "model", 1), "'kind' is missing"),
        (lambda text: text.replace("0.31", "fast", 1), "line 3: speedup: got 'fast'"),
        (lambda text: text + "cost,convert\n", f"got 2 cells, should be {len(RESULT_COLUMNS)}"),
        (lambda text: "", "'kind' is missing"),
    ],
)
def test_garbled_table_is_one_line_with_file_and_field(make_run, edit, named):
    path = make_run() / "results.csv"
    path.write_text(edit(path.read_text()))
    with pytest.raises(ValueError, match=named) as error:
        load_run(path.parent)
    assert "results.csv" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("config.json", "{", "not valid JSON"),
        ("config.json", "[]", "may be a JSON object"),
        ("config.json", '{"data": 3}', "data: got '?3'?, should be dict"),
        ("environment.json", "3", "may be a JSON object"),
        ("metrics.jsonl", '{"stage": 1, "step": 2}\n', "line 1: stage"),
        ("metrics.jsonl", "{\n{}\n{}\n", "line 1: not JSON"),
        ("samples.jsonl", "oops\n", "line 1: not JSON"),
        ("samples.jsonl", '{"sampler": "lossless"}\n', "line 1: temperature"),
        (
            "samples.jsonl",
            '{"sampler": "a", "temperature": 0, "prompt": "", "pieces": ["x"], "accepted": [2]}',
            "accepted: should be integers that sum to",
        ),
    ],
)
def test_garbled_files_are_named(make_run, name, text, named):
    path = make_run()
    (path / name).write_text(text)
    with pytest.raises(ValueError, match=named) as error:
        load_run(path)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_binary_file_is_named(make_run):
    path = make_run()
    (path / "samples.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"samples\.jsonl line 1: not JSON: not UTF-8 \(UTF-16"):
        load_run(path)


def test_missing_directory_and_config(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such directory"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"config\.json: no such file"):
        load_run(tmp_path)


def test_a_last_line_cut_short_is_left_out(make_run):
    path = make_run()
    whole = load_run(path).metrics
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "conv')
    assert load_run(path).metrics == whole


def test_missing_parts_are_named(make_run):
    rows = [r for r in result_rows() if r["kind"] == "sampling" and r["sampler"] != "mix_stale"]
    path = make_run(stages=("pretrain",), results=rows)
    (path / "samples.jsonl").unlink()
    missing = "; ".join(load_run(path).missing())
    for part in ("samples.jsonl", "stage convert", "stage control", "cost rows", "mix_stale at temperature 1"):
        assert part in missing
    assert "pretrain" not in missing


@pytest.mark.parametrize("start", ["convert", "control"])
def test_a_phase_that_starts_from_itself_or_a_later_one_has_an_end(make_run, start):
    """No run's config says so; a damaged one used to be followed round for ever."""
    path = make_run()
    values = CONFIG | {"phases": ["pretrain", "convert", "control"]}
    values["convert"] = CONFIG["convert"] | {"start": start}
    values["control"] = CONFIG["control"] | {"start": "convert"}
    (path / "config.json").write_text(json.dumps(values))
    run = load_run(path)
    with no_longer_than(10):
        assert run.path_to("convert") == ("convert",) and run.path_to("control") == ("convert", "control")


def test_what_utf_8_cannot_hold_is_written_as_escapes(make_run, tmp_path):
    path = make_run()
    (path / "config.json").write_text(json.dumps(CONFIG | {"name": "\ud800"}))
    assert "\\ud800: report" in write_report(load_run(path), [], path / "report.html").read_text()
    rows = [result_rows()[0] | {"model": "a\udcff"}]
    write_results(tmp_path / "r.csv", rows)
    assert read_results(tmp_path / "r.csv")[0]["model"] == "a\\udcff"
    write_sweep(tmp_path / "s.csv", {"a\udcff": ({}, rows)})
    assert read_sweep(tmp_path / "s.csv")[0]["run"] == "a\\udcff"


def test_model_by_preset_or_by_fields(make_run):
    path = make_run()
    by_preset = load_run(path).model
    fields = {"vocab_size": 260, "num_hidden_layers": 1, "layer_types": ["hybrid"]}
    (path / "config.json").write_text(json.dumps(CONFIG | {"model": fields}))
    assert by_preset.hidden_size == 64
    assert load_run(path).model.layer_types == ("hybrid",)
    (path / "config.json").write_text(json.dumps(CONFIG | {"model": {"preset": "zaya1_9t"}}))
    with pytest.raises(ValueError, match=r"config\.json: model: preset: got 'zaya1_9t'"):
        _ = load_run(path).model


def test_wilson_against_published_values():
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)  # Newcombe 1998, table I
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(5, 5)[1] == 1.0
    for bad in ((1, 0), (-1, 4), (5, 4)):
        with pytest.raises(ValueError, match="successes, total"):
            wilson(*bad)


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_a_table_that_is_no_plain_file_is_named(tmp_path, kind):
    path = tmp_path / "results.csv"
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    with pytest.raises(UserError, match=r"results\.csv: (not a plain file|a folder)"):
        read_rows(tmp_path)


NUMBERS = {"rows": [{"a": 1.5, "b": [1]}]}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "rows: missing; choose another --output, or delete it"),
        ({"rows": [{"b": [1]}]}, r"rows\[0\]\.a: missing; choose"),
        ({"rows": [{"a": "x", "b": [1]}]}, r"holds other values than it should \(ValueError"),
        ({"rows": [{"a": 1.5, "b": 3}]}, r"holds other values than it should \(TypeError"),
        ({"rows": 3}, r"holds other values than it should \(TypeError"),
        ([], "got '\\[\\]', may be a JSON object; choose"),
    ],
    ids=str,
)
def test_what_a_benchmark_continues_is_read_before_it_measures(tmp_path, values, says):
    path = tmp_path / "numbers.json"

    def read(found):
        return [f"{row['a']:.2f}" + str(len(row["b"])) for row in found["rows"]]

    assert begun(None, read) is None and begun(path, read) is None
    path.write_text(json.dumps(NUMBERS))
    assert begun(path, read) == NUMBERS
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=rf"numbers\.json: {says}"):
        begun(path, read)


def test_sampled_texts_are_told_apart_in_the_table_where_they_were_tested():
    rows = result_rows()
    assert "same distribution" not in sampling_table(rows)
    tested = next(row for row in rows if row["kind"] == "sampling" and row["temperature"] == 1)
    tested["texts_p_value"] = 0.1734
    head, _, *lines = sampling_table(rows).splitlines()
    assert head.split("|")[-2].strip() == "p, same distribution"
    assert [line.split("|")[-2].strip() for line in lines].count("0.173") == 1
    assert {line.split("|")[-2].strip() for line in lines} == {"0.173", ""}
