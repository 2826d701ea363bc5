"""What the host does between steps of the compiled loop, if anything: stop strings and streaming."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zaya_jax.sampling.config import SamplerConfig
from zaya_jax.sampling.loop import State
from zaya_jax.sampling.stopping import Decoder, StopStrings
from zaya_jax.sampling.types import Request

WATCHED_STEPS = 16  # steps between two looks for stop strings


class Watch:
    """Looks at a state every few steps; without stop strings and streamer never, and the loop runs to its end.

    Args:
      drafts: a method's own, from its carry: the tokens that it proposes.
    """

    def __init__(self, request: Request, sampler: SamplerConfig, drafts: Callable[[Any], Any]) -> None:
        self.sampler, self.tokenizer, self.streamer = sampler, request.tokenizer, request.streamer
        self.drafts = drafts
        self.last = [text[-1] for text in request.texts for _ in range(request.samples)]  # token of each row's prompt
        self.cut: dict[int, int] = {}  # rows that a stop string ended, and their lengths
        self.seen: list[int] = []  # tokens already looked at, each row
        self.searches: list[StopStrings] = []  # for stop strings, each row
        self.idle = self.streamer is None and not sampler.stop_strings
        self.steps = 2**30 if self.idle else 1 if self.streamer else WATCHED_STEPS  # between two looks

    def look(self, state: State) -> State:
        if self.idle:
            return state
        tokens, count = jax.device_get((state.tokens, state.progress.count))
        self.seen = self.seen or [0] * len(count)
        if self.sampler.stop_strings:
            self.searches = self.searches or [stop_search(self.sampler, self.tokenizer, last) for last in self.last]
            fresh = {}
            for row, search in enumerate(self.searches):
                new = tokens[row, self.seen[row] : count[row]].tolist()
                end = None if row in self.cut else search.read(new)
                if end is not None:
                    fresh[row] = end
            if fresh:
                self.cut.update(fresh)
                state = state.replace(done=state.done.at[jnp.array(list(fresh))].set(True))
        ends = [self.cut.get(row, int(n)) for row, n in enumerate(count)]
        if self.streamer is not None:
            self.streamer.put([tokens[row, self.seen[row] : end].tolist() for row, end in enumerate(ends)])
            drafts, exist, done = jax.device_get((*self.drafts(state.carry), state.done))
            shown = exist & ~done[:, None]
            self.streamer.put_draft([row[show].tolist() for row, show in zip(drafts, shown, strict=True)])
        self.seen = ends
        return state


def stop_search(sampler: SamplerConfig, tokenizer: Decoder | None, before: int) -> StopStrings:
    """For the sampler's stop strings in a text whose prompt ends in token `before`."""
    assert tokenizer is not None  # `decoding.check`
    strings, stops = tuple(sampler.stop_strings), tuple(sampler.stop_tokens)
    return StopStrings(strings, tokenizer, sampler.min_new_tokens, stops, before)
