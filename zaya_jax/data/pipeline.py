"""Documents to batches of packed rows, with grain: shuffle, group, tokenise, pack, mix, batch.

A batch is {"tokens", "document", "answer"}, all int32 [B, T]. `document` counts 0, 1, 2, ...
along a row and is -1 on padding, where `tokens` is `pad_id`. `answer` is 1 on what a model is asked
to write: a task's solution and its EOS, an assistant's turns of a chat, or all of a plain text. A document
is its text's ids and EOS; one longer than a row is cut into pieces, each a document of its own. A chat is
never cut: it is trimmed or left out (chat.py). The tokens of a document stand together and in order.

Packing works on groups of documents, and a group's rows are a pure function of the group's number.
So there is no packing buffer to save: an iterator's state is a small JSON-able dict of positions,
and a resumed run sees the very batches an uninterrupted one would have seen. (grain's own packers
work document by document, so its best-fit cannot sort by length first; and for the short documents of the
tasks they cost more than the rest of the pipeline together.) Training batches are made ahead, in a thread of grain's.

Rows that were packed once and for all (`packed.PackedRows`) are mixed in by their numbers. Which row of which batch is
which number is known without reading any, so a process reads only the rows that it is to have, and an iterator's
state is the same in every process, however many there are.
"""

import bisect
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import grain
import numpy as np
from grain import experimental as grain_experimental

from zaya_jax.checks import COUNT, KEY, Integer, check
from zaya_jax.data.chat import ChatSource
from zaya_jax.data.packed import PackedRows
from zaya_jax.errors import UserError
from zaya_jax.text.templates import question
from zaya_jax.text.tokenizers import Tokenizer

Batch = dict[str, np.ndarray]
Document = tuple[Sequence[int], Sequence[int]]  # (ids, answer): as long as each other, answer 0 or 1

GROUP_DOCUMENTS = 64  # At least so many documents share a group; their pieces are shuffled in it.
GROUP_ROWS = 64  # At least about so many rows come of a group, so its unfilled end weighs little.
GROUP_CHARACTERS = 2**22  # At most about so many share a group: it is tokenised at once, and again on resuming.
AHEAD = 2  # Batches that are made before they are asked for.
OPEN_ROWS = 16  # Rows that first-fit looks at: 64 fill at most 0.5% more but are slower.
_IN_THIS_THREAD = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)


