"""Which drafter a model has: `ZayaConfig.drafter`."""

import dataclasses
from typing import Annotated

from zaya_jax.checks import COUNT, SWITCH, Choice, Integer, Items, check_fields
from zaya_jax.errors import UserError

KINDS = ("dflash", "eagle3", "mtp", "medusa")
TAPPED = ("dflash", "eagle3")  # the kinds that read the streams which enter layers; the others read the last hidden


@dataclasses.dataclass(frozen=True)
class DrafterConfig:
    """A drafter's parameters and what it computes; its widths, heads and rotary base are its target's.

    Attributes:
      kind: which one (KINDS).
      drafts: tokens it is trained to draft in a step: a block's slots but the first (dflash), steps of recursion
        (eagle3, mtp), heads (medusa).
      layers: dflash's.
      taps: the layers whose input dflash and eagle3 read (`Zaya.features`); (): 1, the middle one and the last.
      causal: a block's slots see those before them alone (dflash; JetSpec's head).
      own_head: a head that begins as the target's and is trained (of each of medusa's heads its own); else the
        target's.
    """

    kind: Annotated[str, Choice(KINDS)] = "dflash"
    drafts: Annotated[int, Integer(1, 65_535)] = 7
    layers: Annotated[int, COUNT] = 1
    taps: Annotated[tuple[int, ...], Items(Integer(0, 10_000))] = ()
    causal: Annotated[bool, SWITCH] = False
    own_head: Annotated[bool, SWITCH] = False

    def __post_init__(self) -> None:
        check_fields("DrafterConfig", self)
        object.__setattr__(self, "taps", tuple(self.taps))  # JSON gives lists, which do not hash
        for name, default, kinds in (("layers", 1, ("dflash",)), ("causal", False, ("dflash",)), ("taps", (), TAPPED)):
            if getattr(self, name) != default and self.kind not in kinds:
                got, may_be = getattr(self, name), f"{default!r} where kind is {self.kind!r}"
                raise UserError(f"DrafterConfig.{name}: got {got!r}, may be {may_be}")

    @property
    def heads(self) -> int:
        """Heads that are trained where `own_head`."""
        return self.drafts if self.kind == "medusa" else 1

    def taps_of(self, layers: int) -> tuple[int, ...]:
        """The taps of a target of so many layers, in order."""
        if self.kind not in TAPPED:
            return ()
        return self.taps or tuple(sorted({min(1, layers), layers // 2, layers - 1}))
