"""Metrics beyond metrics.jsonl; traces; speed in FLOPs."""

import importlib.util
import struct
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from zaya_jax.training import loop
from zaya_jax.training.logging.metrics import MetricWriter, read_metrics
from zaya_jax.training.logging.sinks import PACKAGES, check_sinks, curves, open_sinks
from zaya_jax.training.logging.trace import TRACED, WARM_UP, StepTrace

LINE = {"loss": 1.5, "by_slot": [0.5, 0.25], "table": [[1.0], [2.0]], "none": None}
CURVES = {"loss": 1.5, "by_slot/0": 0.5, "by_slot/1": 0.25}


def test_scalars_and_lists_are_curves():
    assert curves(LINE) == CURVES


def scalars(folder) -> list[tuple[str, int, float]]:
    """(name, step, value) of the event files of a folder, oldest first."""
    from tensorboardX.proto.event_pb2 import Event

    out = []
    for path in sorted(folder.glob("events*")):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + size])
            out += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            if event.session_log.status:  # "from this step on, forget what came before"
                out = [(name, step, value) for name, step, value in out if step < event.step]
            data = data[16 + size :]
    return out


def test_tensorboard_gets_every_curve_and_forgets_what_a_resumed_run_repeats(tmp_path):
    for first, value in ((1, 1.5), (3, 2.5)):
        sinks = open_sinks(["tensorboard"], tmp_path, "run", {})
        writer = MetricWriter(tmp_path / "metrics.jsonl", sinks)
        writer.rewind("convert", first - 1)
        for step in range(first, first + 4):
            writer.write("convert", step, {**LINE, "loss": value, "none": 0.0})
        writer.write("convert/validation", first + 3, {"loss": value})
        for sink in sinks:
            sink.close()
    found = scalars(tmp_path / "tensorboard" / "convert")
    assert [(step, value) for name, step, value in found if name == "loss"] == [
        (1, 1.5), (2, 1.5), (3, 2.5), (4, 2.5), (5, 2.5), (6, 2.5)
    ]  # fmt: skip
    assert {name for name, _, _ in found} == set(CURVES) | {"none"}
    assert scalars(tmp_path / "tensorboard" / "convert" / "validation") == [("loss", 6, 2.5)]


class FakeRun:
    """Takes what wandb's Run takes, in wandb's words."""

    def __init__(self, **options):
        self.options, self.lines, self.axes, self.finished = options, [], [], False

    def define_metric(self, name, step_metric):
        self.axes.append((name, step_metric))

    def log(self, line):
        self.lines.append(line)

    def finish(self):
        self.finished = True


def test_wandb_gets_one_run_with_an_axis_a_stage(tmp_path, monkeypatch):
    runs = []
    fake = types.ModuleType("wandb")
    fake.__spec__ = importlib.util.spec_from_loader("wandb", None)
    fake.init = lambda **options: runs.append(FakeRun(**options)) or runs[-1]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for _ in range(2):
        (sink,) = open_sinks(["wandb"], tmp_path, "quickstart", {"seed": 0})
        sink.rewind("pretrain", 0)
        sink.write("pretrain", 10, LINE)
        sink.write("convert", 1, LINE)
        sink.write("convert", 2, LINE)
        sink.close()
    one, two = runs
    assert one.options["id"] == two.options["id"] and one.options["resume"] == "allow"
    assert one.options["name"] == "quickstart" and one.options["config"] == {"seed": 0}
    assert one.axes == [("pretrain/*", "pretrain/step"), ("convert/*", "convert/step")]
    assert one.lines[0] == {"pretrain/step": 10, **{f"pretrain/{name}": value for name, value in CURVES.items()}}
    assert [line.get("convert/step") for line in one.lines] == [None, 1, 2]
    assert one.finished


def test_a_missing_package_or_an_unknown_sink_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, package in PACKAGES.items():
        with pytest.raises(ValueError) as error:
            check_sinks([name])
        assert str(error.value) == (
            f"sinks: '{name}' needs {package}, which is not installed: pip install 'zaya_jax[{name}]'"
        )
    with pytest.raises(ValueError, match=r"sinks: got 'csv', may be any of \['tensorboard', 'wandb'\]"):
        check_sinks(["csv"])


def test_rewinding_drops_a_stage_with_its_validation_and_no_other(tmp_path):
    writer = MetricWriter(tmp_path / "metrics.jsonl")
    for stage in ("convert", "convert/validation", "converted", "pretrain"):
        for step in (2, 4):
            writer.write(stage, step, {"loss": 1.0})
            writer.bad_step(stage, step, {"loss": "nan"})
    writer.rewind("convert", 2)
    kept = [("convert", 2), ("convert/validation", 2)] + [(s, n) for s in ("converted", "pretrain") for n in (2, 4)]
    for path in (writer.path, writer.bad_steps_path):
        assert [(line["stage"], line["step"]) for line in read_metrics(path)] == kept


def test_a_trace_of_steady_steps_is_written(tmp_path, monkeypatch):
    """Real files; and it starts and stops where it says, in a run that ends early too."""
    real, calls, current = jax.profiler, [], 0
    monkeypatch.setattr(real, "start_trace", lambda *a, f=real.start_trace: (calls.append(("start", current)), f(*a)))
    monkeypatch.setattr(real, "stop_trace", lambda f=real.stop_trace: (calls.append(("stop", current)), f()))
    for steps, folder in ((20, "whole"), (4, "short")):
        with StepTrace(tmp_path / folder, done=10) as trace:
            for current in range(11, 11 + steps):
                trace.before(current)
                trace.after(current, jnp.ones(3) * current)
        assert list((tmp_path / folder).rglob("*.xplane.pb"))
    first = 11 + WARM_UP
    assert calls == [("start", first), ("stop", first + TRACED - 1), ("start", first), ("stop", 14)]
    with StepTrace(None, 0) as trace:
        trace.before(WARM_UP + 1)
    assert len(calls) == 4


def test_speed_in_tokens_flops_and_share_of_the_peak(monkeypatch):
    now = 100.0
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now)
    speed = loop._Speed(10, 6e9, 1e10)
    now = 104.0
    assert speed.since_last(14, 50) == {"tokens_per_second": 50, "model_flops_per_second": 6e9, "mfu": 0.6}
    now = 105.0
    speed.restart(14)
    now = 106.0
    assert speed.since_last(16, 50)["model_flops_per_second"] == 12e9
    plain, without_peak = loop._Speed(16, None, None), loop._Speed(16, 6e9, None)
    now = 108.0
    assert plain.since_last(18, 50) == {"tokens_per_second": 50}
    assert without_peak.since_last(18, 50) == {"tokens_per_second": 50, "model_flops_per_second": 6e9}
