"""The paper's figures: what they say of made-up rows, what they refuse, and that committed ones have not drifted."""

import functools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

from tests.reporting import made_up_study
from tests.reporting import made_up_sweeps as made_up
from tests.reporting.test_figures import texts
from zaya_jax.architecture import preset
from zaya_jax.costs.flops import parameter_count
from zaya_jax.reporting.paper import published, stability
from zaya_jax.reporting.paper.ablations import block_size, masking, negative_control
from zaya_jax.reporting.paper.benchmarks import anchors, flat_tokens, free_slots, strategies
from zaya_jax.reporting.paper.figures import FIGURES, draw, write
from zaya_jax.reporting.paper.rivals import rivals, rivals_training
from zaya_jax.reporting.paper.roofline import roofline
from zaya_jax.reporting.paper.samplers import beta, pass_at_16, speedup
from zaya_jax.reporting.paper.sweep_rows import MissingData, conditions, matched, with_block_size, with_same_anchors
from zaya_jax.reporting.plots import style
from zaya_jax.reporting.results import write_sweep
from zaya_jax.reporting.tables import stability as stability_tables

ROOT = Path(__file__).parents[2]
BENCH = {
    name: json.loads((ROOT / "results" / "bench" / f"{name}.json").read_text())
    for name in ("samplers", "forward", "few_experts")
}
DRAWN = {
    "pass_at_16": lambda: pass_at_16(made_up.study()),
    "speedup": lambda: speedup(made_up.study()),
    "strategies": lambda: strategies(BENCH["samplers"]),
    "masking": lambda: masking(made_up.recipe()),
    "block_size": lambda: block_size(made_up.study(), made_up.study(blocks=(1, 2, 32), seeds=(0,))),
    "beta": lambda: beta(made_up.sampling_options()),
    "free_slots": lambda: free_slots(BENCH["forward"], BENCH["few_experts"]),
    "roofline": roofline,
    "anchors": lambda: anchors(BENCH["samplers"]),
    "negative_control": lambda: negative_control(made_up.architecture()),
    "rivals": lambda: rivals(made_up.rivals()),
    "rivals_training": lambda: rivals_training(made_up.rivals(), made_up.rivals(100, (0,))),
    **{
        f"stability_{name}": functools.partial(getattr(stability, name), made_up_study.study())
        for name in ("noise", "norms", "margin", "exchange", "quality")
    },
}
DRAWN = {name: functools.cache(drawn) for name, drawn in DRAWN.items()}  # looked at by several tests, changed by none


@functools.cache
def committed(name: str):
    """A figure of the committed results, looked at by two tests."""
    return draw(name, ROOT / "results")


def bars(figure, axes: int) -> list[float]:
    """Heights of an axes' bars, in the order they were drawn."""
    return [patch.get_height() for patch in figure.axes[axes].patches]


@pytest.mark.parametrize("name", DRAWN)
def test_every_figure_is_written_with_its_caption_and_nothing_runs_out_of_it(name, tmp_path, monkeypatch):
    drawn = DRAWN[name]()
    figure = drawn.figure
    monkeypatch.setattr(style, "DPI", figure.dpi)  # what is written is what is measured below, laid out once
    path = write(name, drawn, tmp_path / "figures")
    pixels = imread(path)[..., :3]
    assert len(np.unique((pixels * 255).astype(np.uint32) @ (1 << 16, 1 << 8, 1))) > 20
    assert (pixels.min(axis=2) < 0.9).mean() > 0.02
    assert path.with_suffix(".txt").read_text() == drawn.caption + "\n"
    assert "ublished" in drawn.caption  # the paper's values and their source, or that there are none
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, (name, box, width, height)


@pytest.mark.parametrize("name", [n for n, f in FIGURES.items() if f.inputs and "sweeps" in f.inputs[0].path])
def test_footers_of_sweeps_say_what_was_run(name):
    shown = texts(DRAWN[name]().figure)
    for word in ("toy run", "1.06M parameters", "block size", "all branch points", "temperature", "batch 64",
                 "256 prompts", "sampling seed 1000", "Made-Up CPU"):  # fmt: skip
        assert word in shown, word
    if name not in ("masking", "beta"):  # whose made-up rows change no seed
        assert "training seeds 0" in shown