class Source(Protocol):
    """A random-access sequence of documents; each has at least the field "text", a str.

    One with "prompt", the text's beginning, is answered after it; its two parts are tokenised separately, as when
    sampling. A `ChatSource` makes its own ids.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict[str, str]: ...


def make_train_iterator(
    mixture: Sequence[tuple[Source | PackedRows, float]],
    tokenizer: Tokenizer,
    row_length: int,
    batch_size: int,
    seed: int,
    *,
    packing: str = "first_fit",
    shard_index: int = 0,
    shard_count: int = 1,
    rows: Sequence[int] | np.ndarray | None = None,
) -> grain.DatasetIterator[Batch]:
    """Batches without end; each source is reshuffled every epoch.

    Args:
      mixture: (source, weight) pairs. A weight is a share of rows, hence of tokens, whatever the
        lengths of the documents; a row holds documents of one source only.
      row_length: tokens in a row.
      batch_size: rows in a batch.
      seed: of every shuffle, at least 0.
      packing: of PACKINGS: "first_fit", or "best_fit" (decreasing), which fills rows better where documents are long
        beside a row.
      shard_index, shard_count: this process reads every shard_count-th document of the shuffled
        order, from shard_index on; shards are disjoint within an epoch.
      rows: of a batch, in increasing order: those that this process wants of it; None for all. Of packed rows no
        others are read.

    Returns:
      An iterator of {"tokens": int32 [batch_size or len(rows), row_length], "document", "answer": the same}.
      `get_state()` gives a JSON-able dict; `set_state` on an iterator made with the same arguments
      continues bit for bit after it.

    Raises:
      UserError: an argument out of range, an empty mixture, a source smaller than shard_count, packed rows of another
        length.
    """
    _require_positive(row_length=row_length, batch_size=batch_size, shard_count=shard_count)
    check("shard_index", shard_index, Integer(0, shard_count - 1))
    check("seed", seed, KEY)
    _require_mixture(mixture, shard_count)
    require_packing(packing)
    streams = []
    for number, (source, _) in enumerate(mixture):
        # grain shuffles epoch e with seed + e, so nearby seeds would repeat each other's orders.
        order, within = map(int, np.random.SeedSequence([seed, number]).generate_state(2))
        if isinstance(source, PackedRows):
            source.require(row_length, f"mixture[{number}]")
            numbers = grain.MapDataset.range(len(source)).shuffle(seed=order)[shard_index::shard_count].repeat()
            streams.append(numbers.map(functools.partial(_Unread, source)).to_iter_dataset(_IN_THIS_THREAD))
            continue
        documents = grain.MapDataset.source(source).shuffle(seed=order)
        documents = documents[shard_index::shard_count].repeat()
        streams.append(_packed(documents, source, tokenizer, row_length, packing, shuffle_seed=within))
    mixed = grain.IterDataset.mix(streams, [weight for _, weight in mixture])
    wanted = range(batch_size) if rows is None else rows
    read = functools.partial(_read, wanted=wanted, pad_id=tokenizer.pad_id)
    batches = mixed.batch(batch_size, drop_remainder=True, batch_fn=list).map(read)
    return iter(grain_experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=AHEAD))


class _Unread(NamedTuple):
    """A packed row that a batch will have, for whoever wants it."""

    source: PackedRows
    number: int


def _read(batch: Sequence[Batch | _Unread], wanted: Iterable[int], pad_id: int) -> Batch:
    """The wanted rows of a batch, of which packed ones are read here and now."""
    chosen = [batch[row] for row in wanted]
    found = [row.source.read(row.number, pad_id) if isinstance(row, _Unread) else row for row in chosen]
    return {name: np.stack([row[name] for row in found]) for name in found[0]}


def eval_batches(
    source: Source | PackedRows,
    tokenizer: Tokenizer,
    row_length: int,
    batch_size: int,
    limit: int | None = None,
    packing: str = "first_fit",
) -> Iterable[Batch]:
    """One pass over the first `limit` documents (of a `PackedRows`: rows; all by default), the same every time.

    Returns:
      An iterable, as often as wanted, of {"tokens": int32 [batch_size, row_length], "document",
      "answer": the same}; the last batch is filled up with rows of padding.

    Raises:
      UserError: an argument out of range, an empty source.
    """
    _require_positive(row_length=row_length, batch_size=batch_size)
    require_packing(packing)
    if limit is not None:
        _require_positive(limit=limit)
    if len(source) == 0:
        raise UserError("source: got one without documents")
    if isinstance(source, PackedRows):
        source.require(row_length, "source")
        numbers = grain.MapDataset.range(len(source))[:limit]
        rows = numbers.map(lambda number: source.read(number, tokenizer.pad_id)).to_iter_dataset(_IN_THIS_THREAD)
    else:
        documents = grain.MapDataset.source(source)[:limit]
        rows = _packed(documents, source, tokenizer, row_length, packing, shuffle_seed=None)

    def fill_up(batch: Batch) -> Batch:
        missing = ((0, batch_size - len(batch["tokens"])), (0, 0))
        fill = {"tokens": tokenizer.pad_id, "document": -1, "answer": 0}
        return {name: np.pad(batch[name], missing, constant_values=value) for name, value in fill.items()}

    return rows.batch(batch_size, drop_remainder=False).map(fill_up)


def encode_document(element: dict[str, str], source: Any, tokenizer: Tokenizer, row_length: int) -> Document | None:
    """An element of `source` as ids, and which of them are answers; None for a chat that is left out."""
    if isinstance(source, ChatSource):
        encoded = source.encode(element, tokenizer, row_length)
        return None if encoded is None else (encoded.ids, encoded.answer)
    text, prompt = element["text"], element.get("prompt", "")
    given = question(prompt, tokenizer) if prompt else [*tokenizer.opening]
    closing = () if prompt else tokenizer.closing
    end = [*closing] if closing[-1:] == (tokenizer.eos_id,) else [*closing, tokenizer.eos_id]
    written = tokenizer.encode(text[len(prompt) :], start=not prompt) + end
    return given + written, [0] * len(given) + [1] * len(written)


def pack(documents: Iterable[Document], row_length: int, pad_id: int, packing: str = "first_fit") -> Batch:
    """Packs documents, cut to pieces of at most `row_length`, into rows.

    Returns:
      {"tokens", "document", "answer"}, all int32 [rows, row_length]; see the module's docstring.
    """
    pieces = [
        (ids[start : start + row_length], answer[start : start + row_length])
        for ids, answer in documents
        for start in range(0, len(ids), row_length)
    ]
    rows = PACKINGS[packing]([len(ids) for ids, _ in pieces], row_length)
    count = max(rows, default=-1) + 1
    fill = {"tokens": pad_id, "document": -1, "answer": 0}
    out = {name: np.full((count, row_length), value, dtype=np.int32) for name, value in fill.items()}
    used, held = [0] * count, [0] * count
    for (ids, answer), row in zip(pieces, rows, strict=True):
        place = slice(used[row], used[row] + len(ids))
        out["tokens"][row, place] = ids
        out["answer"][row, place] = answer
        out["document"][row, place] = held[row]
        used[row], held[row] = place.stop, held[row] + 1
    return out


def first_fit(lengths: Sequence[int], row_length: int) -> list[int]:
    """The row of each piece: the first of at most OPEN_ROWS open ones that has room for it."""
    placed: list[int] = []
    open_rows: dict[int, int] = {}  # Row -> tokens in it.
    count = 0
    for length in lengths:
        row = next((row for row, used in open_rows.items() if used + length <= row_length), count)
        count = max(count, row + 1)
        placed.append(row)
        open_rows[row] = open_rows.get(row, 0) + length
        if open_rows[row] == row_length:
            del open_rows[row]
        elif len(open_rows) > OPEN_ROWS:
            del open_rows[max(open_rows, key=lambda row: open_rows[row])]
    return placed


def best_fit(lengths: Sequence[int], row_length: int) -> list[int]:
    """The row of each piece, the longest piece first: the fullest row that has room for it."""
    placed = [0] * len(lengths)
    spaces: list[tuple[int, int]] = []  # Sorted: (room left, row).
    count = 0
    for piece in sorted(range(len(lengths)), key=lambda piece: -lengths[piece]):
        at = bisect.bisect_left(spaces, (lengths[piece],))
        space, row = spaces.pop(at) if at < len(spaces) else (row_length, count)
        count = max(count, row + 1)
        placed[piece] = row
        bisect.insort(spaces, (space - lengths[piece], row))
    # Rows in the order of their first piece, not of their longest: one pass over a part of them is no pass over the
    # longest documents.
    order: dict[int, int] = {}
    return [order.setdefault(row, len(order)) for row in placed]


PACKINGS: dict[str, Callable[[Sequence[int], int], list[int]]] = {"first_fit": first_fit, "best_fit": best_fit}


class _Rows(grain_experimental.FlatMapTransform):
    """A packed group to its rows."""

    def flat_map(self, element: Batch) -> list[Batch]:
        return [dict(zip(element, row, strict=True)) for row in zip(*element.values(), strict=True)]


def _packed(
    documents: grain.MapDataset,
    source: Source,
    tokenizer: Tokenizer,
    row_length: int,
    packing: str,
    shuffle_seed: int | None,
) -> grain.IterDataset:
    """Rows {"tokens", "document", "answer"}, all int32 [row_length], of `documents`, drawn from `source`."""

    def pack_group(number: int, group: Sequence[dict[str, str]]) -> Batch:
        documents = (encode_document(element, source, tokenizer, row_length) for element in group)
        packed = pack(filter(None, documents), row_length, tokenizer.pad_id, packing)
        if shuffle_seed is None:
            return packed
        order = np.random.default_rng([shuffle_seed, number]).permutation(len(packed["tokens"]))
        return {name: rows[order] for name, rows in packed.items()}

    groups = documents.batch(_group_size(source, row_length), drop_remainder=False, batch_fn=list)
    packed = groups.map_with_index(pack_group).to_iter_dataset(_IN_THIS_THREAD)
    return grain_experimental.FlatMapIterDataset(packed, _Rows())


def _group_size(source: Source, row_length: int) -> int:
    """Documents to a group, judged by the lengths of up to 32 spread evenly over `source`."""
    probes = range(0, len(source), math.ceil(len(source) / 32))
    characters = sum(len(source[index]["text"]) + 1 for index in probes) / len(probes)
    rows = min(GROUP_ROWS, max(1, GROUP_CHARACTERS // row_length))
    wanted = max(GROUP_DOCUMENTS, math.ceil(rows * row_length / characters))
    return min(wanted, math.ceil(max(GROUP_CHARACTERS, rows * row_length) / characters))


def require_packing(packing: str) -> None:
    """Raises UserError unless `packing` is one of PACKINGS."""
    if packing not in PACKINGS:
        raise UserError(f"packing: got {packing!r}, may be one of {', '.join(PACKINGS)}")


def _require_positive(**values: Any) -> None:
    for name, value in values.items():
        check(name, int(value) if isinstance(value, np.integer) else value, COUNT)


def _require_mixture(mixture: Sequence[tuple[Source | PackedRows, float]], shard_count: int) -> None:
    if not mixture:
        raise UserError("mixture: got none, must hold at least one (source, weight)")
    for number, (source, weight) in enumerate(mixture):
        if not (math.isfinite(weight) and weight > 0):
            raise UserError(f"mixture[{number}]: got weight {weight!r}, must be above 0")
        if len(source) < shard_count:
            raise UserError(
                f"mixture[{number}]: got a source of {len(source)} documents, must be at least "
                f"{shard_count} (shard_count)"
            )
