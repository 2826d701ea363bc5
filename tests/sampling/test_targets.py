"""One registry of targets: a new one is one entry, which configs, steps, results and reports know at once."""

import copy
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from tests.evaluation.test_task_accuracy import PROTOCOL, TASK, TOKENIZER, setup
from tests.sampling.enumeration import SIZE, sampler_distribution, total_variation
from tests.sampling.test_lossless import distribution_of, mix_fresh_law, mix_stale_law
from zaya_jax.command_line import sampling_flags
from zaya_jax.command_line.meter import Meter
from zaya_jax.evaluation.samplers import check_samplers, known_samplers, make_samplers
from zaya_jax.evaluation.task_accuracy import run_task, task_rows
from zaya_jax.sampling import SamplerConfig, Target, all_targets, generate, register_target
from zaya_jax.sampling.core import targets
from zaya_jax.sampling.core.distributions import mix


def average(plain, draft, beta):
    """Probabilities averaged, not logits."""
    plain, draft = (jax.nn.log_softmax(x.astype(jnp.promote_types(x.dtype, jnp.float32))) for x in (plain, draft))
    return jnp.logaddexp(jnp.log1p(-beta) + plain, jnp.log(beta) + draft)


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(targets, "_REGISTERED", copy.deepcopy(targets._REGISTERED))


@pytest.fixture
def mix_linear(registry) -> Target:
    return register_target(Target("mix_linear", "Averages the two distributions.", average, beta=True))


@pytest.mark.slow
def test_a_new_targets_beta_is_recorded_without_another_edit(mix_linear, tmp_path):
    check_samplers("--samplers", ["mix_linear"])
    names = ["autoregressive", "lossless", "mix_stale", "mix_linear", "mix_fresh", "threshold"]
    samplers = make_samplers(names, [1.0], block_size=2, beta=0.25, stop_tokens=TOKENIZER.eos_ids)
    model, variables = setup()
    protocol = dataclasses.replace(PROTOCOL, prompts=2)
    results = run_task(model, variables, TOKENIZER, TASK, samplers[3:4], protocol, tmp_path)
    assert task_rows(results, protocol)[0]["beta"] == 0.25
    line = json.loads((tmp_path / "addition-mix_linear-temperature-1.jsonl").read_text().splitlines()[0])
    assert line["made_by"]["sampler"]["target"] == "mix_linear"
    beta = {
        sampler.name: dataclasses.replace(results[0], sampler=sampler).row(protocol)["beta"] for sampler in samplers
    }
    lossy = dict.fromkeys(["mix_stale", "mix_linear", "mix_fresh"], 0.25)
    assert beta == dict.fromkeys(["autoregressive", "lossless", "threshold"]) | lossy
    assert "target mix_linear (beta 0.25)" in Meter().line(samplers[3].config, "batch 1")
    assert "beta" not in Meter().line(SamplerConfig("block_diffusion"), "batch 1")


@pytest.mark.parametrize("draft", ["tested", pytest.param("next", marks=pytest.mark.slow)])
def test_a_new_target_is_sampled_as_defined(draft, registry, x64, monkeypatch):
    """Its distribution, enumerated, is that of the averaged probabilities."""
    register_target(Target("linear", "Averages the two distributions.", average, draft=draft, beta=True))
    sampler = SamplerConfig("single_pass", SIZE, target="linear", beta=0.3)

    def mixed(plain, draft, beta):
        return np.log(
            (1 - beta) * distribution_of(plain, SamplerConfig()) + beta * distribution_of(draft, SamplerConfig())
        )

    monkeypatch.setattr("tests.sampling.test_lossless.mixed", mixed)
    wanted = {"tested": mix_stale_law, "next": mix_fresh_law}[draft]
    assert total_variation(sampler_distribution(sampler), wanted(sampler)) < 1e-9


def test_flags_and_configs_know_every_target(mix_linear):
    for target in all_targets():
        for mode in target.modes:
            drafter = "ngram" if mode == "drafter" else None
            assert SamplerConfig(mode, 4, target=target.name, drafter=drafter).target == target.name
        names = known_samplers()
        assert target.lossless or names[target.name] == {"mode": target.modes[0], "target": target.name}
    with pytest.raises(
        ValueError, match=r"target: got 'mix_linear', may be one of entropy_bounded, left_to_right, threshold when mode"
    ):
        SamplerConfig("block_diffusion", target="mix_linear")
    values = flags.FlagValues()
    sampling_flags.define(values)
    assert "single_pass: autoregressive, mix_stale, mix_fresh, mix_linear" in values["target"].help


@pytest.mark.slow
def test_a_target_that_changes_is_compiled_anew(registry):
    """A config file that is read twice registers twice."""
    model, variables = setup()

    def texts():
        sampler = SamplerConfig("single_pass", 2, target="twice", beta=1.0, temperature=0.0)
        return generate(model, variables, [[1, 2, 3]], sampler, 12).tokens

    register_target(Target("twice", "First the AR logits.", lambda plain, draft, beta: plain, draft="next"))
    first = texts()
    register_target(Target("twice", "Then their negative.", lambda plain, draft, beta: -plain, draft="next"))
    assert texts() != first


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(name="lossless"), "Target.name: got 'lossless'"), (dict(name="a b"), "Target.name: got 'a b'"),
        (dict(words=" "), "Target.words"), (dict(draft="old"), "Target.draft: got 'old', may be one of"),
        (dict(combine=None), "Target.combine: got None, may be a function where draft is 'tested'"),
        (dict(draft="none"), "Target.combine: got .*, may be None where draft is 'none'"),
        (dict(reveal=mix), "Target.combine: got .*, may be None beside `reveal`"),
    ],
)  # fmt: skip
def test_a_wrong_entry_is_named(fields, words):
    with pytest.raises(ValueError, match=words):
        Target(**{"name": "mine", "words": "Mine.", "combine": mix, **fields})
