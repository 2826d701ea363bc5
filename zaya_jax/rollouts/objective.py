"""The objective of a policy: its own rollouts, made likelier or less likely by what they were worth; drafts beside it.

A rollout's tokens are drawn from the policy at `temperature` whatever drafted them: a lossless sampler's distribution
is the autoregressive one, and the log-probability that it records is that of the query token which decided a position.
So after one forward over the clean text the policy's gradient is exact, without a correction for the sampler; and with
draft blocks in the same row, as TiDAR trains them, that forward trains the drafts as well.
"""

import dataclasses
import functools
from typing import Annotated, Any, cast

import jax
import jax.numpy as jnp

from zaya_jax.architecture import Layout, Zaya
from zaya_jax.checks import FLOAT32, SWITCH, Choice, Integer, Number
from zaya_jax.errors import UserError
from zaya_jax.rollouts.advantages import BASELINES, REDUCTIONS, SCALES
from zaya_jax.training.objective import Objective, in_pieces, register_objective, run_layout

Array = jax.Array
KIND = "policy"
SOURCES = ("training", "rollout")


@register_objective
@dataclasses.dataclass(frozen=True)
class PolicyObjective(Objective):
    """Group-relative policy gradients, and the draft loss of `Objective` on the same rollouts.

    loss = policy + kl * KL + draft_weight * draft. A batch without advantages (validation's) has `Objective`'s losses.

    Attributes:
      baseline, scale: of advantages; reduction: over tokens. See `rollouts.advantages`, whose ALGORITHMS name sets.
      clip_low, clip_high: the ratio of the policy's probability of a token to the old policy's counts within
        1 - clip_low .. 1 + clip_high. Without effect where each batch of rollouts is trained on once: the ratio is 1.
      kl: weight of the estimate r - log r - 1, r the start model's probability of a token over the policy's.
      mask_cut: rollouts that max_new_tokens cut have no policy loss.
      log_probabilities: the old policy's are those of this model in "training", or as the "rollout" recorded them.
        Where the sampler is lossless they are the same but for rounding.
      importance_cap: above 0, a token's loss is weighted by the old policy's probability over that of the distribution
        which the rollout was drawn from, at most this: for samplers that are not lossless.
      temperature: of the policy: rollouts are drawn at it, and its probabilities are those at it.
      draft_on: which rollouts have a draft loss: "all", "positive" (those whose advantage is above 0), or "none": rows
        then hold no draft blocks.
      draft_weight: of the draft loss. `distill`, `distance` and `slot_decay` shape it as ever.
    """

    kind: str = KIND
    loss_on: Annotated[str, Choice(("answers",))] = "answers"
    masking: Annotated[str, Choice(("full",))] = "full"
    average: Annotated[str, Choice(("masked",))] = "masked"
    smallest_block: Annotated[int, Integer(0, 0)] = 0
    alpha: Annotated[float, Choice((1.0,))] = 1.0  # the policy's loss has the autoregressive one's place
    baseline: Annotated[str, Choice(BASELINES)] = "mean"
    scale: Annotated[str, Choice(SCALES)] = "none"
    reduction: Annotated[str, Choice(REDUCTIONS)] = "constant"
    clip_low: Annotated[float, Number(0, 1)] = 0.2
    clip_high: Annotated[float, Number(0, 1e6)] = 0.2
    kl: Annotated[float, Number(0, 1e6)] = 0.0
    mask_cut: Annotated[bool, SWITCH] = False
    log_probabilities: Annotated[str, Choice(SOURCES)] = "training"
    importance_cap: Annotated[float, Number(0, 1e6)] = 0.0
    temperature: Annotated[float, Number(1e-3, FLOAT32)] = 1.0
    draft_on: Annotated[str, Choice(("none", "all", "positive"))] = "all"
    draft_weight: Annotated[float, Number(0, 1e6)] = 0.3

    def layout(self, batch: dict[str, Array], drawn: dict[str, Array]) -> Layout:
        if "advantage" in batch and not self._trains_drafts:
            return Layout.causal(batch["tokens"], document=batch["document"])
        return super().layout(batch, drawn)

    @property
    def _trains_drafts(self) -> bool:
        return self.draft_on != "none"

    def _scored(self, batch: dict[str, Array]) -> Array | None:
        """Of the draft loss."""
        scored = batch["answer"] != 0
        if "advantage" in batch and self.draft_on == "positive":
            scored &= batch["advantage"][:, None] > 0
        return scored

    def sums(
        self,
        model: Zaya,
        variables: Any,
        batch: dict[str, Array],
        drawn: dict[str, Array],
        axis: tuple[str, ...] = (),
        constant_context: bool = False,
    ) -> dict[str, Array]:
        """As `Objective.sums`; of rollouts (`rollouts.batches`) `policy_sums` besides."""
        if "advantage" not in batch:
            return super().sums(model, variables, batch, drawn, axis, constant_context)
        if axis:
            raise UserError("mesh.context: may be 1 for a policy: devices cannot share its rows")
        layout = self.layout(batch, drawn)
        clean, drafts, load = run_layout(model, variables, layout, False)
        targets = layout.clean_targets(batch["answer"] != 0)
        told = token_log_probabilities(model, variables, clean, *targets, self.temperature)
        out = {"load": load, "ar_nll": -told[0].sum(), "ar_count": targets[1].sum().astype(jnp.float32)}
        out |= self.policy_sums(*told, targets[1], batch)
        if not self._trains_drafts:
            return out
        scored, where = self._scored(batch), self._where(batch, drawn)
        targets, teachers = layout.draft_targets(scored=scored, **where), layout.draft_teachers(**where)
        rows = layout.gather(jax.lax.stop_gradient(clean))
        by_slot, _ = self._draft_sums(model, variables, drafts, targets, rows, teachers, False)
        return out | {name: self._by_slot(x, layout) for name, x in by_slot.items()}

    def policy_sums(self, log_p: Array, entropy: Array, has: Array, batch: dict[str, Array]) -> dict[str, Array]:
        """Sums over the rollouts' tokens, float32 [] each but for the last.

        Args:
          log_p, entropy: of the policy, float32 [B, T], of the token after each; 0 where `has` is False.

        Returns:
          policy_loss, weighted already; kl_loss, likewise, where there is a start model; entropy, clipped (tokens whose
          ratio was cut), approximate_kl (of the policy from what the rollouts were drawn from), and log_gap [rows]:
          each rollout's largest difference of a token's log-probabilities, as the rollout recorded it and as trained.
        """
        held = jax.lax.stop_gradient(log_p)
        weight = jnp.where(has, batch["weight"][:, None], 0)
        advantage = batch["advantage"][:, None]
        rolled = _following(batch["log_rollout"])
        if self.log_probabilities == "rollout":
            old = rolled
        else:
            old = _following(batch["log_old"]) if "log_old" in batch else held
        ratio = jnp.exp(jnp.where(has, log_p - old, 0))
        within = jnp.clip(ratio, 1 - self.clip_low, 1 + self.clip_high)
        gain = jnp.minimum(ratio * advantage, within * advantage)
        if self.importance_cap:
            drawn = jnp.exp(jnp.where(has, jax.lax.stop_gradient(old) - rolled, 0))
            gain *= jnp.minimum(drawn, self.importance_cap)
        gap = jnp.where(has, held - rolled, 0)
        out = {
            "policy_loss": -(weight * gain).sum(),
            "entropy": entropy.sum(),
            "clipped": (has & (ratio * advantage > within * advantage)).sum().astype(jnp.float32),
            "approximate_kl": _k3(gap).sum(),
            # a column of its own for each rollout, wherever it is: sums over devices and micro-batches keep it
            "log_gap": jnp.abs(gap).max(1) @ batch["which"],
        }
        if "log_start" in batch:
            out["kl_loss"] = (weight * _k3(jnp.where(has, log_p - _following(batch["log_start"]), 0))).sum()
        return out

    def counts(self, batch: dict[str, Array], drawn: dict[str, Array]) -> dict[str, Array]:
        if "advantage" not in batch:
            return super().counts(batch, drawn)
        layout = self.layout(batch, drawn)
        out = {"ar_count": layout.clean_targets(batch["answer"] != 0)[1].sum().astype(jnp.float32)}
        if self._trains_drafts:
            has = layout.draft_targets(scored=self._scored(batch), **self._where(batch, drawn))[1]
            out["draft_count"] = has.reshape(-1, self.block_size).sum(0).astype(jnp.float32)
        return out

    def loss(self, sums: dict[str, Array], counts: dict[str, Array]) -> Array:
        if "policy_loss" not in sums:
            return super().loss(sums, counts)
        loss = sums["policy_loss"] + (self.kl * sums["kl_loss"] if "kl_loss" in sums else 0)
        return loss + self.draft_weight * self._draft_loss(sums, counts) if self._trains_drafts else loss

    def metrics(self, sums: dict[str, Array]) -> dict[str, Array]:
        if "policy_loss" not in sums:
            return {}
        tokens = jnp.maximum(sums["ar_count"], 1)
        means = {name: sums[name] / tokens for name in ("entropy", "clipped", "approximate_kl")}
        kl = {"kl_loss": sums["kl_loss"]} if "kl_loss" in sums else {}
        return {"policy_loss": sums["policy_loss"], **kl, **means, "log_probability_gap": sums["log_gap"].max()}


