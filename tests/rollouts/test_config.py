"""Phases of reinforcement learning in a config: what the committed ones ask for, and mistakes in one line."""

import pytest
from ml_collections import ConfigDict

from configs import rollouts as config_file
from configs.sweeps import rollouts as sweep_file
from tests.experiments import tiny
from zaya_jax.errors import UserError
from zaya_jax.rollouts.objective import PolicyObjective
from zaya_jax.runs.configuration import settings
from zaya_jax.runs.configuration.stage_keys import stage_keys
from zaya_jax.runs.jobs import read_jobs
from zaya_jax.runs.rollouts import batches


def config(change=lambda c: None, arg: str = "smoke") -> ConfigDict:
    made = config_file.get_config(arg)
    with made.unlocked():
        change(made)
    return made


def test_arguments_change_what_they_say():
    stage = settings.read(config(arg="algorithm=dapo,draft_on=positive,distill=0.5,sampler=lossless_two_pass")).stages
    policy, rollouts = stage["policy"].phase.objective, stage["policy"].rollouts
    assert isinstance(policy, PolicyObjective) and rollouts is not None
    assert (policy.scale, policy.reduction, policy.clip_high, policy.mask_cut) == ("group", "token", 0.28, True)
    assert (policy.draft_on, policy.distill, policy.block_size) == ("positive", 0.5, 8)
    assert rollouts.sampler_config(policy, ()).mode == "two_pass"
    assert stage["policy"].start == "convert" and stage["policy"].row_length == 36
    lists = settings.read(config(arg="task=list_programs")).stages
    assert list(lists) == ["policy"] and lists["policy"].rollouts.anchors == (1, 3, 6)
    with pytest.raises(UserError, match=r"^config argument task: got 'addition', may be one of countdown, list_"):
        config_file.get_config("task=addition")


def test_a_sweeps_jobs_can_be_read():
    jobs = read_jobs(sweep_file.get_config())
    assert len(jobs) == 24
    keys = set()
    for changes in list(jobs.values())[::3]:
        made = config()
        for field, value in changes.items():
            made.update_from_flattened_dict({field: value})
        setup = settings.read(made)
        found = stage_keys(made, setup)
        keys.add(found["policy"])
        assert batches(setup, setup.stages["policy"], None, None).sampler.temperature == 1
    assert len(keys) == 8  # and all of them share what comes before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.policy.__delitem__("rollouts"), "policy.rollouts: missing, may be a section where objective.kind"),
        (
            lambda c: c.policy.rollouts.update(group=3),
            r"policy.rollouts.group: got 3, may be a divisor of batch_size \(8",
        ),
        (lambda c: c.policy.rollouts.update(group=1), "policy.rollouts.group: got 1, may be an integer of at least 2"),
        (
            lambda c: c.policy.rollouts.update(max_new_tokens=36),
            r"policy.rollouts.max_new_tokens: got 36, may be below policy.row_length \(36\)",
        ),
        (
            lambda c: c.policy.rollouts.update(sampler="losless"),
            "policy.rollouts.sampler: got 'losless', did you mean lossless",
        ),
        (
            lambda c: c.policy.rollouts.update(sampler="mix_stale"),
            "policy.objective.importance_cap: got 0.0, may be above 0",
        ),
        (lambda c: c.policy.rollouts.update(anchors=(9,)), r"policy.rollouts.anchors: got \(9,\), may be 'all'"),
        (lambda c: c.policy.objective.update(scale="sd"), "policy.objective.scale: got 'sd', may be one of"),
        (lambda c: c.policy.objective.update(temperature=0.0), "policy.objective.temperature: got 0.0, may be"),
        (lambda c: c.policy.update(spike_factor=2.0), "policy.spike_factor: got 2.0, may be 0"),
        (lambda c: c.mesh.update(context=2), "policy.mesh.context: got 2, may be 1: devices cannot share rollouts"),
        (
            lambda c: c.policy.update(mixture=(ConfigDict({"text": "stdlib"}),)),
            "policy.mixture: got 'stdlib', may be tasks alone",
        ),
    ],
)
def test_mistakes_are_named(change, says):
    with pytest.raises(UserError, match=f"^{says}"):
        settings.read(config(change))


def test_rollouts_are_a_policys_alone():
    made = tiny.get_config()
    with made.unlocked():
        made.convert.rollouts = ConfigDict({"group": 4})
    with pytest.raises(UserError, match=r"^convert\.rollouts: may be None where objective.kind is not 'policy'"):
        settings.read(made)
