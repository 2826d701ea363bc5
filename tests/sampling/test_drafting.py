"""Models that cannot draft or never learned to, and the noise of blocks that are unmasked over several forwards."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import random_variables, small_config
from tests.sampling.test_generate import model_of, programs
from zaya_jax import Zaya, preset
from zaya_jax.architecture.config import NO_MASK
from zaya_jax.interop.formats.native import write_model_file
from zaya_jax.runs import tokens
from zaya_jax.sampling import Generation, SamplerConfig, generate
from zaya_jax.sampling.core.random_streams import KeyedNoise, Purpose
from zaya_jax.sampling.drafting import Yield


def test_a_model_without_a_mask_token_says_what_to_write():
    model, variables = Zaya(small_config(mask_token_id=NO_MASK)), model_of()[1]
    before = programs()
    for sampler in (
        SamplerConfig(),
        SamplerConfig("two_pass"),
        SamplerConfig("block_diffusion"),
        SamplerConfig("drafter", drafter="mask_block"),
    ):
        with pytest.raises(
            ValueError, match=r"no mask token, .*SamplerConfig\(mode='autoregressive'\).*add_mask_token"
        ):
            generate(model, variables, [[1]], sampler, 4)
    assert programs() == before
    for sampler in (SamplerConfig("autoregressive"), SamplerConfig("single_pass", 1)):
        assert len(generate(model, variables, [[1]], sampler, 4).tokens[0]) == 4


def test_a_command_names_its_own_flag(tmp_path):
    config = preset("tiny", mask_token_id=NO_MASK)
    for flag in ("--mode=autoregressive", "--samplers=autoregressive"):
        with pytest.raises(ValueError, match=f"no mask token, so it cannot draft: sample with {flag}, or") as error:
            tokens.choose_tokenizer("bytes", tmp_path, config, instead=flag)
        assert "\n" not in str(error.value)
    tokens.choose_tokenizer("bytes", tmp_path, config, drafts=False)


def test_drafts_that_yield_nothing_are_noticed():
    sampler = SamplerConfig(block_size=4)
    idle, busy = [[1] * 40, [1] * 39 + [2]], [[1, *[2, 1] * 40]]
    found = Yield()
    found.add(sampler, idle)
    assert found.is_idle and found.blocks == 76
    assert found.warning("--mode=autoregressive").startswith(
        "drafts yielded 1.00 tokens a verified block over 76 blocks of 20 query tokens a forward (the model may never"
    )
    assert "--mode=autoregressive has the same distribution" in found.warning("--mode=autoregressive")
    found.add(sampler, busy)
    assert not found.is_idle and found.warning() == "" == found.warning(why="its stage was")
    few = Yield()
    few.add(sampler, idle[:1])
    assert few.warning() == "" and "its stage pretrain" in few.warning(why="its stage pretrain was")
    two = Yield()
    two.add(SamplerConfig("two_pass", 4), [[1, *[0, 1] * 70]])
    assert two.is_idle and two.blocks == 69
    for mode in ("autoregressive", "block_diffusion"):
        none = Yield()
        none.add(SamplerConfig(mode), idle)
        assert none.warning(why="x") == ""


def test_a_generation_carries_the_warning():
    def made(sampler: SamplerConfig, accepted: list[list[int]]) -> Generation:
        none: Any = None
        return Generation([], accepted, [], [], sampler, none)

    assert made(SamplerConfig(block_size=4), [[1] * 80]).warning.startswith("drafts yielded 1.00 tokens")
    assert made(SamplerConfig(block_size=4), [[1, *[2] * 80]]).warning == ""
    assert made(SamplerConfig("autoregressive"), [[1] * 80]).warning == ""


def test_a_runs_config_says_that_a_stage_never_drafted(tmp_path):
    def phase(kind, **more):
        return {"objective": {"kind": kind}, **more}

    config = {
        "phases": ["pretrain", "convert", "control", "longer"], "pretrain": phase("autoregressive"),
        "convert": phase("tidar"), "control": phase("autoregressive", start="pretrain"),
        "longer": phase("autoregressive", start="convert"),
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    said = {}
    for name in (*config["phases"], "other"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        write_model_file(tmp_path / "checkpoints" / name, preset("tiny"))
        said[name] = tokens.never_drafted(tmp_path / "checkpoints" / name)
    assert said["pretrain"] == "its stage pretrain was trained on next tokens alone"
    assert said["control"].startswith("its stage control")
    assert said["convert"] == said["longer"] == said["other"] == tokens.never_drafted(tmp_path) == ""


def draws(key: int, again: int, rows: int = 1) -> list[int]:
    """A block's drawings in the forward number `again`, from a flat distribution."""
    noise, position = KeyedNoise.of(jax.random.key(key)[None]), jnp.arange(5, 45)[None]
    distribution = jnp.zeros((1, 40, 1000))
    return noise.draw(Purpose.DRAFT, position, distribution, True, jnp.full((1, 40), again)).tolist()[0]


def test_every_forward_has_noise_of_its_own():
    first, second = draws(0, 0), draws(0, 1)
    assert first == draws(0, 0) != second  # keyed: the same again
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 4
    assert len({tuple(draws(key, again)) for key in range(4) for again in range(4)}) == 16


def test_what_is_certain_is_accepted_or_not_whatever_stands_beside_it():
    """Alone it takes no noise at all; beside something open it meets a number in (0, 1)."""
    noise, position = KeyedNoise.of(jax.random.split(jax.random.key(3), 500)), jnp.zeros((500, 3), int)
    certain = jnp.array([0.0, -jnp.inf])
    alone = noise.accept(position[:, :2], jnp.tile(certain, (500, 1)))
    beside = noise.accept(position, jnp.tile(jnp.append(certain, jnp.log(0.3)), (500, 1)))
    for found in (alone, beside[:, :2]):
        assert found[:, 0].all() and not found[:, 1].any()
    assert 0.2 < beside[:, 2].mean() < 0.4


def test_a_slot_that_waits_is_drawn_afresh():
    """With logits that depend on nothing, the token that a slot shows first is what any forward draws: from the
    distribution.

    By the noise of one forward alone the most confident slot of a block is chosen among drawings that stay the same, so
    a block's slots would show the very tokens that its first forward drew; drawn afresh, unlikely ones rarely wait.
    """
    config = small_config(num_hidden_layers=1)
    variables = random_variables(config)
    variables = jax.tree.map(jnp.zeros_like, variables)
    params = dict(variables["params"])
    config = config.replace(lm_head_bias=True)
    params["lm_head_bias"] = jnp.where(jnp.arange(17) < 2, jnp.log(jnp.array([0.7, 0.3] + [1.0] * 15)), -jnp.inf)
    sampler = SamplerConfig("block_diffusion", 4, temperature=1.0, threshold=1.0)
    got = generate(Zaya(config), {**variables, "params": params}, [[1]], sampler, 4, seed=0, samples=2000)
    ones = np.array(got.tokens).sum(1)
    # A forward shows a likely token if any hidden slot drew one: with k slots hidden an unlikely one shows w.p. 0.3^k.
    distribution = np.array([1.0])
    for hidden in (4, 3, 2, 1):
        distribution = np.convolve(distribution, [1 - 0.3**hidden, 0.3**hidden])
    counts = np.bincount(ones, minlength=5)[:5]
    expected = 2000 * distribution
    often = expected > 5
    assert (((counts - expected) ** 2 / np.maximum(expected, 1e-9))[often]).sum() < 20
    assert abs(ones.mean() - sum(0.3**k for k in range(1, 5))) < 0.05  # with the old noise: 4 * 0.3 = 1.2