def test_rivals_are_ordered_by_what_a_forward_equivalent_yields():
    drawn = rivals(made_up.rivals())
    left = drawn.figure.axes[0]
    assert [label.get_text() for label in left.get_yticklabels()] == [
        "prompt lookup, no training", "TiDAR, one pass", "DFlash", "DFlash, tree",
    ]  # fmt: skip
    t = 8**0.6 + 0.05  # the mean of two seeds, of which one has 0.1 more
    np.testing.assert_allclose([bar.get_width() for bar in left.patches], [t, t, t / 1.25, t / 1.25])
    assert f"temperature 0 prompt lookup, no training yields most ({t:.2f})" in drawn.caption
    curve = rivals_training(made_up.rivals(), made_up.rivals(100, (0,)))
    lines = curve.figure.axes[0].lines
    assert [list(line.get_xdata()) for line in lines] == [[1e11, 4e11]] * 2  # what trains nothing is on no line


def test_the_margin_of_made_up_runs():
    """An arm that diverges at the larger rate keeps the smaller one; the others stand both."""
    drawn = stability.margin(made_up_study.study())
    left, right = drawn.figure.axes
    largest = {int(line.get_ydata()[0]): line.get_xdata()[0] for line in right.lines if len(line.get_xdata()) == 1}
    assert list(largest.values()) == [0.008, 0.008, 0.004]
    assert [label.get_text() for label in right.get_yticklabels()] == ["AR only", "TiDAR: full mask",
                                                                       "LLaDA-like, no AR loss"]  # fmt: skip
    assert "at most 5%" in drawn.caption and len(left.lines) == 4
    with pytest.raises(MissingData, match="section 'runs'"):
        stability.margin(made_up_study.study() | {"runs": []})
    assert "not finite" in stability_tables.runs_table(made_up_study.study())
    assert "2 of 6" in stability_tables.runs_table(made_up_study.study())


def test_published_numbers_agree_with_their_own_averages():
    """TiDAR's paper prints the averages of the masking table; the block sizes stand in two tables."""
    for (kind, size), average in {
        ("random", 4): 45.45,
        ("random", 8): 45.68,
        ("full", 4): 48.42,
        ("full", 8): 48.94,
    }.items():
        assert published.MASKING[kind, size].average == pytest.approx(average, abs=0.006)
    for size in (4, 8):
        assert published.MASKING["full", size] == published.BLOCK_SIZES[size]
    assert published.BLOCK_SIZES[16].tokens_per_forward == 6.97


def test_pass_at_16_shows_every_sampler_and_the_differences():
    drawn = pass_at_16(made_up.study())
    columns = [axis.get_title("left") for axis in drawn.figure.axes[:3]]
    assert columns == ["block size 4", "block size 8", "block size 16"]
    assert len(bars(drawn.figure, 0)) == 3 * 2  # samplers x tasks
    assert np.mean([0.85, 0.84, 0.83]) == pytest.approx(bars(drawn.figure, 0)[0])  # AR, mean over seeds
    assert "lossless: mean difference +0.40 points; 18 of 18 intervals contain 0" in drawn.caption
    assert "mixing: mean difference -5.00 points; 0 of 18 intervals contain 0" in drawn.caption
    assert "no numeric table is public" in drawn.caption


def test_speedup_stands_beside_the_published_pair():
    drawn = speedup(made_up.study())
    shown = texts(drawn.figure)
    assert "temperature not stated" in shown and "block size 16" in shown
    heights = bars(drawn.figure, 0)
    assert [h for i, h in enumerate(heights) if i % 5 == 0] == [1.0, 4.6, 7.7]  # of five groups the first
    assert "theoretical" in drawn.caption and "query tokens per forward 272" in drawn.caption
    hatched = [patch.get_hatch() for patch in drawn.figure.axes[0].patches]
    assert [bool(h) for h in hatched] == [i % 5 == 0 for i in range(15)]


def test_speedup_takes_the_plain_average_where_several_betas_were_mixed():
    rows = made_up.study(blocks=(16,))
    more = [r | {"beta": 0.9, "tokens_per_forward": 50.0} for r in rows if r["sampler"] == "mix_stale"]
    assert max(bars(speedup(rows + more).figure, 0)) < 10


