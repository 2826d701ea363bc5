"""Models that cannot draft, or never learned to: what a user is told, in the words of the command that was typed."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from zaya_jax.architecture import ZayaConfig
from zaya_jax.architecture.config import NO_MASK
from zaya_jax.errors import UserError
from zaya_jax.sampling.config import SamplerConfig
from zaya_jax.sampling.drafters import find_drafter

ENOUGH_BLOCKS = 64  # verified blocks, fewer say nothing
IDLE = 1.05  # tokens a verified block yields, at most, where drafts yield practically nothing
PYTHON = "SamplerConfig(mode='autoregressive')"


def require_mask(config: ZayaConfig, instead: str = PYTHON) -> None:
    """Raises UserError if the model has no mask token, for a sampler that drafts.

    Args:
      instead: what to type for a sampler that does not.
    """
    if config.mask_token_id == NO_MASK:
        raise UserError(
            f"the model has no mask token, so it cannot draft: sample with {instead}, or train it to draft, from "
            "`zaya_jax.interop.editing.mask.add_mask_token` or as a phase that starts from it (configs/smollm2.py)"
        )


def require_drafter(config: ZayaConfig, variables: Any, sampler: SamplerConfig) -> None:
    """Raises UserError if the sampler's drafter cannot draft for this model, or has not been trained for it."""
    if sampler.drafter is not None:
        find_drafter(sampler.drafter).require(config, variables)


@dataclasses.dataclass
class Yield:
    """Tokens that verified blocks yielded, added up over generations; a block always yields one, drafts or not."""

    blocks: int = 0
    tokens: int = 0
    rows: float = 0.0  # query tokens of a forward

    def add(self, sampler: SamplerConfig, accepted: Iterable[Sequence[int]]) -> None:
        """Counts what a generation accepted; the first forward reads the prompt, and the last may be cut by a stop.

        Args:
          sampler: as it ran; one that verifies no drafts adds nothing.
          accepted: tokens of each forward, one list a row (`Generation.accepted`).
        """
        if sampler.mode in ("single_pass", "two_pass", "drafter") and sampler.drafts:
            counted = [n for row in accepted for n in row[1:-1] if n]  # 0: a forward of two_pass that drafts
            self.blocks, self.tokens = self.blocks + len(counted), self.tokens + sum(counted)
            self.rows = sampler.rows_per_forward

    @property
    def is_idle(self) -> bool:
        """Whether enough blocks were verified to say that drafts yield practically nothing."""
        return self.blocks >= ENOUGH_BLOCKS and self.tokens <= IDLE * self.blocks

    def warning(self, instead: str = PYTHON, why: str = "") -> str:
        """The line to show; "" where drafts yield something or too few were verified.

        Args:
          instead: what to type for a sampler that does not draft.
          why: what is known of the model's training that explains it (`zaya_jax.runs.tokens.never_drafted`); believed
            without enough blocks.
        """
        if not self.is_idle and not (why and self.blocks and self.blocks < ENOUGH_BLOCKS):
            return ""
        reason = why or "the model may never have learned to draft"
        return (
            f"drafts yielded {self.tokens / self.blocks:.2f} tokens a verified block over {self.blocks} blocks of "
            f"{self.rows:g} query tokens a forward ({reason}); {instead} has the same distribution at one query token "
            "a forward"
        )
