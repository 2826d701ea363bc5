"""Whose distribution a sampler draws from: a registry, one entry a target.

Everything that depends on a target reads its entry here: what SamplerConfig accepts, what a step does with the draft's
logits, whether beta is recorded beside a result, the samplers that a config file may name (`evaluation.samplers`), the
report's words. So a new target is one `register_target(Target(...))`, which may stand in a config file:

    def average(plain, draft, beta):
        return jnp.logaddexp(jnp.log1p(-beta) + log_softmax(plain), jnp.log(beta) + log_softmax(draft))

    register_target(Target("mix_linear", "Averages the two distributions.", combine=average, beta=True))
    c.evaluate.samplers = ("autoregressive", "lossless", "mix_linear")
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from zaya_jax.errors import UserError
from zaya_jax.registry import Registry, caller
from zaya_jax.sampling.core.distributions import at_token, mix

Array = jax.Array
MODES = ("autoregressive", "single_pass", "two_pass", "drafter", "block_diffusion", "auto")  # how a forward is spent
ALIASES = {"lossless": "autoregressive"}
# What of the draft a verifying target reads, and the modes that have it.
DRAFTS = {
    "none": ("autoregressive", "single_pass", "two_pass", "drafter", "auto"),
    "tested": ("single_pass", "two_pass", "auto"),
    "next": ("single_pass",),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """A distribution to sample from.

    Attributes:
      name: what `SamplerConfig.target` says.
      words: a sentence for the report's readers.
      combine: (AR logits, draft logits, beta) -> the target's logits, before penalties and temperature; logits
        [B, n, V] in any float dtype, beta a float scalar. It is traced. None: the AR logits themselves.
      draft: which draft logits `combine` gets.
        "tested": those that drew the draft being tested; the AR logits stay as they are where none is.
        "next": those of the block that starts at that very position (single_pass with anchors="all" only).
        "none": there is no `combine`.
      reveal: for block_diffusion, which verifies nothing: (logits [B, block_size, V], drawn tokens int32
        [B, block_size], hidden bool [B, block_size], threshold) -> (order, sure), float and bool [B, block_size]: of
        the hidden slots, the `SamplerConfig.reveal` ones of the highest order show their token, and those that are sure
        do. Traced too.
      beta: whether the target depends on `SamplerConfig.beta`.
      lossless: whether it is the AR distribution.

    Raises:
      UserError: naming the field.
    """

    name: str
    words: str
    combine: Callable[[Array, Array, Array], Array] | None = None
    draft: str = "tested"
    reveal: Callable[[Array, Array, Array, Array], tuple[Array, Array]] | None = None
    beta: bool = False
    lossless: bool = False

    def __post_init__(self) -> None:
        def require(ok: bool, field: str, may_be: str) -> None:
            if not ok:
                raise UserError(f"Target.{field}: got {getattr(self, field)!r}, may be {may_be}")

        named = isinstance(self.name, str) and self.name.isidentifier() and self.name not in ALIASES
        require(named, "name", f"a Python identifier that is none of {tuple(ALIASES)}")
        require(isinstance(self.words, str) and bool(self.words.strip()), "words", "a sentence")
        require(self.draft in DRAFTS, "draft", f"one of {tuple(DRAFTS)}")
        if self.reveal is not None:
            require(self.combine is None, "combine", "None beside `reveal` (block_diffusion verifies nothing)")
        elif self.draft == "none":
            require(self.combine is None, "combine", "None where draft is 'none'")
        else:
            require(callable(self.combine), "combine", f"a function where draft is {self.draft!r}")

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes that can sample it."""
        return DRAFTS[self.draft] if self.reveal is None else ("block_diffusion",)


_REGISTERED: Registry[Target] = Registry("target")


def register_target(target: Target) -> Target:
    """Adds a target and returns it. The same file, read again, replaces its target.

    Raises:
      UserError: the name is one of this package's targets, or another file has registered it.
    """
    before = dict(_REGISTERED).get(target.name)
    _REGISTERED.add(target.name, target, caller())
    if before not in (None, target):
        jax.clear_caches()  # compiled programs know a target by its name
    return target


def find_target(name: str) -> Target:
    """The target of a name that SamplerConfig has accepted."""
    return _REGISTERED[name]


def all_targets() -> tuple[Target, ...]:
    """In the order of registration."""
    return tuple(_REGISTERED.values())


def targets_of(mode: str) -> tuple[str, ...]:
    """Names of the targets that a mode can sample; the first one is its default."""
    return tuple(target.name for target in _REGISTERED.values() if mode in target.modes)


def _most_confident(logits: Array, drawn: Array, hidden: Array, threshold: Array) -> tuple[Array, Array]:
    """By the model's own confidence, whatever the temperature (Fast-dLLM, TiDAR)."""
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    order = at_token(jax.nn.log_softmax(wide, axis=-1), drawn)
    return order, jnp.exp(order) >= threshold


def _leftmost(logits: Array, drawn: Array, hidden: Array, threshold: Array) -> tuple[Array, Array]:
    order = jnp.broadcast_to(-jnp.arange(drawn.shape[1], dtype=jnp.float32), drawn.shape)
    return order, jnp.zeros(drawn.shape, bool)


def _least_entropy(logits: Array, drawn: Array, hidden: Array, threshold: Array) -> tuple[Array, Array]:
    """In the order of entropy, as many as whose entropies, the last one's aside, sum to at most threshold nats.

    Entropies are the model's own, whatever the temperature (arXiv 2509.04185, section 3; 2505.24857).
    """
    wide = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), axis=-1)
    entropy = -(jnp.exp(wide) * jnp.where(wide > -jnp.inf, wide, 0)).sum(-1)
    kept = jnp.where(hidden, entropy, 0)
    slot = jnp.arange(entropy.shape[1])
    before = (entropy[:, None] < entropy[..., None]) | (
        (entropy[:, None] == entropy[..., None]) & (slot < slot[:, None])
    )
    return -entropy, (before * kept[:, None]).sum(-1) <= threshold


register_target(
    Target(
        "autoregressive",
        "Drafts are verified so that the output has exactly the autoregressive distribution; at temperature 0, exactly "
        "its tokens.",
        draft="none",
        lossless=True,
    )
)
register_target(
    Target(
        "mix_stale",
        "The target mixes the verifier's logits with those that drew the tested draft (weight beta). It accepts more "
        "and is not the autoregressive distribution: read it with its accuracy.",
        combine=mix,
        beta=True,
    )
)
register_target(
    Target(
        "mix_fresh",
        "The target mixes the verifier's logits with those of the block that starts at the same position (weight "
        "beta). It is not the autoregressive distribution: read it with its accuracy.",
        combine=mix,
        draft="next",
        beta=True,
    )
)
register_target(
    Target(
        "threshold",
        "A block is unmasked over several forwards, the most confident slots first; nothing is verified, so it is not "
        "lossless.",
        reveal=_most_confident,
    )
)
register_target(
    Target(
        "left_to_right",
        "A block is unmasked over several forwards, the leftmost slots first; nothing is verified, so it is not "
        "lossless.",
        reveal=_leftmost,
    )
)
register_target(
    Target(
        "entropy_bounded",
        "A block is unmasked over several forwards, as many slots in each as an entropy budget allows (set block "
        "decoding); nothing is verified, so it is not lossless.",
        reveal=_least_entropy,
    )
)