def _following(x: Array) -> Array:
    """What is said of tokens [B, T], where the token before them stands."""
    return jnp.concatenate([x[:, 1:], x[:, :1]], axis=1)


def _k3(log_ratio: Array) -> Array:
    """Of log p - log q at what p drew, an estimate of KL(p || q) that is never negative: r - log r - 1, r = q / p."""
    return jnp.expm1(-log_ratio) + log_ratio


def token_log_probabilities(
    model: Zaya, variables: Any, hidden: Array, ids: Array, has: Array, temperature: float
) -> tuple[Array, Array]:
    """Log-probabilities of `ids` at a temperature and the entropies of their distributions, 0 where `has` is False.

    Both [B, T], in nats, in at least float32; logits exist for a bounded number of tokens at a time (`in_pieces`).

    Args:
      hidden: [B, T, M].
      ids, has: int32 and bool [B, T].
    """

    def piece(hidden: Array, ids: Array) -> tuple[Array, Array]:
        logits = cast(Array, model.apply(variables, hidden, method="head")) / temperature
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        target = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
        held = jax.lax.stop_gradient(logits)
        entropy = jax.lax.stop_gradient(normaliser) - (jax.nn.softmax(held, axis=-1) * held).sum(-1)
        return target - normaliser, entropy

    log_p, entropy = in_pieces(piece, (hidden, ids), ids.size, model.config.vocab_size)
    return jnp.where(has, log_p.reshape(ids.shape), 0), jnp.where(has, entropy.reshape(ids.shape), 0)


@functools.partial(jax.jit, static_argnames=("model", "temperature"))
def score(model: Zaya, variables: Any, batch: dict[str, Array], temperature: float) -> Array:
    """Log-probabilities of a batch's answers at a temperature, at least float32 [B, T], where each token stands.

    Args:
      batch: tokens, document and answer, as of `zaya_jax.data.pipeline`.
    """
    layout = Layout.causal(batch["tokens"], document=batch["document"])
    hidden = cast(tuple[Array, None, Array], model.apply(variables, layout, method="backbone"))[0]
    targets = layout.clean_targets(batch["answer"] != 0)
    log_p, _ = token_log_probabilities(model, variables, hidden, *targets, temperature)
    return jnp.concatenate([jnp.zeros_like(log_p[:, :1]), log_p[:, :-1]], axis=1)
