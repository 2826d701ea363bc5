"""The samplers that are compared on the same prompts, by the names that a config and `--samplers` give them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from zaya_jax.checks import no_such
from zaya_jax.sampling import SamplerConfig, all_drafters, all_targets
from zaya_jax.sampling.planning.auto import LOOKUP

TREE_SIZE = 15  # nodes of the trees that are compared by name


@dataclasses.dataclass(frozen=True)
class NamedSampler:
    """A named way to sample; every sampler meets the same problems with the same seed for each sequence."""

    name: str
    config: SamplerConfig


def known_samplers() -> dict[str, dict[str, Any]]:
    """What may be named, as fields of SamplerConfig: how a forward is spent and what is sampled.

    Every registered target is one by its own name, besides the ways to sample the AR distribution; so is every drafter,
    and with "_likeliest" after its name it drafts its likeliest tokens at any temperature, with "_tree" a tree of
    TREE_SIZE, if it can.
    """
    drafters = {drafter.name: {"mode": "drafter", "drafter": drafter.name} for drafter in all_drafters()}
    likeliest = {f"{name}_likeliest": fields | {"draft_temperature": 0.0} for name, fields in drafters.items()}
    lossy = [target for target in all_targets() if not target.lossless]
    return {
        "autoregressive": {"mode": "autoregressive"},
        "lossless": {"mode": "single_pass"},
        "lossless_lookup": {"mode": "single_pass", "lookup": LOOKUP},
        "lossless_two_pass": {"mode": "two_pass"},
        **{target.name: {"mode": target.modes[0], "target": target.name} for target in lossy},
        **drafters,
        **likeliest,
        **{f"{d.name}_tree": drafters[d.name] | {"tree_size": TREE_SIZE} for d in all_drafters() if d.trees},
    }


def make_samplers(names: Sequence[str], temperatures: Sequence[float], **common: Any) -> tuple[NamedSampler, ...]:
    """Every named sampler (of `known_samplers`) at every temperature, one temperature after the other.

    Args:
      common: fields of SamplerConfig that all samplers share.

    Raises:
      UserError: what SamplerConfig refuses.
    """
    known = known_samplers()
    return tuple(
        NamedSampler(name, SamplerConfig(**{**common, **known[name]}, temperature=t))
        for t in temperatures
        for name in names
    )


def check_samplers(field: str, names: Sequence[str]) -> None:
    """UserError for a name that is none of `known_samplers`."""
    for name in names:
        if name not in known_samplers():
            raise no_such(field, name, known_samplers())
