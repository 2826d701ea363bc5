"""Which split a document or a problem belongs to: a hash of what it is, never of where it stood.

The same content falls in the same split on every machine, in every run, in any order, so nothing
held out can reach training by being listed twice or by a change elsewhere in the corpus. Only a corpus of so few
documents that a split would be empty is divided otherwise: each document into stretches (`divide`).
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


def divide(text: str, percents: Sequence[int], shortest: int = 400) -> dict[str, str] | None:
    """A document as one stretch for each of SPLITS, in order: together they are the text, and none overlaps another.

    They end at a line's end where there is one near, else between words. So a single book can be trained on and held
    back, and but for two places its text stays as long as it was.

    Args:
      percents: the shares of SPLITS in characters, roughly.
      shortest: characters below which a document is not cut.

    Returns:
      None for a document that is too short, or of which a stretch would be blank.
    """
    if len(text) < shortest:
        return None
    edges = [0]
    for share in (percents[0], percents[0] + percents[1]):
        edges.append(_edge(text, max(edges[-1], len(text) * share // 100), len(text) * percents[2] // 200))
    edges.append(len(text))
    parts = {split: text[a:b] for split, a, b in zip(SPLITS, edges[:-1], edges[1:], strict=True)}
    return parts if all(part.strip() for part in parts.values()) else None


def _edge(text: str, at: int, within: int) -> int:
    """Where to cut near `at`: after the next line's end, else after the next space, else there."""
    for mark in ("\n", " "):
        found = text.find(mark, at, at + within)
        if found >= 0:
            return found + 1
    return at