def test_masking_compares_one_setting():
    drawn = masking(made_up.recipe())
    assert len(drawn.figure.axes) == 4
    full, random = np.split(np.array(bars(drawn.figure, 0)), 2)
    np.testing.assert_allclose(full - random, 0.5)
    assert "convert.objective.alpha = 1" in texts(drawn.figure)
    assert "random B=4 T 3.42, average 45.45%" in drawn.caption


def test_block_sizes_of_a_second_sweep_are_a_series_of_their_own():
    alone = texts(block_size(made_up.study()).figure)
    assert (
        "block_size sweep" not in alone
        and "study," not in alone
        and "published: TiDAR 1.5B" in alone
        and "6.97" in alone
    )
    assert "block_size sweep, all branch points: countdown" in texts(DRAWN["block_size"]().figure)


def test_budgets_of_anchors_are_not_mixed():
    rows = made_up.study(blocks=(4, 16))
    few = [
        r | {"anchors": "1 7 9", "tokens_per_forward": 2.0} if r["anchors"] and r["block_size"] == 16 else r
        for r in rows
    ]
    kept = with_same_anchors(few + [r for r in rows if r["changes"]["seed"] == 0])  # more of few than of all
    assert {r["anchors"] for r in kept if r["block_size"] == 16} == {"1 7 9"}
    assert {r["anchors"] for r in kept if r["block_size"] == 4} == {"all"}
    assert len(with_same_anchors(few)) == len(rows)
    assert "3 / all branch points" in conditions(kept)
    one = made_up.sampling({}, "lossless", "countdown", 0, 3, anchors="1 2 3")
    assert "all branch points" in conditions([one])
    assert "3 / all branch points" in block_size(few).caption


def test_beta_leaves_out_few_anchors_and_other_drafts():
    drawn = beta(made_up.sampling_options())
    lossless = [line for line in drawn.figure.axes[0].lines if line.get_label() == "lossless"]
    assert lossless[0].get_xdata() == pytest.approx(16**0.6 * 0.85)
    assert "99.0" not in drawn.caption
    assert "beta 0.25: T 5.50, pass@1 68.1%, pass@16 88.8%" in drawn.caption
    assert {"0", "0.25", "0.5", "0.75", "1"} <= {t.get_text() for t in drawn.figure.axes[0].texts}
    assert lossless[0].get_markerfacecolor() == "none"  # a beta's dot may lie within


@pytest.mark.parametrize("top", [0.17, 0.06, 1.0, 0.004, 0.55])
def test_labels_of_shares_are_their_ticks(top):
    axes = Figure().subplots()
    axes.plot([0, 1], [0, top])
    style.in_percent(axes.yaxis)
    FigureCanvasAgg(axes.figure).draw()
    for tick, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True):
        assert float(label.get_text().replace("\N{MINUS SIGN}", "-").rstrip("%")) == pytest.approx(100 * tick)


def test_keys_of_legends_tell_dashed_lines_from_solid_ones():
    legends = DRAWN["block_size"]().figure.legends
    assert legends and all(legend.handlelength >= 3 for legend in legends)


def test_strategies_say_whose_quality_is_of_what():
    shown = texts(DRAWN["strategies"]().figure)
    assert "Ours: accuracy on addition;\npublished: mean of HumanEval, MBPP, GSM8K" in shown


def test_speedups_are_drawn_with_intervals_or_not_at_all():
    rows = made_up.study(blocks=(16,))
    bare = speedup(rows)
    assert len(bare.figure.axes) == 1 and "no interval" in bare.caption and "(3 runs)" in bare.caption
    timed = [row | {"speedup_low": 0.2, "speedup_high": 0.4} for row in rows]
    drawn = speedup(timed)
    assert len(drawn.figure.axes) == 2 and "no interval" not in drawn.caption
    assert any(list(line.get_ydata()) == [0.2, 0.4] for line in drawn.figure.axes[1].lines)


