"""The report says what the run's files say, nothing else, in one safe file."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.reporting.made_up_run import CONFIG, ENVIRONMENT, result_rows
from zaya_jax.costs.flops import drafter_count
from zaya_jax.errors import UserError
from zaya_jax.reporting.html.report import redraw, write_report
from zaya_jax.reporting.plots.plots import CAPTIONS, FIGURES
from zaya_jax.reporting.results import write_results
from zaya_jax.reporting.run_files import load_run
from zaya_jax.training.drafter_objective import FROZEN_TARGET, DrafterObjective

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63606060000000040001f61738550000"
    "000049454e44ae426082"
)
FILES = ("results.csv", "metrics.jsonl", "samples.jsonl", "environment.json", "config.json")  # those beside it
VOID = {"meta", "img", "br"}
COMMITTED = Path(__file__).parents[2] / "results" / "quickstart"


class Balanced(HTMLParser):
    """Fails on tags that do not nest, scripts, and anything loaded from elsewhere."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        assert tag not in ("script", "link", "iframe")
        for name, value in attrs:
            assert not name.startswith("on")
            assert name != "src" or value.startswith("data:image/png;base64,")
            assert name != "href" or value in FILES
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def report(path, figures=()) -> str:
    text = write_report(load_run(path), figures, path / "report.html").read_text()
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    return text


def test_report_holds_the_numbers_of_the_table(make_run, tmp_path):
    figure = tmp_path / "forward_cost.png"
    figure.write_bytes(PIXEL)
    text = report(make_run(), [figure])
    for number in (
        "3.14",
        "2.99",
        "0.31x",
        "88.1%",
        "85.0 – 90.6%",
        "62.0%",
        "1.8350",
        "+2.22%",
        "13.7 times",
        "366,627",
    ):
        assert number in text
    for words in (
        "This is a toy run",
        "drafting is not faster (speed-up below 1)",
        "batch 64",
        "Made-Up CPU",
        "pretrain 2.7 min",
    ):
        assert words in text
    assert text.count("data:image/png;base64,") == 1
    assert "Not in this run" not in text
    assert not (tmp_path / "run" / "report.html.partial").exists()


@pytest.mark.parametrize(
    ("phases", "patterns", "says"),
    [
        (("convert",), ["*", "!*lora*"], "toy run: 369,571 parameters, one seed"),  # the other phases train the rest
        (
            ("pretrain", "convert", "control"),
            ["*", "!*lora*"],
            "369,571 parameters (2,944 trained, 366,627 frozen), one",
        ),
        (
            ("pretrain", "convert", "control"),
            ["layers[0:2]/*"],
            "369,571 parameters (134,497 trained, 235,074 frozen), 3 lay",
        ),
    ],
)
def test_the_report_tells_what_was_trained_from_what_was_frozen(make_run, phases, patterns, says):
    """Adapters count, and are all that is trained where everything else is frozen."""
    run = make_run()
    config = json.loads((run / "config.json").read_text())
    config["model"]["lora_rank"] = 2
    for phase in phases:
        config[phase]["optimizer"] = {"freeze": patterns}
    (run / "config.json").write_text(json.dumps(config))
    assert says in report(run, [])


def test_the_report_counts_a_drafter_beside_a_frozen_model(make_run):
    run = make_run()
    config = json.loads((run / "config.json").read_text())
    objective = DrafterObjective("mtp", block_size=4)
    config["convert"] |= {"objective": dataclasses.asdict(objective), "optimizer": {"freeze": FROZEN_TARGET}}
    for phase in ("pretrain", "control"):
        config[phase]["steps"] = 0
    (run / "config.json").write_text(json.dumps(config))
    drafter = drafter_count(load_run(run).model.replace(drafter=objective.drafter))
    assert 0 < drafter < 100_000
    assert f"{366_627 + drafter:,} parameters ({drafter:,} trained, 366,627 frozen), one" in report(run, [])


def test_a_drafter_that_cannot_be_is_one_line(make_run):
    run = make_run()
    config = json.loads((run / "config.json").read_text())
    config["convert"]["objective"] = {"kind": "mtp", "block_size": 1}
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config\.json: convert\.objective: Objective\.block_size: got 1"):
        report(run, [])


def test_a_pattern_that_freezes_nothing_is_one_line(make_run):
    run = make_run()
    config = json.loads((run / "config.json").read_text())
    config["convert"]["optimizer"] = {"freeze": ["nothing"]}
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError, match=r"config\.json: convert\.optimizer: OptimizerConfig\.freeze: 'nothing' matches"
    ):
        report(run, [])


def test_figures_are_described_to_those_who_cannot_see_them(make_run, tmp_path):
    for name in CAPTIONS:
        (tmp_path / f"{name}.png").write_bytes(PIXEL)
    text = report(make_run(), [tmp_path / f"{name}.png" for name in CAPTIONS])
    described, captions = re.findall(r'alt="([^"]+)"', text), re.findall(r"<figcaption>(.*?)</figcaption>", text)
    assert len(set(described)) == len(set(captions)) == len(CAPTIONS)
    assert not any(caption.startswith(words) for words, caption in zip(described, captions, strict=True))
    assert "prefers-color-scheme: dark) { figure img" in text
    assert '<a href="results.csv">' in text and "experiments.evaluate --checkpoint=WORKDIR/checkpoints/convert" in text


