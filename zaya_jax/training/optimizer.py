"""Optimizers, schedules and the router's balancing controller."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, or Muon for matrices with AdamW for the rest (ZAYA1's own choice), under a warm-up and cosine schedule."""

    name: str = "adamw"  # or "muon"
    learning_rate: float = 3e-3
    adam_learning_rate: float | None = None  # muon: of what is not a matrix; None: learning_rate
    final_learning_rate: float = 0.1  # share of learning_rate the cosine ends at
    warmup_steps: int = 20
    b1: float = 0.9
    b2: float = 0.95
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    balancing_rate: float = 1e-3  # Adam's rate on the balancing biases; 0 leaves them alone

    def __post_init__(self) -> None:
        def require(ok: bool, field: str, may_be: str) -> None:
            if not ok:
                raise ValueError(f"OptimizerConfig.{field}: got {getattr(self, field)!r}, may be {may_be}")

        require(self.name in ("adamw", "muon"), "name", "'adamw' or 'muon'")
        for field in ("learning_rate", "clip_norm"):
            require(getattr(self, field) > 0, field, "a number above 0")
        for field in ("final_learning_rate", "warmup_steps", "weight_decay", "balancing_rate"):
            require(getattr(self, field) >= 0, field, "a number of at least 0")


def schedule(config: OptimizerConfig, step: int, steps: int) -> float:
    """Share of the peak rate at 0-based `step` of `steps`: linear warm-up, then cosine to `final_learning_rate`.

    A number that is fed to the compiled step, not part of it: phases of other lengths compile nothing.
    """
    warmup = min(config.warmup_steps, steps // 2)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    return config.final_learning_rate + (1 - config.final_learning_rate) * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """The rule at its peak rate; the caller scales its updates by `schedule` (weight decay included, as optax does)."""
    if config.name == "adamw":
        rule = optax.adamw(
            config.learning_rate, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=matrices
        )
    else:
        rule = optax.contrib.muon(
            config.learning_rate,
            weight_decay=config.weight_decay,
            adam_b1=config.b1,
            adam_b2=config.b2,
            adam_learning_rate=config.adam_learning_rate or config.learning_rate,
            muon_weight_dimension_numbers=_muon_axes,
            consistent_rms=0.2,  # updates of AdamW's size, so that its rates carry over (arXiv 2502.16982)
        )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)


def matrices(params):
    """True for projections and experts (what weight decay and Muon act on), else False.

    False are vectors, convolutions and the embedding.
    """

    def is_matrix(path, _) -> bool:
        name = path[-1].key
        return name in ("kernel", "gate_up_proj", "down_proj")

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def _muon_axes(params):
    def axes(is_matrix: bool, leaf):
        last = leaf.ndim - 1  # stacked layers and experts are batch axes in front
        return optax.contrib.MuonDimensionNumbers(last - 1, last) if is_matrix else None

    return jax.tree.map(axes, matrices(params), params)


def balancing_error(load: Array) -> Array:
    """How far each expert is above its fair share: load fraction - 1 / num_experts (zaya1.md section 5).

    Clean and draft slots are two populations (all drafts share one embedding), so their fractions are averaged, not
    their counts: otherwise a collapse of one could hide behind the other. Skip has no error; its bias stays.

    Args:
      load: int32 [layer, 2, classes], skip last.

    Returns:
      float32 [layer, classes].
    """
    total = load.sum(-1, keepdims=True)
    fraction = load / jnp.maximum(total, 1)
    present = total > 0
    experts = load.shape[-1] - 1
    error = jnp.where(present, fraction - 1 / experts, 0).sum(1) / jnp.maximum(present.sum(1), 1)
    return error.at[:, -1].set(0.0)