def test_negative_control_compares_cca_with_layout_unaware_cca_alone():
    drawn = negative_control(made_up.architecture())
    assert bars(drawn.figure, 0) == pytest.approx([0.3105, 0.3105])  # text, row; nothing of grouped attention
    assert bars(drawn.figure, 1) == pytest.approx([5.0, 4.5, 1.6, 1.1])
    assert len(drawn.figure.axes) == 3
    title = texts(drawn.figure).replace("\N{NO-BREAK SPACE}", " ").replace("\n", " ")
    assert "list programs T 1.60 against 5.00, AR loss 0.310 against 0.310" in title  # as the bars say, task by task
    doubled = [
        row | {"source": "other"} | {name: 2 * row[name] for name in ("ar_loss", "tokens_per_forward") if row.get(name)}
        for row in made_up.architecture()
    ]
    title = texts(negative_control([*made_up.architecture(), *doubled]).figure).replace("\N{NO-BREAK SPACE}", " ")
    assert "list programs T 1.60 against 5.00, AR loss 0.310 against 0.310; " in title.replace("\n", " ")
    assert "other T 3.20 against 10.00, AR loss 0.621 against 0.621" in title.replace("\n", " ")
    without = [row | {"draft_accuracy_by_slot": None} for row in made_up.architecture()]
    assert len(negative_control(without).figure.axes) == 2


def test_strategies_stand_beside_the_same_lines_of_tidar():
    shown = texts(strategies(BENCH["samplers"]).figure)
    for number in ("7.07", "3.59", "2.63", "34.45", "53.90", "16.5"):
        assert number in shown


@pytest.mark.parametrize("name", [name for name in FIGURES if name != "roofline"])  # which shows no run
def test_every_footer_of_a_committed_figure_names_the_training_seed(name):
    footer = texts(committed(name).figure).replace("\n", " ")
    assert re.search(r"training seeds? \d", footer), footer


def test_a_benchmarks_training_seed_is_the_files_or_its_models_runs(tmp_path):
    """Of before benchmarks wrote it, the path of the checkpoint leads to the run, wherever the results lie now."""
    numbers = json.loads((ROOT / "results" / "bench" / "samplers.json").read_text())
    model = {key: value for key, value in numbers["model"].items() if key != "training_seed"}
    (tmp_path / "bench").mkdir()
    (tmp_path / "samplers").mkdir()
    (tmp_path / "samplers" / "config.json").write_text(json.dumps({"seed": 7}))
    for added, told in (
        ({"checkpoint": "/elsewhere/results/samplers/model"}, "training seed 7"),
        ({"checkpoint": "/elsewhere/results/samplers/model", "training_seed": 3}, "training seed 3"),
        ({"checkpoint": "/elsewhere/model"}, "training seed not recorded"),
    ):
        (tmp_path / "bench" / "samplers.json").write_text(json.dumps(numbers | {"model": model | added}))
        assert told in texts(draw("anchors", tmp_path).figure).replace("\n", " ")


def test_flat_acceptance_gives_the_notes_values():
    """docs/method.md#branch-points: all, one, three and five anchors at block 16."""
    low, high = flat_tokens(0.787), flat_tokens(0.89)
    assert [low[k] for k in (16, 1, 3)] == pytest.approx([4.59, 4.34, 4.54], abs=0.011)
    assert [high[k] for k in (16, 1, 3, 5)] == pytest.approx([7.68, 6.16, 7.30, 7.50], abs=0.011)


def test_roofline_says_its_formula_inputs_and_sources():
    drawn = roofline()
    for said in ("ridge / intensity", "3.85 blocks", "4.92 blocks", "4.61 blocks", "10.3 at 16 tokens",
                 "15.7 at 64 tokens", "16.0 at 272 tokens", "5.3 TB/s", "1307.4 TFLOP/s", "2405.04434",
                 "docs/hardware.md#peaks"):  # fmt: skip
        assert said in drawn.caption, said
    assert "a bound, nothing was run" in texts(drawn.figure)