def test_speedups_without_intervals_are_called_so(make_run, tmp_path):
    bare = report(make_run())
    assert "one measurement without an interval" in bare and "rate (one measurement)" in bare
    timed = [
        r | {"speedup_low": 0.25, "speedup_high": 0.36} if r.get("sampler") in ("lossless", "mix_stale") else r
        for r in result_rows()
    ]
    write_results(tmp_path / "run" / "results.csv", timed)
    text = report(tmp_path / "run")
    assert "0.31x (0.25 – 0.36)" in text and "95% interval 0.25 to 0.36" in text and "one measurement" not in text


def test_a_gain_is_called_a_gain(make_run):
    rows = [r | {"speedup": 1.7} if r.get("sampler") == "lossless" else r for r in result_rows()]
    path = make_run(results=rows)
    (path / "environment.json").write_text(json.dumps(ENVIRONMENT | {"device": "NVIDIA H200"}))
    text = report(path)
    assert "On this device (NVIDIA H200) lossless drafting gains time" in text
    assert "1.70x the autoregressive rate" in text
    assert "is not faster" not in text


def test_samples_are_escaped_and_cut_where_forwards_ended(make_run):
    nasty = "<script>alert('&')</script>"
    sample = {
        "sampler": "lossless",
        "temperature": 0,
        "prompt": nasty,
        "pieces": ["<b>", "\n", "\tx y", ""],
        "correct": None,
    }
    text = report(make_run(samples=[sample | {"accepted": [1, 3]}]))
    assert "&lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt;" in text
    runs = re.findall(r'<span class="run ([ab])">(.*?)</span>(?=<span class="run|</div>)', text, re.DOTALL)[-2:]
    assert [kind for kind, _ in runs] == ["a", "b"]
    assert runs[0][1] == "&lt;b&gt;"
    for mark in ("↵", "→", "·", "∅"):
        assert mark in runs[1][1]


def test_config_is_escaped(make_run):
    path = make_run()
    (path / "config.json").write_text(json.dumps(CONFIG | {"name": "<i>$name</i>"}))
    assert "<i>" not in report(path)


@pytest.mark.parametrize("stages", [(), ("pretrain",), ("pretrain", "convert")])
def test_partial_runs_say_what_is_missing(make_run, stages):
    path = make_run(stages=stages)
    for name in ("results.csv", "samples.jsonl", "environment.json"):
        (path / name).unlink()
    text = report(path)
    assert "Not in this run: environment.json (no such file); results.csv (no such file)" in text
    assert "stage control" in text
    assert "nothing can be said about speed" in text
    assert "<h2>Sampling</h2>" not in text


@pytest.mark.parametrize("kept", [{"cost"}, {"likelihood"}, {"sampling"}])
def test_partial_results(make_run, kept):
    rows = [r for r in result_rows() if r["kind"] in kept and r.get("model") != "control"]
    text = report(make_run(results=rows))
    assert ("<h2>Sampling</h2>" in text) == ("sampling" in kept)
    assert ("<h2>Likelihood</h2>" in text) == ("likelihood" in kept)
    assert "rows (none in results.csv)" in text


def test_a_bare_config_is_enough(make_run):
    path = make_run(stages=(), results=[], samples=[])
    (path / "config.json").write_text("{}")
    (path / "environment.json").write_text("{}")
    assert "a model of unknown size" in report(path)


def test_a_missing_figure_is_named(make_run):
    path = make_run()
    with pytest.raises(FileNotFoundError, match=r"gone\.png: no such file"):
        write_report(load_run(path), [path / "gone.png"], path / "report.html")
    assert not (path / "report.html").exists()


def test_the_committed_report_has_not_drifted(tmp_path):
    """It is what today's code writes of the run, with the figures that lie beside it."""
    run = load_run(COMMITTED)
    figures = [COMMITTED / "figures" / f"{name}.png" for name in FIGURES]
    made = write_report(run, [path for path in figures if path.exists()], tmp_path / "report.html")
    assert made.read_text() == (COMMITTED / "report.html").read_text(), "python -m experiments.figures reports"


@pytest.mark.slow
def test_reports_below_a_folder_are_drawn_anew(make_run, tmp_path):
    """Of the runs that have figures; the report where there is one."""
    path = make_run()
    assert redraw(tmp_path) == []
    (path / "figures").mkdir()
    drawn = redraw(tmp_path)
    assert drawn and all(each.parent == path / "figures" for each in drawn)
    (path / "report.html").write_text("old")
    assert redraw(tmp_path)[-1] == path / "report.html" and (path / "report.html").read_text() != "old"


def test_drafters_beside_the_model_are_said_where_it_does_not_draft_itself(make_run):
    """The fastest at each temperature, by name: they are lossless too."""
    rows = [row for row in result_rows() if row.get("sampler") not in ("lossless", "mix_stale")]
    first = next(row for row in rows if row["kind"] == "sampling" and row["temperature"] == 0)
    drafted = first | {"draft_length": 3, "tokens_per_forward": 2.0}
    rows += [drafted | {"sampler": "ngram", "speedup": 1.25}, drafted | {"sampler": "eagle3", "speedup": 1.5}]
    run = make_run(results=rows)
    text = report(run)
    assert "at temperature 0, by eagle3 (the fastest of the drafters tried), a forward yields 2.00 tokens" in text
    assert "1.50x the autoregressive rate" in text and "1.25x the autoregressive rate" not in text
    write_results(run / "results.csv", [row for row in rows if row.get("draft_length") is None])
    assert "No lossless sampling was measured yet" in report(run)
