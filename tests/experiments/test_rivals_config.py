"""configs/rivals.py: every method at equal FLOPs; one of them from the AR checkpoint to drafts."""

import jax
import numpy as np
import pytest

from configs import rivals
from configs.sweeps import rivals as sweep
from tests.commands import Command
from zaya_jax import SamplerConfig, UserError, Zaya, generate, load_pretrained
from zaya_jax.reporting.results import read_results
from zaya_jax.runs import evaluation
from zaya_jax.runs.configuration import settings
from zaya_jax.runs.configuration.stage_keys import stage_keys
from zaya_jax.runs.jobs import check_jobs, read_jobs
from zaya_jax.runs.stages import step_flops

SMOKE = "--config=configs/rivals.py:smoke,method="


def spent(method: str, budget: str = "flops") -> tuple[int, int, settings.Settings]:
    """(steps, FLOPs of all of them, settings)."""
    setup = settings.read(rivals.get_config(f"method={method},budget={budget}"))
    stage = setup.stages[setup.sampled]
    return stage.phase.steps, step_flops(stage), setup


def test_every_method_spends_tidars_flops():
    steps, flops, _ = spent("tidar")
    trained = [name for name in rivals.METHODS if name != "ngram"]
    for method in trained:
        mine, each, setup = spent(method)
        assert abs(mine * each - steps * flops) <= each / 2, method
        assert {"autoregressive", "ngram"} <= {sampler.name for sampler in setup.samplers}
        assert spent(method, "tokens")[0] == steps
    # a frozen target's forward is a third of what training it costs, so its drafter sees more text
    assert spent("dflash")[0] > spent("ar")[0] / 2 > spent("eagle3")[0] / 2
    assert list(spent("ngram")[2].stages) == ["pretrain"]


def test_methods_share_the_ar_checkpoint_and_no_other():
    keys = {}
    for method in ("ar", "eagle3", "dflash", "dflash_causal", "tidar_lora"):
        config = rivals.get_config(f"method={method}")
        keys[method] = stage_keys(config, settings.read(config))
    assert len({keys[name]["pretrain"] for name in keys if name != "tidar_lora"}) == 1
    assert keys["tidar_lora"]["pretrain"] != keys["ar"]["pretrain"]  # its adapters are there from the beginning
    assert len({key["convert"] for key in keys.values()}) == len(keys)


def test_a_sweep_goes_through_a_configs_arguments(tmp_path):
    jobs = read_jobs(sweep.get_config("seeds=1"))
    assert list(jobs) == [f"method={name}" for name in rivals.METHODS]
    checked = check_jobs("configs/rivals.py:task=countdown", {"a": jobs["method=mtp"]}, tmp_path)["a"]
    assert not checked.mistake and checked.config.convert.objective.kind == "mtp"
    assert checked.with_arguments("configs/rivals.py:task=countdown") == "configs/rivals.py:task=countdown,method=mtp"
    assert checked.with_arguments("configs/rivals.py") == "configs/rivals.py:method=mtp"
    assert checked.values([":method", "seed"]) == {"method": "mtp", "seed": 0}
    assert not any("method" in flag for flag in checked.overrides())


@pytest.mark.parametrize(
    ("method", "change", "line"),
    [
        ("eagle3", dict(freeze=()), r"convert.optimizer.freeze: got \(\), may be .*'!drafter\*'"),
        (
            "mtp_frozen",
            dict(balancing_rate=0.1),
            r"convert.optimizer.balancing_rate: got 0.1, may be 0 where the target",
        ),
    ],
)
def test_a_frozen_target_is_frozen_whole(method, change, line):
    config = rivals.get_config(f"smoke,method={method}")
    config.convert.optimizer.update(change)
    with pytest.raises(UserError, match=f"^{line}"):
        settings.read(config)


def test_what_this_model_has_not_is_refused():
    config = rivals.get_config("smoke,method=eagle3")
    config.evaluate.samplers = ("autoregressive", "mtp")
    with pytest.raises(UserError, match=r"SamplerConfig.drafter: got 'mtp', which this model has not been trained"):
        settings.read(config)
    config.convert.objective.taps = ("x",)
    with pytest.raises(UserError, match=r"convert.objective.taps: got \('x',\), may be a tuple"):
        settings.read(config)
    with pytest.raises(UserError, match=r"^config argument method: got 'eagle', may be one of"):
        rivals.get_config("method=eagle")


def finish(*args: str) -> str:
    process = Command("experiments.run", *args, together=True)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


@pytest.mark.slow
def test_a_smoke_run_trains_a_drafter_beside_its_target(tmp_path):
    """Through the loop and its checkpoints, and back: the target is bit for bit the AR checkpoint's, and drafts run."""
    finish(f"{SMOKE}eagle3", f"--workdir={tmp_path}", "--train_only")
    _, before = load_pretrained(tmp_path / "checkpoints" / "pretrain")
    config, variables = load_pretrained(tmp_path / "checkpoints" / "convert")
    assert config.drafter is not None and config.drafter.kind == "eagle3"
    assert not any(name.startswith("drafter") for name in before["params"])
    for name, leaf in before["params"].items():
        jax.tree.map(np.testing.assert_array_equal, leaf, variables["params"][name])
    jax.tree.map(np.testing.assert_array_equal, before["balancing"], variables["balancing"])
    sampler = SamplerConfig("drafter", drafter="eagle3", draft_length=2, temperature=0.0)
    plain = SamplerConfig("autoregressive", temperature=0.0)
    texts = [generate(Zaya(config), variables, [[65, 66, 67]], each, 8).tokens for each in (sampler, plain)]
    assert texts[0] == texts[1]


@pytest.mark.slow
@pytest.mark.parametrize("method", rivals.METHODS)
def test_every_smoke_run_ends_in_a_report(method, tmp_path):
    samplers = settings.read(rivals.get_config(f"smoke,method={method}")).samplers
    names = tuple(dict.fromkeys(sampler.name for sampler in samplers))[:4]
    finish(f"{SMOKE}{method}", f"--workdir={tmp_path}", f"--config.evaluate.samplers={names}")
    rows = [row for row in read_results(tmp_path / "results.csv") if row["kind"] == "sampling"]
    assert {row["sampler"] for row in rows} == set(names)
    for row in rows:
        cost = row["forward_equivalents"]
        tokens = row["tokens_per_forward"] * row["target_forwards"]
        assert row["tokens_per_forward_equivalent"] == pytest.approx(tokens / cost)
        assert (row["training_flops"] > 0) == (method != "ngram")
        assert (row["added_parameters"] > 0) == (method not in ("ngram", "ar", "tidar"))
    assert (tmp_path / "report.html").exists()


def test_added_parameters_are_those_that_only_draft():
    for method, some in (("ar", False), ("tidar", False), ("tidar_lora", True), ("medusa", True)):
        stage = settings.read(rivals.get_config(f"smoke,method={method}")).stages["convert"]
        assert bool(evaluation.added(stage)) == some
