"""The model families whose checkpoint folders we read and write: a registry, one entry a family.

A `config.json` belongs to the family registered last that `reads` it, a configuration of ours to the one registered
last that `writes` it. Files, shards and checks (`huggingface`) know nothing of families but what stands here. A new one
is one `register_family(Family(...))`, which may stand in a config file: docs/extending.md#a-new-model-family.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from zaya_jax.architecture import ZayaConfig
from zaya_jax.errors import UserError
from zaya_jax.interop.families import configuration, legacy, llama, zaya
from zaya_jax.interop.formats.names import Entry, Spec, tensor_specs
from zaya_jax.registry import Registry, caller


@dataclasses.dataclass(frozen=True)
class Family:
    """How models of one kind are kept in Hugging Face folders.

    The embedding is called "model.embed_tokens.weight" in every family, and a head that is not tied "lm_head.weight".

    Attributes:
      name: the model_type that its config.json says; what `experiments.convert --format` calls it.
      reads: whether a config.json (an object) is of this family.
      writes: whether the family can hold a model of this configuration.
      config_from_huggingface, config_to_huggingface: config.json <-> ZayaConfig; a UserError of one line names the
        field that cannot be turned.
      entries: every parameter and buffer, in the order in which files hold them.
      by_expert: whether each expert of each layer is a tensor of its own.
      asked: whether it is written only when it is asked for by name, since another family says the same.
    """

    name: str
    reads: Callable[[dict[str, Any]], bool]
    writes: Callable[[ZayaConfig], bool]
    config_from_huggingface: Callable[[dict[str, Any]], ZayaConfig]
    config_to_huggingface: Callable[[ZayaConfig], dict[str, Any]]
    entries: Callable[[ZayaConfig], list[Entry]]
    by_expert: bool = False
    asked: bool = False

    def tensors(self, config: ZayaConfig) -> dict[str, Spec]:
        """Name -> (shape, dtype) of the tensors of a checkpoint of this config. Nothing is allocated."""
        return tensor_specs(self.entries(config), config)


FAMILIES: Registry[Family] = Registry("model family")


def register_family(family: Family) -> Family:
    """Adds a model family and returns it. The same file, read again, replaces its family.

    Raises:
      UserError: the name is one of this package's families, or another file has registered it.
    """
    FAMILIES.add(family.name, family, caller())
    return family


# transformers' own ZAYA. It is the last to be asked, and takes what no other family does: its refusals name the field.
ZAYA = register_family(
    Family(
        name="zaya",
        reads=lambda values: values.get("model_type", "zaya") == "zaya",
        writes=lambda config: True,
        config_from_huggingface=configuration.config_from_huggingface,
        config_to_huggingface=configuration.config_to_huggingface,
        entries=zaya.entries,
    )
)
# Zyphra's layout of before; read wherever it is found.
LEGACY = register_family(
    Family(
        name="legacy",
        reads=legacy.reads,
        writes=lambda config: True,
        config_from_huggingface=legacy.config_from_huggingface,
        config_to_huggingface=legacy.config_to_huggingface,
        entries=legacy.entries,
        by_expert=True,
        asked=True,
    )
)
for _relative in reversed(llama.RELATIVES):
    register_family(
        Family(
            name=_relative.model_type,
            reads=_relative.reads,
            writes=_relative.writes,
            config_from_huggingface=_relative.config_from_huggingface,
            config_to_huggingface=_relative.config_to_huggingface,
            entries=_relative.entries,
        )
    )


def _newest_first() -> list[Family]:
    return list(FAMILIES.values())[::-1]


def family_of_file(values: dict[str, Any]) -> Family:
    """The family of a config.json. UserError for a model_type of none."""
    kinds = tuple(family.name for family in _newest_first() if family is not LEGACY)
    kind, named = values.get("model_type", "zaya"), values.get("architectures")
    foreign = isinstance(named, list) and not any(str(name).startswith("Zaya") for name in named)
    configuration.require("model_type" in values or not foreign, "model_type", None, f"one of {kinds}")
    found = next((family for family in _newest_first() if family.reads(values)), None)
    if found is None:
        raise UserError(f"config.json: model_type: got {kind!r}, may be one of {kinds}")
    return found


def family_of(config: ZayaConfig, asked: str | None = None) -> Family:
    """The family that a model of ours is exported as.

    Args:
      asked: the name of the family wanted; None: the one registered last that can hold the model.

    Raises:
      UserError: a model with adapters (`adapters.merge_adapters`), or a drafter beside it; an unknown name, or a family
        that cannot hold it.
    """
    if config.lora_rank:
        command = {"all": "merge` adds the adapters to the weights"}.get(
            config.lora_rows, "adapters` writes them alone"
        )
        may_be = f"0 in a Hugging Face folder; `experiments.{command}, --format=native keeps both"
        raise UserError(f"ZayaConfig.lora_rank: got {config.lora_rank}, may be {may_be}")
    if config.drafter is not None:
        may_be = "none in a Hugging Face folder; `experiments.convert --format=native` keeps it"
        raise UserError(f"ZayaConfig.drafter: got a drafter ({config.drafter.kind}), may be {may_be}")
    fitting = [family for family in _newest_first() if family.writes(config)]
    if asked is None:
        return next(family for family in fitting if not family.asked)
    if FAMILIES[asked] not in fitting:
        names = ", ".join(family.name for family in fitting)
        raise UserError(f"model family: got {asked!r}, which cannot hold this model; may be one of {names}")
    return FAMILIES[asked]


def config_from_huggingface(values: Any) -> ZayaConfig:
    """A config.json of any family -> ours.

    Raises:
      UserError: one line naming the field, what it got and what it may be.
    """
    configuration.require(isinstance(values, dict), "the whole file", values, "a JSON object")
    return family_of_file(values).config_from_huggingface(values)


def config_to_huggingface(config: ZayaConfig) -> dict[str, Any]:
    """Ours -> the config.json of its family.

    Raises:
      UserError: a model that no family can hold.
    """
    return family_of(config).config_to_huggingface(config)


def abstract_tensors(config: ZayaConfig) -> dict[str, Spec]:
    """The tensors of this config's Hugging Face checkpoint: name -> (shape, dtype). Nothing is allocated.

    A tied head is not among them (it is the embedding); ZAYA's balancing biases, float32 buffers, are. ZAYA1-8B: 1,283
    tensors, of which 40 are buffers.
    """
    return family_of(config).tensors(config)
