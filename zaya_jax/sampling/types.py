"""What goes into `generate` and what comes out: requests, sessions, generations, and who watches them grow."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from zaya_jax import checks
from zaya_jax.architecture import Cache
from zaya_jax.errors import UserError
from zaya_jax.sampling.config import SamplerConfig
from zaya_jax.sampling.drafting import Yield
from zaya_jax.sampling.stopping import Decoder
from zaya_jax.sampling.values import plain, plain_tuple


class Streamer(Protocol):
    """Sees a generation grow, one forward (or step of two) at a time; one list a row."""

    def put(self, tokens: list[list[int]]) -> None:
        """New tokens, final."""

    def put_draft(self, tokens: list[list[int]]) -> None:
        """Proposed tokens after them, not verified; they replace the drafts shown before."""

    def end(self) -> None:
        """Nothing more comes."""


@dataclasses.dataclass(frozen=True)
class Session:
    """Texts and what the model has read of them: hand it to `generate` to continue without reading them again.

    Equal to one prompt that is the whole text: cache rows hold a prefix of `texts`, and what is missing (the newest
    token, mostly) is read with the next prompt.
    """

    texts: list[list[int]]
    cache: Cache


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be continued: all that `generate` is told besides the model and the sampler, checked and plain.

    Raises:
      UserError: something that is no list of token lists, or not a number, or a session that does not fit.
    """

    prompts: Sequence[Sequence[int]]
    max_new_tokens: int
    seed: int | Sequence[int] = 0
    samples: int = 1  # continuations of each prompt
    session: Session | None = None
    tokenizer: Decoder | None = None  # for stop strings
    streamer: Streamer | None = None

    def __post_init__(self) -> None:
        given = plain_tuple(self.prompts)
        if not isinstance(given, tuple):
            raise UserError(f"prompts: got {given!r:.60}, may be a list of one or more token lists")
        for i, prompt in enumerate(given):
            if not isinstance(prompt, tuple) or not all(checks.SEED.allows(token) for token in prompt):
                raise UserError(f"prompts[{i}]: got {prompt!r:.60}, may be a list of token ids")
        object.__setattr__(self, "prompts", given)
        for name in ("max_new_tokens", "samples"):
            object.__setattr__(self, name, checks.check(name, plain(getattr(self, name)), checks.COUNT))
        if self.session is not None and len(given) != len(self.session.texts):
            raise UserError(
                f"prompts: got {len(given)}, may be {len(self.session.texts)} (one for each text of the session)"
            )
        if self.session is not None and self.samples != 1:
            raise UserError(f"samples: got {self.samples}, may be 1 with a session (its rows are the samples)")

    @property
    def rows(self) -> int:
        """Sequences that are generated: prompts x samples."""
        return len(self.prompts) * self.samples

    @functools.cached_property
    def texts(self) -> list[list[int]]:
        """Each prompt's whole text so far: what a session has, and what is new."""
        before = [[] for _ in self.prompts] if self.session is None else self.session.texts
        return [[*text, *prompt] for text, prompt in zip(before, self.prompts, strict=True)]

    @functools.cached_property
    def unread(self) -> list[list[int]]:
        """What of each text is not in the session's cache."""
        read = [0] * len(self.prompts) if self.session is None else np.asarray(self.session.cache.length).tolist()
        return [text[n:] for text, n in zip(self.texts, read, strict=True)]

    def replace(self, **changes) -> "Request":
        """A copy with `changes`, checked again."""
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True)
class Generation:
    """What `generate` returns, one entry a row; rows = prompts x samples, the samples of a prompt side by side.

    Every forward counts, the prefill too (it yields the first token), so autoregressive decoding has exactly 1 token
    per forward and sum(accepted[i]) = len(tokens[i]) always. Rows that share a prefill count it each.
    """

    tokens: list[list[int]]  # without the prompt; a stop token is kept as the last one
    accepted: list[list[int]]  # tokens each forward yielded, in order
    log_probabilities: list[list[float]]  # of each token under the target (0 where greedy)
    finish: list[str]  # "stop_token", "stop_string" or "length"
    sampler: SamplerConfig  # as it ran ("auto" has been chosen from)
    session: Session
    reason: str = ""  # why "auto" chose this sampler

    @property
    def forwards(self) -> np.ndarray:
        """Forward passes each row needed (NFE), int [B]; none is counted after a row has finished."""
        return np.array([len(a) for a in self.accepted])

    @property
    def rows_per_forward(self) -> float:
        """Rows each forward after the prefill computed, per sequence."""
        return self.sampler.rows_per_forward

    @property
    def tokens_per_forward(self) -> float:
        """T over all rows: tokens up to and including the stop, over forwards. Say the temperature with it."""
        return sum(len(t) for t in self.tokens) / max(1, int(self.forwards.sum()))

    @property
    def warning(self) -> str:
        """A line if drafts yielded practically nothing, as of a model that never learned to draft; else ""."""
        found = Yield()
        found.add(self.sampler, self.accepted)
        return found.warning()
