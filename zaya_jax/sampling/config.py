"""What a user says to the sampler."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Annotated, cast

from zaya_jax.checks import FLOAT32, Integer, Number, Unset, check, check_fields, no_such
from zaya_jax.errors import UserError
from zaya_jax.sampling.core.targets import ALIASES, MODES, find_target, targets_of
from zaya_jax.sampling.drafters import all_drafters, find_drafter
from zaya_jax.sampling.planning.branch_points import Acceptance, best_anchors
from zaya_jax.sampling.values import plain_tuple

LARGEST_BLOCK = 1024  # slots; a forward of single_pass with all anchors then has a million query tokens
# Below it logits in float32, whose own rounding is about as large, name one token: that is greedy decoding.
COLDEST = 1e-6
LONGEST_LOOKUP = 16  # tokens
LIMIT = Integer(0)
TEMPERATURE, SHARE = Number(0, FLOAT32), Number(0, 1)
NUCLEUS = Number(0, 1, above=True)
WEIGHT = Number(0, 1e3)
PENALTY = Number(1e-6, 1e6)  # so that a penalised logit stays finite


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """How to sample. The first five fields, drafter, draft_length and tree_size are static; all others are
    run-time values and compile nothing.

    Numbers and collections may be NumPy's or JAX's; they are kept as Python's (collections as tuples), so that equal
    samplers compare and hash alike.

    Attributes:
      mode: how a forward is spent.
        "autoregressive": one token a forward.
        "single_pass": verify a block and draft the next one in the same forward (TiDAR).
        "two_pass": one forward drafts a block after the pending token, which the drafts then know, a second one
          verifies it; a step counts two forwards.
        "drafter": a drafter of its own proposes, one causal forward verifies (`zaya_jax.sampling.drafters`).
        "block_diffusion": no verification: a block is unmasked over several forwards (TiDAR's baselines).
        "auto": the fastest on this machine of autoregressive, single_pass and the drafters that the model has, by
          measurement (`zaya_jax.sampling.planning.auto`); block_size is then an upper bound.
      block_size: slots a drafted block has (TiDAR's B). single_pass verifies as many tokens a forward, of which the
        first is the pending token; two_pass verifies block_size drafts.
      anchors: for single_pass, after which accepted lengths (1 .. block_size) a next block is drafted: "all", a list of
        them, or a budget: the int K stands for the list of K that yields most tokens under `acceptance`. Where an
        accepted length has none, the nearest lower anchor's remaining slots are used; that costs tokens per forward,
        never exactness.
      target: whose distribution is sampled; these, and what `register_target` adds.
        "autoregressive" (also "lossless"): exactly the AR distribution.
        "mix_stale": at a position whose draft is tested, softmax of (1 - beta) * AR logits + beta * the logits that
          drew that draft (Zyphra's logit mixing); the AR distribution where no draft is tested. Depends on where blocks
          fall.
        "mix_fresh": (1 - beta) * AR logits + beta * the logits of the block that starts at that very position (TiDAR's
          "trust diffusion"); single_pass with anchors="all" only.
        "threshold", "left_to_right", "entropy_bounded": for block_diffusion, none of them lossless: reveal the slots
          whose token has at least probability `threshold`, and at least the `reveal` most confident ones (dynamic
          confidence; with threshold 1 static: SDAR, LLaDA); the `reveal` leftmost ones; or the slots of least entropy,
          as many as whose entropies without the last one's sum to at most `threshold` nats (set block decoding).
      acceptance: for a budget of anchors, what was measured with anchors="all": `Generation.accepted`, or a curve of
        acceptance rates (`acceptance_curve`), which knows less.
      beta: weight of the draft in the mixing targets, in [0, 1].
      temperature: of the target; 0 is exact greedy, and so is anything below 1e-6, which is kept as 0.
      top_k, top_p, min_p: truncate the target's distribution, in this order and after temperature, as transformers
        does; 0, 1 and 0 leave it whole.
      repetition_penalty: divides the positive and multiplies the negative logits of every token the text already holds
        (transformers' rule, before temperature); 1 is none; 1e-6 to 1e6. Lossless: the drafts' own tokens count as
        text.
      draft_temperature: of the drafts; None follows temperature, 0 drafts the likeliest token.
      draft_top_k, draft_top_p: truncate the drafts' distribution. These three change speed only.
      threshold, reveal: see target.
      drafter: for mode "drafter", what proposes: "ngram" (what followed the text's last tokens when they last occurred;
        nothing is learned), or what `register_drafter` adds.
      draft_length: for mode "drafter", tokens that are proposed after one another, at most.
      tree_size: for a drafter that can, tokens that are proposed in all, as a tree of that many nodes; 0: a chain. A
        tree's draft_temperature is 1 where none is given (0 makes it a chain).
      ngram_weight: for a tree, the weight of the text's own 3-gram statistics in a node's score, beside the logarithm
        of the drafter's probability.
      lookup: for single_pass of target "autoregressive": where the text's last `lookup` tokens (at most 16) occurred
        before, what followed them there is verified in place of the drafts, as drafter "ngram" proposes; 0 (and None,
        but that "auto" then tries both): never. It costs no query token, and no exactness.
      stop_tokens: ids that end a row (and are kept as its last token).
      stop_strings: texts that end a row, which is cut after the token that completes one (needs a tokenizer). A
        special token's spelling, which no text holds, stands for the token.
      min_new_tokens: no stop token is sampled among a row's first min_new_tokens, and a stop string that is complete
        there is passed over.

    Raises:
      UserError: naming the field.
    """

    mode: str = "single_pass"
    block_size: Annotated[int, Integer(1, LARGEST_BLOCK)] = 8
    anchors: str | int | Collection[int] = "all"
    target: str | None = None  # the mode's first
    acceptance: Acceptance | None = None
    beta: Annotated[float, SHARE] = 0.5
    temperature: Annotated[float, TEMPERATURE] = 1.0
    top_k: Annotated[int, LIMIT] = 0
    top_p: Annotated[float, NUCLEUS] = 1.0
    min_p: Annotated[float, SHARE] = 0.0
    repetition_penalty: Annotated[float, PENALTY] = 1.0
    draft_temperature: Annotated[float | None, Unset(TEMPERATURE)] = None
    draft_top_k: Annotated[int, LIMIT] = 0
    draft_top_p: Annotated[float, NUCLEUS] = 1.0
    threshold: Annotated[float, SHARE] = 0.9
    reveal: Annotated[int, Integer(1)] = 1
    stop_tokens: Sequence[int] = ()  # or any other collection: kept as a tuple
    stop_strings: Sequence[str] = ()
    min_new_tokens: Annotated[int, LIMIT] = 0
    drafter: str | None = None
    draft_length: Annotated[int, Integer(1, LARGEST_BLOCK)] = 6
    tree_size: Annotated[int, Integer(0, LARGEST_BLOCK)] = 0
    ngram_weight: Annotated[float, WEIGHT] = 0.0
    lookup: Annotated[int | None, Unset(Integer(0, LONGEST_LOOKUP))] = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, unordered = getattr(self, field.name), field.name in ("anchors", "stop_tokens", "stop_strings")
            object.__setattr__(self, field.name, plain_tuple(value, ordered=not unordered))
        if self.mode not in MODES:
            raise no_such("SamplerConfig.mode", self.mode, MODES)
        allowed = targets_of(self.mode)
        if self.target is None:
            object.__setattr__(self, "target", allowed[0])
        target = ALIASES.get(str(self.target), self.target)
        if target not in allowed:
            raise no_such("SamplerConfig.target", self.target, allowed, f"when mode is {self.mode!r}")
        object.__setattr__(self, "target", target)
        check_fields("SamplerConfig", self)
        self._check_acceptance()
        self._check_anchors()
        for name in ("temperature", "draft_temperature"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, value if value >= COLDEST else 0.0)
        for name, neutral in (("repetition_penalty", 1), ("min_new_tokens", 0)):
            if self.mode == "block_diffusion" and getattr(self, name) != neutral:
                _fail(name, getattr(self, name), f"{neutral} when mode is 'block_diffusion' (it draws in any order)")
        self._check_drafter()
        self._check_stops()

    def _check_drafter(self) -> None:
        if self.lookup and (self.mode not in ("single_pass", "auto") or self.target != "autoregressive"):
            _fail("lookup", self.lookup, f"0 when mode is {self.mode!r} and target {self.target!r}")
        if self.lookup is None and self.mode != "auto":
            object.__setattr__(self, "lookup", 0)
        if self.mode != "drafter":
            for name, none in (("drafter", None), ("tree_size", 0), ("ngram_weight", 0)):
                if getattr(self, name) != none:
                    _fail(name, getattr(self, name), f"{none} when mode is {self.mode!r}")
            return
        names = tuple(drafter.name for drafter in all_drafters())
        if self.drafter not in names:
            raise no_such("SamplerConfig.drafter", self.drafter, names, "when mode is 'drafter'")
        if self.tree_size and not find_drafter(str(self.drafter)).trees:
            _fail("tree_size", self.tree_size, f"0 when drafter is {self.drafter!r} (it proposes chains)")
        if self.ngram_weight and not self.tree_size:
            _fail("ngram_weight", self.ngram_weight, "0 when tree_size is 0 (it is a tree's)")
        if self.ngram_weight and not find_drafter(str(self.drafter)).ngrams:
            may_be = f"0 when drafter is {self.drafter!r} (its drafts know each other)"
            _fail("ngram_weight", self.ngram_weight, may_be)
        if 0 < self.tree_size < self.draft_length:
            _fail("tree_size", self.tree_size, f"0 or at least draft_length ({self.draft_length})")

    def _check_acceptance(self) -> None:
        if self.acceptance is None:
            return
        may_be = f"at least block_size - 1 ({self.block_size - 1}) rates, or runs (tokens of each forward)"
        if not isinstance(self.acceptance, tuple) or not self.acceptance:
            _fail("acceptance", self.acceptance, may_be)
        if any(isinstance(run, tuple) for run in self.acceptance):
            for run in self.acceptance:
                if not (isinstance(run, tuple) and run and all(LIMIT.allows(n) for n in run) and any(run)):
                    _fail("acceptance", run, "runs (tokens of each forward, integers of at least 0) or rates")
            return
        if len(self.acceptance) < self.block_size - 1:
            _fail("acceptance", self.acceptance, may_be)
        for rate in self.acceptance:
            check("SamplerConfig.acceptance", rate, SHARE)

    def _check_anchors(self) -> None:
        size, anchors = self.block_size, self.anchors
        if isinstance(anchors, str):
            if anchors != "all":
                _fail("anchors", anchors, "'all', a budget, or a list of accepted lengths")
            return
        if self.mode != "single_pass":
            _fail("anchors", anchors, f"'all' when mode is {self.mode!r} (only single_pass drafts after anchors)")
        may_be = f"'all', a budget in 1 .. block_size ({size}), or increasing integers in that range"
        if not isinstance(anchors, tuple):
            if not Integer(1, size).allows(anchors):
                _fail("anchors", anchors, may_be)
            elif anchors == size:
                object.__setattr__(self, "anchors", "all")
            elif self.acceptance is None:
                _fail("anchors", anchors, "'all', a list, or a budget beside `acceptance` (measured with 'all')")
            else:
                budget = cast(int, anchors)
                object.__setattr__(self, "anchors", best_anchors(self.acceptance, size, budget))
        else:
            within = all(Integer(1, size).allows(anchor) for anchor in anchors)
            if not anchors or not within or list(anchors) != sorted(set(anchors)):
                _fail("anchors", anchors, may_be)
        if self.reads_next_block and len(self.anchor_list) != size:
            _fail("anchors", anchors, f"'all' when target is {self.target!r} (it reads every block's first slot)")

    def _check_stops(self) -> None:
        tokens, strings = self.stop_tokens, self.stop_strings
        if not isinstance(tokens, tuple) or not all(LIMIT.allows(token) for token in tokens):
            _fail("stop_tokens", tokens, "a collection of token ids")
        if not isinstance(strings, tuple) or any(not isinstance(s, str) or not s for s in strings):
            _fail("stop_strings", strings, "a collection of non-empty strings")

    @property
    def reads_next_block(self) -> bool:
        """Does the target read the block that starts at each position? Then every one must be there."""
        assert self.target is not None  # filled in at construction
        return find_target(self.target).draft == "next"

    @property
    def lossless(self) -> bool:
        """Does it sample exactly the AR distribution?"""
        return find_target(str(self.target)).lossless

    @property
    def plain(self) -> "SamplerConfig":
        """Autoregression with this sampler's processing and stops: what drafting is compared with."""
        neither = dict(
            anchors="all", acceptance=None, target=None, drafter=None, tree_size=0, ngram_weight=0.0, lookup=0
        )
        return dataclasses.replace(self, mode="autoregressive", **neither)

    @property
    def drafts(self) -> bool:
        """Does it read mask tokens? Then the model needs one."""
        if self.drafter is not None:
            return find_drafter(self.drafter).masks
        if self.mode == "single_pass":
            return bool(self.anchor_list)
        return self.mode not in ("autoregressive", "auto")  # auto does without where the model has none

    @property
    def anchor_list(self) -> tuple[int, ...]:
        """Accepted lengths after which a block is drafted; empty where a step does not verify and draft at once."""
        if self.mode != "single_pass" or (self.block_size == 1 and not self.reads_next_block):
            return ()  # with a block of one nothing is ever drafted
        if isinstance(self.anchors, str):
            return tuple(range(1, self.block_size + 1))
        assert isinstance(self.anchors, tuple)  # a budget became a list at construction
        return self.anchors

    @property
    def rows_per_forward(self) -> float:
        """Rows a forward computes for each sequence (the mean of both in two_pass, and of all of a drafter's)."""
        size = self.block_size
        if self.drafter is not None:
            before = find_drafter(self.drafter).target_forwards(self.draft_length)
            return (sum(before) + 1 + (self.tree_size or self.draft_length)) / (len(before) + 1)
        if self.mode == "single_pass":
            return size * (1 + len(self.anchor_list))
        return {"autoregressive": 1, "two_pass": (1 + size + size) / 2, "block_diffusion": 2 * size}[self.mode]


def _fail(field: str, got: object, may_be: str) -> None:
    raise UserError(f"SamplerConfig.{field}: got {got!r}, may be {may_be}")
