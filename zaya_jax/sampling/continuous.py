"""Sequences from a queue: where rows of a batch have ended, the next prompts take their place (continuous batching).

A batch that is generated to its end idles on rows that ended early. Here the compiled loop stops as soon as a few rows
have ended, their texts are handed out, and prompts are read into their places. A sequence has a key and positions of
its own, so its tokens depend neither on the batch nor on the order.
"""

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from zaya_jax.architecture import Zaya
from zaya_jax.errors import UserError
from zaya_jax.parallel import Placement
from zaya_jax.sampling.config import SamplerConfig
from zaya_jax.sampling.core.random_streams import row_keys
from zaya_jax.sampling.decoding import Books, Finished, books, bucket, check, prompts_of, require_cache
from zaya_jax.sampling.drafting import require_drafter
from zaya_jax.sampling.loop import Sizes, State, method_of, run, start
from zaya_jax.sampling.options import options_of, plan_of
from zaya_jax.sampling.stopping import Decoder, StopStrings
from zaya_jax.sampling.types import Request
from zaya_jax.sampling.watching import WATCHED_STEPS, stop_search

Array = jax.Array
# Of the rows: refilled together, hence idle at most (but for those that end in the same step). Where a step is a token
# a row, refilling costs more than idling.
ADMITTED, ADMITTED_WITHOUT_DRAFTS = 1 / 16, 1 / 8
SMALLEST_HALF = 8  # rows: once nothing waits, a batch is halved whenever half has ended, down to so many


class Prompt(NamedTuple):
    """What a sequence continues."""

    tokens: Sequence[int]
    seed: int


class Work(NamedTuple):
    """What rows were doing in the loop's steps; prefills are not counted."""

    row_steps: int = 0  # steps x rows of the batch
    busy: int = 0  # of them, on a sequence that had not ended; counted when it has
    tokens: int = 0  # new tokens so far, of sequences that have not ended, too

    @property
    def idle(self) -> float:
        """Share of the rows' steps that were spent on nothing."""
        return 1 - self.busy / max(1, self.row_steps)


def generate_queue(
    model: Zaya,
    variables: Any,
    prompts: Iterable[Prompt],
    sampler: SamplerConfig,
    max_new_tokens: int,
    *,
    longest: int,
    batch: int = 64,
    tokenizer: Decoder | None = None,
    placement: Placement | None = None,
) -> Iterator[tuple[Finished, Work]]:
    """Continues prompts, however many there are, and yields each when it has ended: the same as `generate` yields.

    Prompts are drawn as room is made for them, so memory does not grow with their number.

    Args:
      prompts: of at most `longest` tokens each.
      sampler: any mode but "auto".
      batch: sequences side by side.
      tokenizer: for stop strings.
      placement: lays the batch's sequences over devices, as a training batch's rows; `variables` are where it puts them
        (`Placement.put`), and `batch` is a multiple of the devices that share it. Tokens are those of one device.

    Yields:
      (sequence, what all rows have done so far), in the order in which sequences end; `index` counts the prompts, and
      `seconds` is the sequence's share of the time that was spent here, compilation included.

    Raises:
      UserError, Diverged: as `generate`; what a prompt is refused for is said when its turn comes.
    """
    if sampler.mode == "auto":
        raise UserError("SamplerConfig.mode: got 'auto', may be what `choose_sampler` chose")
    if placement is not None and batch % placement.split("batch"):
        may_be = f"a multiple of {placement.split('batch')}, the devices that share it"
        raise UserError(f"batch: got {batch}, may be {may_be}")
    queue = _Queue(model, variables, sampler, max_new_tokens, longest, min(batch, 2**20), tokenizer, placement)
    waiting = enumerate(prompts)
    ahead = list(itertools.islice(waiting, 1))  # the next in line, drawn to know whether there is one
    while True:
        while ahead and queue.free:
            queue.admit([*ahead, *itertools.islice(waiting, min(queue.admitted, queue.free) - 1)])
            ahead = list(itertools.islice(waiting, 1))
        if not queue.running:
            return
        for finished in queue.advance(more=bool(ahead)):
            yield finished, queue.work


def in_order(sequences: Iterable[tuple[Finished, Work]]) -> Iterator[Finished]:
    """A queue's sequences by their `index`: those that end before an earlier one are held back until it has.

    A sequence takes at most max_new_tokens steps, so at most that many times the batch are held.
    """
    held: dict[int, Finished] = {}
    following = 0
    for sequence, _ in sequences:
        held[sequence.index] = sequence
        while following in held:
            yield held.pop(following)
            following += 1


