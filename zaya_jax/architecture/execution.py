"""How a forward pass is computed, apart from what it computes: backends, chunks, recomputation."""

import dataclasses
from typing import Annotated, Any

from zaya_jax.checks import COUNT, SWITCH, Choice, check_fields

# What a training step recomputes of each layer instead of keeping it: nothing; all but the layer's input; all but the
# input and the outputs of plain matrix products (the projections and the router's, not the experts' nor attention's).
REMATS = ("none", "full", "dots")
EXCHANGES = ("auto", "all_gather", "all_to_all")
EXPERTS = ("auto", "block_padded", "sequential_vjp", "ragged_dot", "gather", "dense")


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a `Zaya` computes. Changes no parameter and, but for rounding, no result.

    So it is the user's choice for a machine and stands in no checkpoint and in no key of a training stage.

    Attributes:
      expert_backend: see `architecture.moe.experts`; "dense" is the reference implementation; "auto": by the number of
        tokens, and in a training step on GPUs by the bytes that compiled forms move (`aot.experts`).
      attention_backend: "structured": short rows at once, long ones tile by tile; "tiled": tile by tile for short rows
        too; "dense": the reference implementation, which builds the row x row mask.
      qkv_backend: "fused": one matrix product for all of attention's projections, one a head for the grouped
        convolution and one for the rotation, where XLA's CPU would otherwise copy channels into another order.
      query_chunk: queries whose scores exist at once; bounds attention's memory.
      remat: what of a layer the backward pass recomputes (REMATS).
      unroll_layers: compile every layer by itself: slow to compile, no copies into stacks of all layers.
      expert_exchange: how tokens get to experts on other devices, see `architecture.moe.across`; "auto": by as few
        bytes as the platform can.

    Raises:
      UserError: one line that names the field.
    """

    expert_backend: Annotated[str, Choice(EXPERTS)] = "auto"
    attention_backend: Annotated[str, Choice(("structured", "tiled", "dense"))] = "structured"
    qkv_backend: Annotated[str, Choice(("batched", "fused"))] = "batched"
    query_chunk: Annotated[int, COUNT] = 1024
    remat: Annotated[str, Choice(REMATS)] = "none"
    unroll_layers: Annotated[bool, SWITCH] = False
    expert_exchange: Annotated[str, Choice(EXCHANGES)] = "auto"

    def __post_init__(self) -> None:
        check_fields("Execution", self)


DEFAULT = Execution()
FIELDS = tuple(field.name for field in dataclasses.fields(Execution))


def without_execution(stored: dict[str, Any]) -> dict[str, Any]:
    """Stored fields of a `ZayaConfig` without those that were its own before `Execution` was."""
    return {name: value for name, value in stored.items() if name not in FIELDS}
