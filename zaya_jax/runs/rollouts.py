"""A stage that makes its own batches: its rollouts, and how held-out problems are answered meanwhile."""

from typing import Any

from zaya_jax.architecture import Zaya
from zaya_jax.parallel import Placement
from zaya_jax.rollouts.batches import Asked, RolloutBatches
from zaya_jax.rollouts.config import LOSSLESS
from zaya_jax.rollouts.held_out import held_out
from zaya_jax.rollouts.objective import PolicyObjective
from zaya_jax.runs.configuration import settings
from zaya_jax.runs.configuration.stage import Stage
from zaya_jax.tasks import ChatTask, Task


def tasks_of(stage: Stage) -> tuple[tuple[Task, float], ...]:
    """A policy's tasks and their shares; in chats where its mixture says so."""
    found = []
    for source in stage.mixture:
        assert source.task is not None  # `cross_checks.policies`
        task = source.task if source.template is None else ChatTask(source.task, source.template)
        found.append((task, source.weight))
    return tuple(found)


def batches(
    setup: settings.Settings, stage: Stage, model: Zaya, start: Any, placement: Placement | None = None
) -> RolloutBatches:
    """A policy's batches, at their beginning.

    Args:
      placement: of the stage.
      start: the variables that the stage starts from.
    """
    policy, rollouts = stage.phase.objective, stage.rollouts
    assert isinstance(policy, PolicyObjective) and rollouts is not None
    asked = Asked(
        tasks_of(stage), setup.tokenizer, stage.row_length, stage.batch_size // rollouts.group, stage.data_seed,
        stage.phase.seed,
    )  # fmt: skip
    return RolloutBatches(model, policy, rollouts, asked, start if policy.kl else None, placement)


def held_out_of(
    setup: settings.Settings, stage: Stage, model: Zaya, variables: Any, placement: Placement | None = None
) -> dict[str, float]:
    """`rollouts.held_out` of a stage, drafting losslessly: the distribution is the policy's, however it is drawn."""
    policy, rollouts = stage.phase.objective, stage.rollouts
    assert isinstance(policy, PolicyObjective) and rollouts is not None
    if not rollouts.held_out:
        return {}
    sampler = rollouts.sampler_config(policy, setup.tokenizer.eos_ids, LOSSLESS)
    tasks, batch = [task for task, _ in tasks_of(stage)], rollouts.batch or stage.batch_size
    return held_out(
        model, variables, setup.tokenizer, tasks, sampler, rollouts.held_out, rollouts.held_out_samples,
        rollouts.max_new_tokens, batch, setup.protocol.seed, placement,
    )  # fmt: skip
