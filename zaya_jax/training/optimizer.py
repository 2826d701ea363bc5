"""Optimizers, schedules and the router's balancing controller."""

import dataclasses
import fnmatch
import functools
import re
from collections.abc import Hashable
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zaya_jax.checks import COUNT, SWITCH, Choice, Integer, Number, Unset, check_fields, shown
from zaya_jax.errors import UserError

Array = jax.Array


SCHEDULES = ("cosine", "linear", "constant", "wsd")
RATE = Number(0, 1000)
SHARE = Number(0, 1, below=True)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, or Muon for matrices with AdamW for the rest (ZAYA1's own choice), under a schedule with a warm-up.

    Attributes:
      name: "adamw" or "muon".
      learning_rate: the peak.
      adam_learning_rate: muon: the peak of what is not a matrix; None: learning_rate; 0: it does not move.
      schedule: from the warm-up's end to the last step: "cosine" or "linear" down to the final rate, "constant", or
        "wsd" (warm-up, stable, decay): constant, then linear down to the final rate.
      final_learning_rate: share of the peak that cosine, linear and wsd end at.
      decay_share: wsd: share of all steps, the last ones, that decay.
      warmup_steps: linear from near 0; at most half of the steps.
      clip_norm: the gradient's largest global norm; 0: not clipped.
      accumulate: micro-batches that a batch is cut into, one after the other, to hold the activations of one alone.
        The step is the whole batch's up to rounding.
      ema_decay: of an average of the parameters over steps, ema = decay * ema + (1 - decay) * parameters, kept in
        float32 or wider; 0: none.
      freeze: patterns of parameters that do not train: see `frozen_parameters`.
      balancing_rate: Adam's rate on the balancing biases; 0 leaves them alone.
      balance_skip: the skip expert's bias is balanced too: see `balancing_error`.
    """

    name: Annotated[str, Choice(("adamw", "muon"))] = "adamw"
    learning_rate: Annotated[float, Number(0, 1000, above=True)] = 3e-3
    adam_learning_rate: Annotated[float | None, Unset(RATE)] = None
    schedule: Annotated[str, Choice(SCHEDULES)] = "cosine"
    final_learning_rate: Annotated[float, RATE] = 0.1
    decay_share: Annotated[float, Number(0, 1, above=True)] = 0.2
    warmup_steps: Annotated[int, Integer(0)] = 20
    b1: Annotated[float, SHARE] = 0.9
    b2: Annotated[float, SHARE] = 0.95
    weight_decay: Annotated[float, Number(0, 1000)] = 0.01
    clip_norm: Annotated[float, Number(0, 1e9)] = 1.0
    accumulate: Annotated[int, COUNT] = 1
    ema_decay: Annotated[float, SHARE] = 0.0
    freeze: tuple[str, ...] = ()
    balancing_rate: Annotated[float, RATE] = 1e-3
    balance_skip: Annotated[bool, SWITCH] = False

    def __post_init__(self) -> None:
        check_fields("OptimizerConfig", self)
        patterns = isinstance(self.freeze, tuple | list) and all(isinstance(x, str) for x in self.freeze)
        if not patterns:
            may_be = "a tuple of patterns such as ('embed_tokens', 'layers[0:2]/*')"
            raise UserError(f"OptimizerConfig.freeze: got {shown(self.freeze)}, may be {may_be}")
        object.__setattr__(self, "freeze", tuple(self.freeze))  # JSON gives lists, which do not hash

    def without_schedule(self) -> "OptimizerConfig":
        """The same but for what `schedule` alone reads: what a compiled step depends on."""
        return dataclasses.replace(self, schedule="constant", final_learning_rate=1.0, decay_share=1.0, warmup_steps=0)


def rates(config: OptimizerConfig, steps: int) -> np.ndarray:
    """Share of the peak rate at each 0-based step, float64 [steps + 1]: linear warm-up, then `config.schedule`.

    Numbers that are fed to the compiled step, not part of it: it serves other schedules and lengths. optax computes
    in JAX's default float, and in float32 half of them would be an ulp off: hence float64.
    """
    warmup = min(config.warmup_steps, steps // 2)
    decaying = max(1, round(config.decay_share * steps)) if config.schedule == "wsd" else steps
    start = max(warmup, steps - decaying)
    falling: optax.Schedule = optax.linear_schedule(1.0, config.final_learning_rate, max(1, steps - start))
    if config.schedule == "cosine":
        falling = optax.cosine_decay_schedule(1.0, max(1, steps - start), config.final_learning_rate)
    elif config.schedule == "constant":
        falling = optax.constant_schedule(1.0)
    rising = optax.linear_schedule(1 / (warmup + 1), 1.0, warmup) if warmup else optax.constant_schedule(1.0)
    whole = optax.join_schedules([rising, optax.constant_schedule(1.0), falling], [warmup, start])
    with jax.enable_x64(True):
        return np.asarray(jax.jit(whole)(np.arange(steps + 1)))


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """The rule at its peak rate; the caller scales its updates by `rates` (weight decay included, as optax does).

    Parameters that are frozen whole have no state in it.
    """
    is_muon = config.name == "muon"
    own = config.adam_learning_rate if is_muon else None
    adam_rate = config.learning_rate if own is None else own
    adamw = optax.adamw(adam_rate, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=matrices)
    rules: dict[Hashable, optax.GradientTransformation] = {"adamw": adamw, "frozen": optax.set_to_zero()}
    if is_muon:
        # For matrices only: optax's Muon would give the rest a Nesterov Adam without weight decay.
        rules["muon"] = optax.contrib.muon(
            config.learning_rate,
            weight_decay=config.weight_decay,
            muon_weight_dimension_numbers=_muon_axes,
            consistent_rms=0.2,  # updates of AdamW's size, so that its rates carry over (arXiv 2502.16982)
        )
    split = is_muon or config.freeze
    rule = optax.partition(rules, functools.partial(_rule_names, config)) if split else adamw
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), rule) if config.clip_norm else rule


def matrices(params):
    """True for projections and experts (what weight decay acts on), else False.

    False are vectors, convolutions and the embedding.
    """

    def is_matrix(path, _) -> bool:
        name = path[-1].key
        return name in ("kernel", "gate_up_proj", "down_proj")

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def _rule_names(config: OptimizerConfig, params):
    """Which rule moves each parameter: "muon" (the layers' matrices but the router's), "adamw" or "frozen"."""

    def name(path, frozen, is_matrix) -> str:
        if frozen is True:
            return "frozen"
        # the router and an untied head are matrices whose outputs are classes: AdamW's, like the embedding
        classifies = not {"gate", "lm_head"}.isdisjoint(part.key for part in path)
        return "muon" if config.name == "muon" and is_matrix and not classifies else "adamw"

    return jax.tree_util.tree_map_with_path(name, frozen_parameters(config, params), matrices(params))


def _muon_axes(params):
    """Every leaf is a matrix [..., in, out]: stacked layers and experts are batch axes in front."""
    return jax.tree.map(lambda leaf: optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1), params)


def frozen_parameters(config: OptimizerConfig, params):
    """What `config.freeze` freezes, a tree like `params` with leaves True, False, or bool [L, 1, ...].

    A pattern is matched with a parameter's whole path, such as layers/mlp/gate_up_proj; `*` stands for any text,
    slashes too, and `?` and `[...]` are as in a shell. `layers[2]/...` and `layers[0:2]/...` mean some of the layers,
    which are stacked along the first axis, and count as Python's slices do. A pattern after a `!` lets go of what the
    patterns before it hold: `("*", "!*lora*")` trains adapters alone.

    Raises:
      UserError: a pattern that matches no parameter, or no layer of one.
    """
    flat, tree = jax.tree_util.tree_flatten_with_path(params)
    paths = ["/".join(part.key for part in path) for path, _ in flat]
    layers = [leaf.shape[0] if path.startswith("layers/") else 1 for path, (_, leaf) in zip(paths, flat, strict=True)]
    held = [np.zeros(count, bool) for count in layers]
    for given in config.freeze:
        pattern = given.removeprefix("!")
        some = _LAYERS.match(pattern)
        chosen = _slice(some) if some else slice(None)
        glob = "layers" + pattern[some.end() :] if some else pattern
        hits = [mask[chosen] for path, mask in zip(paths, held, strict=True) if fnmatch.fnmatchcase(path, glob)]
        if not any(hit.size for hit in hits):
            raise UserError(f"OptimizerConfig.freeze: {given!r} matches nothing, may be of paths like {paths[-2:]}")
        for hit in hits:
            hit[:] = pattern == given  # a view of `held`
    leaves = [
        bool(mask.all()) if mask.all() or not mask.any() else mask.reshape(-1, *[1] * (leaf.ndim - 1))
        for mask, (_, leaf) in zip(held, flat, strict=True)
    ]
    return jax.tree.unflatten(tree, leaves)


def moving(frozen, params) -> int:
    """How many of `params` (arrays, or their shapes) move where `frozen` (see `frozen_parameters`) is held."""

    def free(mask: bool | np.ndarray, leaf) -> int:
        return leaf.size * (np.size(mask) - np.count_nonzero(mask)) // np.size(mask)

    return int(sum(jax.tree.leaves(jax.tree.map(free, frozen, params))))


def with_frozen(frozen, params):
    """`params`, those that are frozen whole as constants: no gradient is computed for them."""
    return jax.tree.map(lambda mask, leaf: jax.lax.stop_gradient(leaf) if mask is True else leaf, frozen, params)


def hold(frozen, tree):
    """`tree` (gradients or updates) with zeros where `frozen` (see `frozen_parameters`) says so."""

    def held(mask: bool | np.ndarray, leaf: Array) -> Array:
        if mask is False:
            return leaf
        return jnp.zeros_like(leaf) if mask is True else jnp.where(mask, 0, leaf)

    return jax.tree.map(held, frozen, tree)


_LAYERS = re.compile(r"layers\[((?P<one>-?\d+)|(?P<start>-?\d+)?:(?P<stop>-?\d+)?)\](?=/)")


def _slice(layers: re.Match) -> slice:
    one, start, stop = (layers[name] and int(layers[name]) for name in ("one", "start", "stop"))
    return slice(start, stop) if one is None else slice(one, one + 1 or None)


def balancing_error(load: Array, balance_skip: bool = False) -> Array:
    """How far each class is above its fair share of tokens (docs/architecture.md#training-facts).

    Clean and mask tokens are two populations (all drafts share one embedding), so their fractions are averaged, not
    their counts: otherwise a collapse of one could hide after the other.

    Args:
      load: int32 [L, 2, E + 1], skip last.
      balance_skip: False: an expert's fair share is 1 / num_experts and skip has no error, so its bias stays. True:
        skip is one more class, and the fair share of every class is 1 / (num_experts + 1).

    Returns:
      float32 [L, E + 1].
    """
    total = load.sum(-1, keepdims=True)
    fraction = load / jnp.maximum(total, 1)
    present = total > 0
    balanced = load.shape[-1] if balance_skip else load.shape[-1] - 1
    error = jnp.where(present, fraction - 1 / balanced, 0).sum(1) / jnp.maximum(present.sum(1), 1)
    return error if balance_skip else error.at[:, -1].set(0.0)