@pytest.mark.parametrize(
    ("call", "lacks"),
    [
        (lambda: pass_at_16([r for r in made_up.study() if r["sampler"] != "mix_stale"]), "sampler mix_stale"),
        (lambda: pass_at_16([r for r in made_up.study() if not r["temperature"]]), "pass_at_16"),
        (lambda: speedup([]), "rows of kind sampling"),
        (lambda: masking([r for r in made_up.recipe() if r["changes"][made_up.MASKING] == "full"]), "full and random"),
        (lambda: block_size(made_up.study(blocks=(8,))), "more than one block size"),
        (lambda: beta(made_up.study()), "more than one beta"),
        (lambda: beta([r for r in made_up.sampling_options() if r["sampler"] != "mix_stale"]), "sampler mix_stale"),
        (lambda: negative_control([r for r in made_up.architecture() if "row" not in r["run"]]), "text and row"),
        (lambda: negative_control([r for r in made_up.architecture() if r["kind"] == "sampling"]), "likelihood"),
        (lambda: strategies({"hardware": "x"}), "section 'strategies'"),
        (lambda: anchors(BENCH["samplers"] | {"anchors": BENCH["samplers"]["anchors"][:1]}), "every accepted length"),
        (lambda: free_slots(BENCH["forward"], {"rows": BENCH["forward"]["rows"][:0]}), "section 'rows'"),
    ],
)
def test_missing_rows_are_named(call, lacks):
    with pytest.raises(MissingData, match=lacks):
        call()


def test_missing_files_name_the_command(tmp_path):
    command = "python -m experiments.sweep --config=configs/sweeps/study.py --workdir=results/sweeps/study"
    with pytest.raises(FileNotFoundError, match="no such file") as error:
        draw("pass_at_16", tmp_path)
    assert command in str(error.value) and "\n" not in str(error.value)
    write_made_up(tmp_path, "study", made_up.study(blocks=(8,)))
    with pytest.raises(ValueError, match="more than one block size") as error:
        draw("block_size", tmp_path)
    assert command in str(error.value) and str(tmp_path / "sweeps/study/results.csv") in str(error.value)


def test_a_sweep_is_drawn_from_its_file(tmp_path):
    write_made_up(tmp_path, "study", made_up.study())
    assert "parameters not recorded" in texts(draw("pass_at_16", tmp_path).figure)
    run = tmp_path / "sweeps" / "study" / "runs" / made_up.study()[0]["run"]
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"model": {"preset": "zaya1_300k"}}))
    size = parameter_count(preset("zaya1_300k")).total
    assert f"{size / 1e6:.3g}M parameters" in texts(draw("pass_at_16", tmp_path).figure)
    assert draw("pass_at_16", tmp_path).caption == pass_at_16(made_up.study()).caption
    assert draw("block_size", tmp_path).caption == block_size(made_up.study()).caption


def write_made_up(results: Path, name: str, rows: list[dict]) -> None:
    """The rows as the sweep's own writer leaves them."""
    (results / "sweeps" / name).mkdir(parents=True)
    runs: dict = {}
    for row in rows:
        cells = {k: v for k, v in row.items() if k not in ("run", "changes", "parameters")}
        runs.setdefault(row["run"], (row["changes"], []))[1].append(cells)
    write_sweep(results / "sweeps" / name / "results.csv", runs)


def test_autoregressive_rows_go_with_the_block_size_of_their_run():
    rows = with_block_size(made_up.study(blocks=(4, 8), seeds=(0,)))
    for block in (4, 8):
        assert {r["sampler"] for r in rows if r["block_size"] == block} == {"autoregressive", "lossless", "mix_stale"}


def test_matched_rows_differ_in_one_field():
    def row(**changes):
        return {"changes": {"evaluate.samples": 4} | changes, "kind": "sampling"}

    rows = [row(a=1, x=9), row(a=1, seed=3), row(a=2, seed=4), row(a=2, b=5), row(seed=5)]
    by, setting = matched(rows, "a", (1, 2), usual=1)
    assert setting == ""
    assert by == {
        1: [rows[1], rows[4]],
        2: [rows[2]],
    }  # not those beside x or b; the unchanged job is of the usual value
    with pytest.raises(MissingData, match="a = 1 and 3"):
        matched(rows, "a", (1, 3), usual=1)


def test_a_large_model_is_no_toy():
    row = made_up.sampling({}, "lossless", "countdown", 0, 8)
    assert "toy run" in conditions([row]) and "toy run" not in conditions([row | {"parameters": 2e8}])


@pytest.mark.parametrize("path", sorted((ROOT / "results" / "figures").glob("*.txt")), ids=lambda path: path.stem)
def test_committed_captions_have_not_drifted(path):
    assert committed(path.stem).caption + "\n" == path.read_text()
    assert path.with_suffix(".png").exists()
