"""Which split a document or a problem belongs to: a hash of what it is, never of where it stood.

The same content falls in the same split on every machine, in every run, in any order, so nothing
held out can reach training by being listed twice or by a change elsewhere in the corpus.
"""

from collections.abc import Sequence
from hashlib import blake2b

from zaya_jax.errors import UserError

SPLITS = ("train", "validation", "test")


def require_split(split: str) -> None:
    """Raises UserError unless `split` is one of SPLITS."""
    if split not in SPLITS:
        raise UserError(f"split: got {split!r}, must be one of {', '.join(SPLITS)}")


def stable_hash(text: str | bytes) -> int:
    """A 64-bit hash that, unlike hash(), is the same in every process."""
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


def split_of(identity: str | bytes, percents: Sequence[int]) -> str:
    """The split of `identity`, where `percents` are the shares of SPLITS and add to 100."""
    bucket = stable_hash(identity) % 100
    if bucket < percents[0]:
        return SPLITS[0]
    return SPLITS[1] if bucket < percents[0] + percents[1] else SPLITS[2]
