"""What a step of a sampler computes, counted in its program and not by the method itself.

Two prices follow (docs/method.md): a forward-equivalent is the target's weights read once (what a step costs where
memory bounds it), a row-equivalent one query token of the target (where arithmetic does).
"""

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp

from zaya_jax.architecture import Cache, Layout, Zaya, init_cache
from zaya_jax.architecture.features import Features
from zaya_jax.sampling.config import SamplerConfig
from zaya_jax.sampling.core.random_streams import KeyedNoise, row_keys
from zaya_jax.sampling.loop import Prompts, Sizes, advance, begin
from zaya_jax.sampling.options import options_of, plan_of
from zaya_jax.sampling.strategies.base import Plan, Tally, make_setup


@dataclasses.dataclass(frozen=True)
class StepWork:
    """Of one step, for each sequence; prefills are not counted."""

    target: tuple[int, ...]  # query tokens of each of the target's forwards
    draft: tuple[tuple[int, int], ...]  # (rows, parameters read) of each pass of a drafter's own network
    parameters: int  # that a forward of the target reads, all of its experts among them: no lookup, but the head

    @property
    def target_forwards(self) -> int:
        return len(self.target)

    @property
    def target_rows(self) -> int:
        return sum(self.target)

    @property
    def draft_passes(self) -> int:
        return len(self.draft)

    @property
    def forward_equivalents(self) -> float:
        """Weights read, in forwards of the target."""
        return self.target_forwards + sum(read for _, read in self.draft) / self.parameters

    @property
    def row_equivalents(self) -> float:
        """Multiplications with weights, in query tokens of the target."""
        return self.target_rows + sum(rows * read for rows, read in self.draft) / self.parameters


def step_work(model: Zaya, variables: Any, sampler: SamplerConfig) -> StepWork:
    """Counts a step of any sampler but "auto"; nothing is computed or compiled."""
    leaves, tree = jax.tree.flatten(variables)
    shapes = tuple((x.shape, jnp.dtype(x.dtype)) for x in leaves)
    target, draft = _counted(model, tree, shapes, plan_of(sampler))  # pyrefly: ignore[bad-argument-type]
    params = variables["params"]
    beside = ("embed_tokens", "drafter", "drafter_head")
    read = jax.tree.leaves({name: x for name, x in params.items() if name not in beside})
    head = params["embed_tokens"].size if model.config.tie_word_embeddings else 0
    return StepWork(target, draft, sum(int(x.size) for x in read) + head)


class _Shapes:
    """A model whose forwards are zeros of their shapes: how many there are is counted, not what is in them, and
    tracing that takes most of a second each.
    """

    def __init__(self, model: Zaya) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def apply(self, variables: Any, *args: Any, method: str) -> Any:
        forwards = {"backbone": self._backbone, "features": self._features}
        return forwards[method](*args) if method in forwards else self._model.apply(variables, *args, method=method)

    def _backbone(self, layout: Layout, cache: Cache) -> tuple[jax.Array, Cache, None]:
        def pending(columns: jax.Array) -> jax.Array:
            layers, batch, history, *channels = columns.shape
            return jnp.zeros((layers, batch, history + layout.clean_size, *channels), columns.dtype)

        conv, delayed = jax.tree.map(pending, (cache.conv, cache.delayed))
        config = self._model.config
        return (
            jnp.zeros((*layout.tokens.shape, config.hidden_size), config.dtype),
            cache.replace(conv=conv, delayed=delayed), None,
        )  # fmt: skip

    def _features(self, layout: Layout, cache: Cache, taps: tuple[int, ...]) -> tuple[Features, Cache, None]:
        hidden, cache, _ = self._backbone(layout, cache)
        shape = (*layout.tokens.shape, len(taps), hidden.shape[-1])
        return Features(hidden, jnp.zeros(shape, self._model.config.stream_dtype)), cache, None


@functools.lru_cache(maxsize=64)
def _counted(
    model: Zaya, tree: Any, shapes: tuple[tuple[tuple[int, ...], Any], ...], plan: Plan
) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """(`StepWork.target`, `StepWork.draft`) of a plan's step; kept, since tracing takes a second and options that are
    no part of the plan (temperatures, truncations, stops) change nothing.

    Args:
      tree: of the variables; `shapes`: of its leaves, with their dtypes.
    """
    options, tally = options_of(SamplerConfig()), Tally()
    shaped = cast(Zaya, _Shapes(model))
    variables = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(*each) for each in shapes])

    def start(variables: Any) -> Any:
        setup = make_setup(shaped, variables, plan, options, KeyedNoise.of(row_keys(0, 1)))
        cache = init_cache(model.config, 1, 32 + 2 * plan.block_size, model.separate)
        seen = jnp.zeros((1, model.config.vocab_size), bool)
        prompts = Prompts(jnp.zeros((1, 4), jnp.int32), jnp.full((1,), 4, jnp.int32), seen, cache)
        return begin(setup, prompts, jnp.int32(8), Sizes(8, 1, cache.capacity))

    def step(variables: Any, state: Any) -> Any:
        setup = make_setup(shaped, variables, plan, options, KeyedNoise.of(row_keys(0, 1)), tally)
        return advance(setup, state, jnp.int32(8))

    jax.eval_shape(step, variables, jax.eval_shape(start, variables))
    return tuple(tally.target), tuple(tally.draft)
