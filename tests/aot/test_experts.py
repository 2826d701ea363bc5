"""What execution.expert_backend "auto" becomes in a training step: counted in programs compiled for the device."""

import dataclasses
from typing import NamedTuple

import jax
import pytest

from configs.quickstart import get_config
from tests.helpers import small_config
from zaya_jax.aot import experts
from zaya_jax.architecture import Execution
from zaya_jax.parallel import MeshConfig
from zaya_jax.runs.configuration import settings
from zaya_jax.runs.sizes import on_devices


class Device(NamedTuple):
    """All that is asked of a device that nothing is compiled for."""

    platform: str


GPU = Device("gpu")
MOE = small_config(dtype="bfloat16")


def test_bytes_are_those_of_the_compiled_products():
    """Here every expert computes every token in `ragged_dot`, and more experts cost it more and blocks little more."""
    few, many = (
        {form: experts.bytes_moved(form, (count, 32, 64), 256, "float32", "float32", jax.devices()[0])
         for form in experts.FORMS} for count in (2, 8)
    )  # fmt: skip
    assert few["ragged_dot"] > few["block_padded"] > 3 * 4 * 2 * 3 * 32 * 64  # weights: read twice, gradients written
    assert many["ragged_dot"] - few["ragged_dot"] > 2 * (many["block_padded"] - few["block_padded"])


@pytest.mark.parametrize("fewer", experts.FORMS)
def test_auto_is_what_moves_fewer_bytes(fewer, monkeypatch):
    asked = []

    def moved(form, shape, tokens, *_):
        asked.append((form, shape, tokens))
        return 1 if form == fewer else 2

    experts._fewest.cache_clear()
    monkeypatch.setattr(experts, "bytes_moved", moved)
    assert experts.settled(Execution(remat="full"), MOE, 96, GPU) == Execution(fewer, remat="full")
    assert experts.settled(Execution(), MOE, 96, GPU).expert_backend == fewer
    shape = (MOE.num_experts, MOE.hidden_size, MOE.moe_intermediate_size)
    assert asked == [(form, shape, 96) for form in experts.FORMS]  # once for both
    experts._fewest.cache_clear()


@pytest.mark.parametrize(
    ("execution", "config", "device"),
    [
        (Execution("dense"), MOE, GPU),
        (Execution(), MOE.replace(feed_forward="dense"), GPU),
        (Execution(), MOE, jax.devices()[0]),
    ],
)
def test_nothing_is_compiled_where_nothing_is_left_to_choose(execution, config, device, monkeypatch):
    monkeypatch.setattr(experts, "bytes_moved", None)
    assert experts.settled(execution, config, 96, device) is execution


def test_a_stage_counts_the_tokens_that_a_device_sees_at_once(monkeypatch):
    """Context and mask tokens of a piece of the batch, split over devices; not where experts are split."""
    setup = settings.read(get_config("preset=tiny"))
    stage = setup.stages["convert"]
    rows, pieces = stage.batch_size, 2
    optimizer = dataclasses.replace(stage.phase.optimizer, accumulate=pieces)
    stage = dataclasses.replace(stage, phase=dataclasses.replace(stage.phase, optimizer=optimizer))
    seen = []
    monkeypatch.setattr(
        "zaya_jax.runs.sizes.settled",
        lambda execution, config, tokens, device: seen.append((tokens, device)) or Execution("ragged_dot"),
    )
    assert on_devices(stage, None, GPU).execution == Execution("ragged_dot")
    two = dataclasses.replace(stage, mesh=MeshConfig(data=2))
    on_devices(two, two.placement(jax.devices()[:2]))
    assert seen == [(rows * stage.row_length, GPU), (rows * stage.row_length // 2, jax.devices()[0])]
    apart = dataclasses.replace(stage, mesh=MeshConfig(data=1, expert=2))
    assert on_devices(apart, apart.placement(jax.devices()[:2])) is apart
    assert len(seen) == 2
