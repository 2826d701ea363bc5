"""What generating cost: tokens, forwards and seconds, with compilation kept out of it."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType

import jax

from zaya_jax.sampling import Generation, SamplerConfig, Streamer, find_target
from zaya_jax.sampling.continuous import Work
from zaya_jax.sampling.decoding import Finished

COMPILED = "/jax/core/compile/backend_compile_duration"  # the event JAX reports after every XLA compilation


class Meter:
    """Adds up generations. Use it as a context: it listens for compilations, whose time is no sampler's.

    A generation counts towards tokens per second if nothing was compiled in it; of a streamed one, every step in which
    nothing was.
    """

    def __init__(self) -> None:
        self.tokens = self.forwards = self.compilations = 0
        self.seconds = 0.0  # of everything
        self.timed_tokens, self.timed_seconds = 0, 0.0  # without compilation

    def __enter__(self) -> "Meter":
        jax.monitoring.register_event_duration_secs_listener(self._hear)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        jax.monitoring.unregister_event_duration_listener(self._hear)

    def _hear(self, event: str, duration_secs: float, **details: str | int) -> None:
        self.compilations += event == COMPILED

    def count(
        self, call: Callable[[Streamer | None], Generation], streamer: Streamer | None = None, again: bool = False
    ) -> Generation:
        """Calls, with the streamer if there is one.

        Args:
          call: generates, and streams to what it is given.
          streamer: what is shown meanwhile.
          again: the same was counted before: only the time matters.
        """
        pulse = None if streamer is None else _Pulse(streamer, self)
        compiled, began = self.compilations, time.perf_counter()
        generation = call(pulse)
        seconds = time.perf_counter() - began
        tokens = sum(map(len, generation.tokens))
        if not again:
            self.tokens += tokens
            self.forwards += int(generation.forwards.sum())
            self.seconds += seconds
        if pulse is None and compiled == self.compilations:
            self.timed_tokens += tokens
            self.timed_seconds += seconds
        return generation

    def follow(
        self, sequences: Iterable[tuple[Finished, Work]], again: bool = False
    ) -> Iterator[tuple[Finished, Work]]:
        """Passes a queue's sequences on, counted.

        Args:
          again: see `count`.
        """
        source, tokens = iter(sequences), 0
        while True:
            compiled, began = self.compilations, time.perf_counter()
            following = next(source, None)
            seconds = time.perf_counter() - began
            if following is None:
                return
            sequence, work = following
            if not again:
                self.tokens += len(sequence.tokens)
                self.forwards += len(sequence.accepted)
                self.seconds += seconds
            if compiled == self.compilations:
                self.timed_tokens += work.tokens - tokens
                self.timed_seconds += seconds
            tokens = work.tokens
            yield sequence, work

    @property
    def tokens_per_forward(self) -> float:
        return self.tokens / max(1, self.forwards)

    @property
    def rate(self) -> float:
        """Tokens per second, compilation excluded if anything ran without."""
        if self.timed_tokens:
            return self.timed_tokens / self.timed_seconds
        return self.tokens / max(self.seconds, 1e-9)

    @property
    def speed(self) -> str:
        """Tokens per second, and what they include."""
        return f"{self.rate:.1f} tokens/s, compilation {'excluded' if self.timed_tokens else 'included'}"

    def line(self, sampler: SamplerConfig, rows: str) -> str:
        """The closing line.

        Args:
          sampler: as it ran.
          rows: the batch, in words.
        """
        s = sampler
        parts = [s.mode]
        if s.drafter is not None:
            tree = f" as a tree of {s.tree_size}" if s.tree_size else ""
            parts = [f"{s.drafter}, {s.draft_length} drafts{tree}"]
        elif s.mode != "autoregressive":
            parts.append(f"block {s.block_size}")
        if s.mode == "single_pass":
            parts.append(
                f"branch points {s.anchors if isinstance(s.anchors, str) else ','.join(map(str, s.anchor_list))}"
            )
        if s.lookup:
            parts.append(f"lookup {s.lookup}")
        target = find_target(str(s.target))
        if not target.lossless:
            parts.append(f"target {s.target}" + (f" (beta {s.beta:g})" if target.beta else ""))
        return (
            f"{self.tokens} tokens in {self.forwards} forwards (NFE): T {self.tokens_per_forward:.2f} at temperature "
            f"{s.temperature:g}, {', '.join(parts)}, {rows}; {s.rows_per_forward:g} query tokens a forward; "
            f"{self.speed}"
        )


class _Pulse:
    """Passes a stream on and times its steps, but for those in which something was compiled."""

    def __init__(self, streamer: Streamer, meter: Meter) -> None:
        self._streamer, self._meter = streamer, meter
        self._clock, self._compilations = time.perf_counter(), meter.compilations

    def put(self, tokens: Sequence[list[int]]) -> None:
        now, meter = time.perf_counter(), self._meter
        if meter.compilations == self._compilations:
            meter.timed_tokens += sum(map(len, tokens))
            meter.timed_seconds += now - self._clock
        self._clock, self._compilations = now, meter.compilations
        self._streamer.put(list(tokens))

    def put_draft(self, tokens: list[list[int]]) -> None:
        self._streamer.put_draft(tokens)

    def end(self) -> None:
        self._streamer.end()
