"""Figures are drawn, are not blank, and say what they show; partial runs give fewer of them."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from tests.reporting.made_up_run import result_rows
from zaya_jax.architecture import Layout
from zaya_jax.reporting.plots import style
from zaya_jax.reporting.plots.layout_plot import CLEAN, HIDDEN, OWN, draw_visibility
from zaya_jax.reporting.plots.plots import CAPTIONS, FIGURES, caption, draw_figures
from zaya_jax.reporting.plots.training_plots import clean_tokens
from zaya_jax.reporting.results import write_results
from zaya_jax.reporting.run_files import load_run


def texts(figure: Figure) -> str:
    return " ".join(t.get_text() for t in figure.findobj(lambda artist: hasattr(artist, "get_text")))


@pytest.mark.slow
def test_all_figures_are_written_and_not_blank(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr(style, "DPI", 60)  # quicker; what is drawn is the same
    paths = draw_figures(load_run(make_run()), tmp_path / "figures")
    assert [path.stem for path in paths] == list(FIGURES) == list(CAPTIONS)
    for path in paths:
        pixels = imread(path)[..., :3]
        assert pixels.shape[0] > 200
        assert pixels.shape[1] > 500
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
        assert (pixels.min(axis=2) < 0.9).mean() > 0.02


def test_tokens_per_forward_are_never_shown_alone(make_run):
    figure = FIGURES["tokens_per_forward"](load_run(make_run()))
    shown = texts(figure)
    for word in (
        "3.14",
        "72",
        "0.31",
        "88.1%",
        "temperature 0",
        "temperature 1",
        "block size 8",
        "batch 64",
        "toy run",
    ):
        assert word in shown
    assert len(figure.axes) == 4


def test_cost_names_free_and_break_even(make_run):
    shown = texts(FIGURES["forward_cost"](load_run(make_run())))
    assert "free" in shown
    assert "cost = T = 3.14 (lossless, temperature 0, block size 8)" in shown
    assert "13.7x" in shown


def test_tokens_of_forwards_are_those_of_all_prompts(make_run):
    counts = [0, 100, 50, 20]
    rows = [r | {"forwards_by_tokens": counts} if r["kind"] == "sampling" else r for r in result_rows()]
    run = load_run(make_run(results=rows))
    shown = texts(FIGURES["accepted_per_forward"](run))
    assert "lossless: mean 1.53 over 170 forwards" in shown and "all 512 prompts" in shown
    assert "Counted over all 512 prompts" in caption("accepted_per_forward", run)


def test_a_run_without_those_counts_says_of_how_many_prompts_it_tells(make_run):
    run = load_run(make_run())
    kept = len({s["prompt"] for s in run.samples})
    assert f"the kept samples of {kept} prompts, not of all" in texts(FIGURES["accepted_per_forward"](run))
    assert f"for the {kept} of 512 prompts" in caption("accepted_per_forward", run)


def test_one_speedup_is_not_drawn_like_a_finding(make_run, tmp_path):
    bare = FIGURES["tokens_per_forward"](load_run(make_run()))
    assert "(one run, no interval)" in texts(bare) and "speed-up" not in texts(bare)
    assert all(patch.get_hatch() for patch in bare.axes[2].patches)
    timed = [
        r | {"speedup_low": 0.25, "speedup_high": 0.36} if r.get("sampler") in ("lossless", "mix_stale") else r
        for r in result_rows()
    ]
    write_results(tmp_path / "run" / "results.csv", timed)
    drawn = FIGURES["tokens_per_forward"](load_run(tmp_path / "run"))
    assert "speed-up 0.31x (0.25 to 0.36)" in texts(drawn).replace("\n", " ")
    assert not any(patch.get_hatch() for patch in drawn.axes[2].patches)


def test_a_sweep_gets_a_bar_for_each_block_size(make_run):
    rows = result_rows()
    more = [
        r | {"block_size": 4, "tokens_per_forward": 2.2}
        for r in rows
        if r["kind"] == "sampling" and r["block_size"] == 8
    ]
    shown = texts(FIGURES["tokens_per_forward"](load_run(make_run(results=rows + more))))
    assert "lossless · block size 4" in shown
    assert "lossless · block size 8" in shown


def test_convert_and_control_start_where_pretraining_ended(make_run):
    x, unit = clean_tokens(load_run(make_run()))
    assert unit == "million clean token slots"
    assert x("convert", 0) == x("control", 0) == x("pretrain", 900) == pytest.approx(900 * 16 * 128 / 1e6)


def test_phases_of_any_list_follow_the_one_they_start_from(make_run):
    path = make_run(stages=("pretrain", "convert", "control"))
    config = json.loads((path / "config.json").read_text())
    config["phases"] = ["pretrain", "convert", "control"]
    config["convert"]["row_length"] = 256
    config["control"]["start"] = "convert"
    (path / "config.json").write_text(json.dumps(config))
    run = load_run(path)
    x, _ = clean_tokens(run)
    assert run.path_to("control") == ("pretrain", "convert", "control")
    assert x("control", 0) == pytest.approx((900 * 128 + 1000 * 256) * 16 / 1e6)
    assert "million clean token slots (pretrain, then convert, then control)" in texts(FIGURES["training_curves"](run))

    config["pretrain"]["steps"] = 0
    config["evaluate"]["phase"] = "other"
    (path / "config.json").write_text(json.dumps(config))
    run = load_run(path)
    assert (run.phases, run.sampled, run.path_to("convert")) == (("convert", "control"), "other", ("convert",))
    config["phases"] = "convert"
    (path / "config.json").write_text(json.dumps(config))
    assert load_run(path).phases == ("convert",)
    config["phases"] = 3
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json.*phases: got '?3'?, should be list"):
        load_run(path)


def test_layout_picture_paints_the_rule():
    axes = Figure().subplots()
    layout = Layout.tidar(np.zeros((1, 4), np.int32), 2)
    draw_visibility(axes, layout)
    painted = np.asarray(axes.images[0].get_array())
    marks = {".": HIDDEN, "#": CLEAN, "o": OWN}
    rendered = [[marks[c] for c in line.split()[-1]] for line in layout.render().splitlines()]
    np.testing.assert_array_equal(painted, rendered)


@pytest.mark.parametrize("stages", [(), ("pretrain",), ("pretrain", "convert"), ("convert",)])
def test_partial_runs_give_fewer_figures(make_run, tmp_path, stages):
    run = load_run(make_run(stages=stages, results=[], samples=[]))
    drawn = {name for name, draw in FIGURES.items() if draw(run) is not None}
    expected = {"layout"} | ({"training_curves", "expert_load"} if stages else set())
    assert drawn == expected | ({"draft_accuracy"} if "convert" in stages else set())
