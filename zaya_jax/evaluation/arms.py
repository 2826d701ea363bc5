"""The samplers that are compared on the same prompts, by the names that `evaluate.arms` and `--arms` give them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from zaya_jax.checks import no_such
from zaya_jax.sampling import SamplerConfig, all_targets


@dataclasses.dataclass(frozen=True)
class Arm:
    """A named way to sample; every arm meets the same problems and the same row seeds."""

    name: str
    sampler: SamplerConfig


def known_arms() -> dict[str, dict[str, Any]]:
    """What may be named, as fields of SamplerConfig: how a forward is spent and what is sampled.

    Every registered target is one by its own name, besides the ways to sample the AR distribution.
    """
    lossy = [target for target in all_targets() if not target.lossless]
    return {
        "autoregressive": {"mode": "autoregressive"},
        "lossless": {"mode": "single_pass"},
        "lossless_two_pass": {"mode": "two_pass"},
        **{target.name: {"mode": target.modes[0], "target": target.name} for target in lossy},
    }


def make_arms(names: Sequence[str], temperatures: Sequence[float], **common: Any) -> tuple[Arm, ...]:
    """Every named arm (of `known_arms`) at every temperature, one temperature after the other.

    Args:
      common: fields of SamplerConfig that all arms share.

    Raises:
      UserError: what SamplerConfig refuses.
    """
    known = known_arms()
    return tuple(
        Arm(name, SamplerConfig(**common, **known[name], temperature=t)) for t in temperatures for name in names
    )


def check_arms(field: str, names: Sequence[str]) -> None:
    """UserError for a name that is none of `known_arms`."""
    for name in names:
        if name not in known_arms():
            raise no_such(field, name, known_arms())
