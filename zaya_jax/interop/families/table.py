"""The model families whose checkpoint folders we read and write: one table, one row for each.

A `config.json` belongs to the first family that `reads` it, a configuration of ours to the first that `writes` it.
Files, shards and checks (`huggingface`) know nothing of families but what stands here.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from zaya_jax.architecture import ZayaConfig
from zaya_jax.errors import UserError
from zaya_jax.interop.families import configuration, legacy, llama, zaya
from zaya_jax.interop.formats.names import Entry, Spec, tensor_specs


@dataclasses.dataclass(frozen=True)
class Family:
    """How models of one kind are kept in Hugging Face folders.

    Attributes:
      name: for messages.
      reads: whether a config.json (an object) is of this family; by its model_type, most often.
      writes: whether the family can hold a model of this configuration.
      config_from_huggingface, config_to_huggingface: config.json <-> ZayaConfig; a UserError of one line names the
        field that cannot be turned.
      entries: every parameter and buffer, in the order in which files hold them.
      by_expert: whether each expert of each layer is a tensor of its own.
    """

    name: str
    reads: Callable[[dict[str, Any]], bool]
    writes: Callable[[ZayaConfig], bool]
    config_from_huggingface: Callable[[dict[str, Any]], ZayaConfig]
    config_to_huggingface: Callable[[ZayaConfig], dict[str, Any]]
    entries: Callable[[ZayaConfig], list[Entry]]
    by_expert: bool = False

    def tensors(self, config: ZayaConfig) -> dict[str, Spec]:
        """Name -> (shape, dtype) of the tensors of a checkpoint of this config. Nothing is allocated."""
        return tensor_specs(self.entries(config), config)


# transformers' own ZAYA. It is last, and takes what no other family does, so that its refusals name the field.
ZAYA = Family(
    name="zaya",
    reads=lambda values: True,
    writes=lambda config: True,
    config_from_huggingface=configuration.config_from_huggingface,
    config_to_huggingface=configuration.config_to_huggingface,
    entries=zaya.entries,
)
# Zyphra's layout of before; read wherever it is found, written when asked for by name.
LEGACY = Family(
    name="legacy",
    reads=legacy.reads,
    writes=lambda config: False,
    config_from_huggingface=legacy.config_from_huggingface,
    config_to_huggingface=legacy.config_to_huggingface,
    entries=legacy.entries,
    by_expert=True,
)
FAMILIES = (
    *(
        Family(
            name=relative.model_type,
            reads=relative.reads,
            writes=relative.writes,
            config_from_huggingface=relative.config_from_huggingface,
            config_to_huggingface=relative.config_to_huggingface,
            entries=relative.entries,
        )
        for relative in llama.RELATIVES
    ),
    LEGACY,
    ZAYA,
)
MODEL_TYPES = (*(relative.model_type for relative in llama.RELATIVES), "zaya")


def family_of_file(values: dict[str, Any]) -> Family:
    """The family of a config.json. UserError for a model_type of none."""
    kind, named = values.get("model_type", "zaya"), values.get("architectures")
    foreign = isinstance(named, list) and not any(str(name).startswith("Zaya") for name in named)
    configuration.require("model_type" in values or not foreign, "model_type", None, f"one of {MODEL_TYPES}")
    configuration.require(kind in MODEL_TYPES, "model_type", kind, f"one of {MODEL_TYPES}")
    return next(family for family in FAMILIES if family.reads(values))


def family_of(config: ZayaConfig) -> Family:
    """The family that a model of ours is exported as. UserError for one with adapters (`adapters.merge_adapters`)."""
    if config.lora_rank:
        may_be = "0 in a Hugging Face folder: adapters of lora_rows 'all' can be merged, others stay in our own format"
        raise UserError(f"ZayaConfig.lora_rank: got {config.lora_rank}, may be {may_be}")
    return next(family for family in FAMILIES if family.writes(config))


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