def compile_queue(
    model: Zaya, variables: Any, prompts: Iterable[Prompt], sampler: SamplerConfig, max_new_tokens: int, *,
    longest: int, batch: int = 64, tokenizer: Decoder | None = None,
) -> None:  # fmt: skip
    """Has the programs ready that `generate_queue` will need, given the same; reads a prompt of each padded length."""
    for prompt in {bucket(len(prompt.tokens)): prompt for prompt in prompts}.values():
        queue = _Queue(model, variables, sampler, max_new_tokens, longest, batch, tokenizer, None)
        queue.admit([(0, prompt)])
        queue.run(steps=0, ended=len(queue.index))
        while queue.may_halve:
            queue.halve()
            queue.run(steps=0, ended=len(queue.index))


class _Queue:
    """The batch between two calls of the compiled loop."""

    def __init__(
        self, model: Zaya, variables: Any, sampler: SamplerConfig, new: int, longest: int, rows: int,
        tokenizer: Decoder | None, placement: Placement | None,
    ) -> None:  # fmt: skip
        self.placement = placement
        self.model, self.variables, self.sampler, self.new, self.tokenizer = model, variables, sampler, new, tokenizer
        self.plan, self.options, self.limit = plan_of(sampler), options_of(sampler), np.int32(new)
        share = ADMITTED if sampler.drafts else ADMITTED_WITHOUT_DRAFTS
        self.devices = 1 if placement is None else placement.split("batch")
        self.longest, self.admitted, self.work = longest, max(1, int(share * rows)), Work()
        capacity = bucket(bucket(longest) + bucket(new)) + 2 * self.plan.block_size
        require_cache(model.config, rows, capacity, "generate", "batch or max_new_tokens may be smaller", variables)
        require_drafter(model.config, variables, sampler)
        self.sizes = Sizes(bucket(new), 1, capacity)
        self.index: list[int | None] = [None] * rows  # of each row's prompt; None: the row is free
        self.searches: dict[int, StopStrings] = {}  # by row
        self.searched: dict[int, int] = {}  # tokens that it has read
        self.seconds = np.zeros(rows)  # of each row's sequence: its share of the time
        self.made = np.zeros((2, rows), int)  # of each row: forwards, tokens when it was last looked at
        self.reading = 0.0  # seconds, not shared out yet
        self.state: State | None = None
        self.keys: Array | None = None

    @property
    def free(self) -> int:
        return self.index.count(None)

    @property
    def running(self) -> int:
        return len(self.index) - self.free

    def admit(self, prompts: list[tuple[int, Prompt]]) -> None:
        """Reads prompts into free rows: one or more, at most `admitted` and as many as are free."""
        began = time.perf_counter()
        texts = [list(prompt.tokens) for _, prompt in prompts]
        for (number, _), text in zip(prompts, texts, strict=True):
            check(self.model.config, Request([text], self.new, tokenizer=self.tokenizer), self.sampler, first=number)
            if len(text) > self.longest:
                raise UserError(f"prompts[{number}]: got {len(text)} tokens, may be at most longest ({self.longest})")
        rows = [row for row, index in enumerate(self.index) if index is None][: len(prompts)]
        for row, (number, _), text in zip(rows, prompts, texts, strict=True):
            self.index[row], self.seconds[row], self.made[:, row] = number, 0, 0
            if self.sampler.stop_strings:
                self.searches[row], self.searched[row] = stop_search(self.sampler, self.tokenizer, text[-1]), 0
        # The program is for `admitted` prompts: what is missing is the first one again, put nowhere.
        missing = self.admitted - len(prompts)
        request = Request([*texts, *[texts[0]] * missing], self.new)
        keys = row_keys([*(prompt.seed for _, prompt in prompts), *[0] * missing], self.admitted)
        read = prompts_of(request, bucket(max(map(len, texts))), self.model.config.vocab_size)
        fresh = start(
            self.model, self.variables, read, keys, self.limit, self.options, plan=self.plan, sizes=self.sizes
        )
        if self.state is None or self.keys is None:
            self.state, self.keys = _empty(fresh, keys, rows=len(self.index))
        places = np.array([*rows, *[len(self.index)] * missing], np.int32)
        self.state, self.keys = self._laid_out(*_put(self.state, self.keys, fresh, keys, places))
        self.reading += time.perf_counter() - began

    def _laid_out(self, state: State, keys: Array) -> tuple[State, Array]:
        """The batch over the devices that share it; nothing moves that is there already."""
        if self.placement is None:
            return state, keys
        rows = self.placement.rows()
        second = NamedSharding(self.placement.mesh, PartitionSpec(None, *rows.spec))  # of the cache's [layer, row, ...]
        cache = state.cache.over_batch(lambda axis, x: jax.device_put(x, second if axis else rows))
        return jax.device_put(state.replace(cache=None), rows).replace(cache=cache), jax.device_put(keys, rows)

    def advance(self, more: bool) -> list[Finished]:
        """Steps until as many rows have ended as are refilled together, or all where nothing waits: their sequences."""
        began = time.perf_counter()
        while not more and self.may_halve and 2 * self.running <= len(self.index):
            self.halve()
        if more:
            ended = self.free + min(self.admitted, self.running)
        else:
            ended = -(-len(self.index) // 2) if self.may_halve else len(self.index)
        made = self.run(WATCHED_STEPS if self.searches else 2**30, ended)
        assert self.state is not None  # `admit`
        host, out, cuts = books(self.state), [], {}
        tokens = self._share_out(host, self.reading + time.perf_counter() - began)
        for row, search in self.searches.items():
            if (cut := search.read(host.tokens[row, self.searched[row] : host.count[row]].tolist())) is not None:
                cuts[row] = cut
            self.searched[row] = int(host.count[row])
        busy = 0
        for row, index in enumerate(self.index):
            if index is not None and (host.done[row] or row in cuts):
                ended_row = host.row(row, index, cuts.get(row), self.sampler)
                out.append(ended_row._replace(seconds=float(self.seconds[row])))
                busy += (int(host.forwards[row]) - 1) // method_of(self.plan).forwards
                self.index[row] = None
                self.searches.pop(row, None)
        if cuts:
            self.state = self.state.replace(done=self.state.done.at[jnp.array(list(cuts))].set(True))
        before = self.work
        self.work = Work(before.row_steps + made * len(self.index), before.busy + busy, before.tokens + tokens)
        return out

    def run(self, steps: int, ended: int) -> int:
        """Up to so many steps, fewer when so many rows have ended; how many were made."""
        assert self.state is not None and self.keys is not None  # `admit`
        self.state, made = run(
            self.model, self.variables, self.state, self.keys, self.limit, np.int32(steps), np.int32(ended),
            self.options, plan=self.plan,
        )  # fmt: skip
        return int(made)

    @property
    def may_halve(self) -> bool:
        """Whether enough rows are left for half of them to be worth a program, and devices can share the half."""
        return len(self.index) >= 2 * SMALLEST_HALF * self.devices and len(self.index) // 2 % self.devices == 0

    def halve(self) -> None:
        """Leaves half of the rows, all that run among them: the steps of the last sequences cost less."""
        size = len(self.index) // 2
        rows = sorted(range(len(self.index)), key=lambda row: self.index[row] is None)[:size]  # those that run first
        assert self.state is not None and self.keys is not None  # `admit`
        self.state, self.keys = self._laid_out(*_take(self.state, self.keys, np.array(rows, np.int32)))
        self.index, places = [self.index[row] for row in rows], {row: place for place, row in enumerate(rows)}
        self.searches = {places[row]: search for row, search in self.searches.items()}
        self.searched = {places[row]: self.searched[row] for row in self.searched if row in places}
        self.seconds, self.made = self.seconds[rows], self.made[:, rows]

    def _share_out(self, host: Books, seconds: float) -> int:
        """Gives running rows their shares of the time, by the forwards that each made; the tokens that they yielded."""
        running = np.array([index is not None for index in self.index])
        forwards, tokens = np.where(running, np.stack([host.forwards, host.count]) - self.made, 0)
        self.seconds += seconds * forwards / max(1, forwards.sum())
        self.made, self.reading = np.stack([host.forwards, host.count]), 0.0
        return int(tokens.sum())


def _empty(fresh: State, keys: Array, rows: int) -> tuple[State, Array]:
    """A batch of `rows` rows that have all ended, of the shapes of one that was just started."""

    def zeros(axis: int, x: Array) -> Array:
        return jnp.zeros((*x.shape[:axis], rows, *x.shape[axis + 1 :]), x.dtype)

    cache = fresh.cache.over_batch(zeros)
    state = jax.tree.map(lambda x: zeros(0, x), fresh.replace(cache=None))
    done, healthy = jnp.ones((rows,), bool), jnp.ones((rows,), bool)
    return state.replace(cache=cache, done=done, healthy=healthy), keys[np.zeros(rows, int)]


def _put_all(state: State, keys: Array, fresh: State, fresh_keys: Array, rows: Array) -> tuple[State, Array]:
    """The started sequences in the given rows of the batch; what has no row there is dropped."""

    def at(axis: int, x: Array, y: Array) -> Array:
        return (x.at[:, rows] if axis else x.at[rows]).set(y, mode="drop")

    rest = jax.tree.map(lambda x, y: at(0, x, y), state.replace(cache=None), fresh.replace(cache=None))
    return rest.replace(cache=state.cache.over_batch(at, fresh.cache)), at(0, keys, fresh_keys)


_put = jax.jit(_put_all, donate_argnums=(0, 1))


@jax.jit
def _take(state: State, keys: Array, rows: Array) -> tuple[State, Array]:
    """The given rows of the batch."""
    cache = state.cache.over_batch(lambda axis, x: x[:, rows] if axis else x[rows])
    rest = jax.tree.map(lambda x: x[rows], state.replace(cache=None))
    return rest.replace(cache=cache), keys[rows]
