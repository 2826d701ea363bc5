"""How rollouts are made: the section `rollouts` of a phase whose objective is a policy's."""

import dataclasses
from collections.abc import Collection
from typing import Annotated, Any

from zaya_jax.checks import COUNT, ROWS, Integer, Text, Unset, check_fields, no_such
from zaya_jax.errors import UserError
from zaya_jax.evaluation.samplers import known_samplers
from zaya_jax.rollouts.objective import PolicyObjective
from zaya_jax.sampling import SamplerConfig, find_target
from zaya_jax.sampling.config import SHARE, TEMPERATURE
from zaya_jax.sampling.values import plain_tuple

LOSSLESS = "lossless"  # of `known_samplers`: how held-out problems are answered, too


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """How rollouts are made of a phase's tasks, and how many there are.

    Attributes:
      group: rollouts of a problem; a phase's batch_size is problems x group.
      max_new_tokens: after which a rollout is cut.
      sampler: a name of `evaluation.samplers`: "autoregressive", "lossless", "lossless_two_pass", or one that is not
        lossless, which the objective must know (its importance_cap above 0, or log_probabilities "rollout").
      anchors: of the sampler, where it has some.
      draft_temperature: of the sampler's drafts; None: the policy's.
      beta: of a mixing sampler.
      batch: sequences side by side, the next in the place of one that has ended; None: a phase's whole batch.
      updates: steps that a batch of rollouts is trained on; with 1 every step is exactly on-policy.
      held_out: problems of each task's tuning split that are answered when the phase is evaluated, 0 for none.
      held_out_samples: answers of each, for pass@1 and, with 16 or more, pass@16.
    """

    group: Annotated[int, Integer(2, 65_536)] = 8
    max_new_tokens: Annotated[int, COUNT] = 32
    sampler: Annotated[str, Text()] = LOSSLESS
    anchors: str | int | Collection[int] = "all"
    draft_temperature: Annotated[float | None, Unset(TEMPERATURE)] = None
    beta: Annotated[float, SHARE] = 0.5
    batch: Annotated[int | None, Unset(ROWS)] = None
    updates: Annotated[int, Integer(1, 1024)] = 1
    held_out: Annotated[int, Integer(0, 1_000_000)] = 64
    held_out_samples: Annotated[int, Integer(1, 65_536)] = 16

    def __post_init__(self) -> None:
        object.__setattr__(self, "anchors", plain_tuple(self.anchors))
        check_fields("Rollouts", self)
        if self.sampler not in known_samplers():
            raise no_such("Rollouts.sampler", self.sampler, known_samplers())
        if known_samplers()[self.sampler]["mode"] == "block_diffusion":
            may_be = "a sampler whose tokens have log-probabilities: block_diffusion draws in any order"
            raise UserError(f"Rollouts.sampler: got {self.sampler!r}, may be {may_be}")

    def sampler_config(self, policy: PolicyObjective, stop_tokens: tuple[int, ...], name: str = "") -> SamplerConfig:
        """The sampler for a policy's rollouts; `name`: another of its samplers, with the same options.

        Raises:
          UserError: naming the field.
        """
        fields: dict[str, Any] = known_samplers()[name or self.sampler]
        if fields["mode"] == "single_pass":
            fields = {**fields, "anchors": self.anchors}
        return SamplerConfig(
            **fields, block_size=policy.block_size, temperature=policy.temperature, stop_tokens=stop_tokens,
            draft_temperature=self.draft_temperature, beta=self.beta,
        )  # fmt: skip

    def check_policy(self, policy: PolicyObjective) -> None:
        """UserError where a policy cannot be trained on these rollouts."""
        try:
            sampler, _ = (self.sampler_config(policy, (), name) for name in (self.sampler, LOSSLESS))
        except UserError as error:
            raise UserError(str(error).replace("SamplerConfig.", "rollouts.", 1)) from error
        knows = policy.importance_cap or policy.log_probabilities == "rollout"
        if not find_target(str(sampler.target)).lossless and not knows:
            may_be = "above 0 where rollouts.sampler is not lossless (or log_probabilities 'rollout')"
            raise UserError(f"objective.importance_cap: got {policy.importance_cap!r}, may be {may_be}")
