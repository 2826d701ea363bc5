"""The kinds of drafter that `DrafterConfig.kind` names."""

from flax import linen as nn

from zaya_jax.architecture.config import ZayaConfig
from zaya_jax.architecture.drafters.dflash import DFlash
from zaya_jax.architecture.drafters.eagle3 import Eagle3
from zaya_jax.architecture.drafters.medusa import Medusa
from zaya_jax.architecture.drafters.mtp import MTP

DRAFTERS: dict[str, type[nn.Module]] = {"dflash": DFlash, "eagle3": Eagle3, "mtp": MTP, "medusa": Medusa}


def make_drafter(config: ZayaConfig) -> nn.Module:
    """The module of `config.drafter`."""
    assert config.drafter is not None
    return DRAFTERS[config.drafter.kind](config)
