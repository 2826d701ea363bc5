"""Packing keeps documents whole, epochs cover everything once, resuming changes nothing."""

import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zaya_jax.data.pipeline import PACKINGS, best_fit, eval_batches, make_train_iterator, pack
from zaya_jax.tasks import TaskSource, make_task
from zaya_jax.text.tokenizers import ByteTokenizer

TOKENIZER = ByteTokenizer()
PAD = TOKENIZER.pad_id


class Texts(list):
    """A list of texts as a source."""

    def __getitem__(self, index):
        return {"text": super().__getitem__(index), "name": str(index)}


def numbered(count: int, longest: int = 60) -> Texts:
    """Distinct texts of many lengths: "<i>:" and filling."""
    return Texts(f"{i}:" + "ab" * (i * 7919 % (longest // 2)) for i in range(count))


def documents_of(batch) -> list[list[int]]:
    """The ids of every document of a batch; asserts the format on the way."""
    found = []
    assert batch["tokens"].dtype == batch["document"].dtype == np.int32
    assert batch["tokens"].shape == batch["document"].shape
    for tokens, document in zip(batch["tokens"], batch["document"], strict=True):
        real = document[document >= 0]
        assert np.all(document[len(real) :] == -1) and np.all(tokens[len(real) :] == PAD)
        assert np.all(tokens[: len(real)] != PAD)
        assert np.all(np.isin(np.diff(real), (0, 1))) and (len(real) == 0 or real[0] == 0)
        for number in range(real.max(initial=-1) + 1):
            found.append(tokens[: len(real)][real == number].tolist())
    return found


def pieces_of(text: str, row_length: int) -> list[list[int]]:
    ids = [*text.encode(), TOKENIZER.eos_id]
    return [ids[i : i + row_length] for i in range(0, len(ids), row_length)]


def counted(lists) -> Counter:
    return Counter(map(tuple, lists))


def same(a, b) -> bool:
    return all(np.array_equal(a[key], b[key]) for key in ("tokens", "document", "answer"))


def answered(ids, prompt: int = 0):
    """A document whose first `prompt` ids are given."""
    return ids, [0] * prompt + [1] * (len(ids) - prompt)


@given(st.lists(st.lists(st.integers(0, 257), min_size=1, max_size=40), max_size=60), st.data())
def test_pack_keeps_every_piece_whole_once_and_wastes_little(documents, data):
    row_length, packing = data.draw(st.integers(1, 30)), data.draw(st.sampled_from(sorted(PACKINGS)))
    packed = pack(map(answered, documents), row_length, PAD, packing)
    pieces = [d[i : i + row_length] for d in documents for i in range(0, len(d), row_length)]
    assert counted(documents_of(packed)) == counted(pieces)
    assert np.array_equal(packed["answer"], packed["document"] >= 0)
    assert len(packed["tokens"]) <= max(1, 2 * sum(map(len, pieces)) / row_length + 1)


def test_pack_fills_rows_to_the_last_token_and_goes_back_to_open_ones():
    documents = (([1] * 5, 2), ([2] * 6, 0), ([3] * 3, 3), ([4] * 2, 1), ([5] * 20, 10))
    packed = pack((answered(*document) for document in documents), 8, PAD)
    assert packed["tokens"].tolist() == [
        [1] * 5 + [3] * 3,
        [2] * 6 + [4] * 2,
        [5] * 8,
        [5] * 8,
        [5] * 4 + [PAD] * 4,
    ]
    assert packed["document"][0].tolist() == [0] * 5 + [1] * 3
    assert packed["document"][4].tolist() == [0] * 4 + [-1] * 4
    assert packed["answer"].tolist() == [
        [0] * 2 + [1] * 3 + [0] * 3,
        [1] * 6 + [0] + [1],
        [0] * 8,
        [0] * 2 + [1] * 6,
        [1] * 4 + [0] * 4,
    ]


def test_best_fit_takes_the_longest_first_and_the_fullest_row():
    # 7 and 6 open rows, 4 fills 6's, 3 fills 7's, 2 opens one, 1 joins it. Numbers go by the first piece of a row.
    assert best_fit([1, 7, 2, 6, 4, 3], 10) == [0, 1, 0, 2, 2, 1]
    assert best_fit([], 10) == []


@given(st.lists(st.integers(1, 50), max_size=80), st.sampled_from(sorted(PACKINGS)))
def test_rows_are_numbered_without_gaps_and_never_overfull(lengths, packing):
    rows = PACKINGS[packing](lengths, 50)
    used = Counter()
    for length, row in zip(lengths, rows, strict=True):
        used[row] += length
    assert sorted(used) == list(range(len(used)))
    assert max(used.values(), default=0) <= 50


def fill(packing: str, row_length: int) -> float:
    """Share of the slots of 100 batches that hold a token."""
    lengths = np.random.default_rng(0).lognormal(5.5, 0.7, size=4000).astype(int) % row_length
    texts = Texts("x" * int(length) for length in lengths)
    iterator = make_train_iterator([(texts, 1.0)], TOKENIZER, row_length, batch_size=8, seed=0, packing=packing)
    return float(np.mean([np.mean(batch["document"] >= 0) for batch in islice(iterator, 100)]))


def test_best_fit_fills_rows_that_are_short_beside_their_documents():
    # grain's BestFitPackIterDataset, with 64 bins, which cannot sort, fills 0.941 of such rows.
    first, best = fill("first_fit", 512), fill("best_fit", 512)
    assert (round(first, 3), round(best, 3)) == (0.929, 0.981)


def test_the_answer_is_what_stands_after_the_prompt():
    class Questions(Texts):
        def __getitem__(self, index):
            text = super().__getitem__(index)["text"]
            return {"text": text, "prompt": text[: text.index(":") + 1]}

    texts = Questions(f"{'q' * (i % 7)}:{'a' * (1 + i % 5)}" for i in range(100))
    for iterator in (make_train_iterator([(texts, 1.0)], TOKENIZER, 16, 4, 0), eval_batches(texts, TOKENIZER, 16, 4)):
        batch = next(iter(iterator))
        wanted = (batch["tokens"] == ord("a")) | (batch["tokens"] == TOKENIZER.eos_id)
        assert np.array_equal(batch["answer"], wanted) and wanted.any() and not wanted.all()


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 80), st.integers(1, 9), st.integers(1, 150))
def test_eval_is_one_complete_pass_with_padding_at_the_end(row_length, batch_size, count):
    texts = numbered(count)
    batches = eval_batches(texts, TOKENIZER, row_length, batch_size)
    first = list(batches)
    assert all(batch["tokens"].shape == (batch_size, row_length) for batch in first)
    found = counted(d for batch in first for d in documents_of(batch))
    assert found == counted(p for i in range(count) for p in pieces_of(texts[i]["text"], row_length))
    assert all(same(a, b) for a, b in zip(first, batches, strict=True))


def test_eval_limit_counts_documents():
    batches = eval_batches(numbered(50), TOKENIZER, row_length=64, batch_size=4, limit=3)
    found = [bytes(d[:-1]).split(b":")[0] for batch in batches for d in documents_of(batch)]
    assert sorted(found) == [b"0", b"1", b"2"]


def first_documents(iterator, count: int) -> list[tuple[int, ...]]:
    found = []
    while len(found) < count:
        found.extend(map(tuple, documents_of(next(iterator))))
    return found


def test_training_covers_each_epoch_and_reorders_it():
    # 64 documents of 16 ids in rows of 16: an epoch is a group is 16 whole batches.
    texts = Texts(f"{i:03d}:" + "x" * 11 for i in range(64))
    iterator = make_train_iterator([(texts, 1.0)], TOKENIZER, 16, batch_size=4, seed=0)
    epochs = [first_documents(iterator, 64) for _ in range(3)]
    whole = counted(p for i in range(64) for p in pieces_of(texts[i]["text"], 16))
    assert all(counted(epoch) == whole for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_documents_are_drawn_from_the_whole_source_in_a_new_order_each_epoch():
    texts = Texts(f"{i:03d}:" + "x" * 11 for i in range(640))  # Ten groups in an epoch.
    iterator = make_train_iterator([(texts, 1.0)], TOKENIZER, 16, batch_size=64, seed=0)
    groups = [{int(bytes(d[:3])) for d in documents_of(next(iterator))} for _ in range(20)]
    assert set().union(*groups[:10]) == set().union(*groups[10:]) == set(range(640))
    # 64 of 640 drawn at random: about 6 of them below 64, and about 6 in common with another draw.
    assert len(groups[0] & set(range(64))) < 20
    assert len(groups[0] & groups[10]) < 20


def test_shards_are_disjoint_and_complete():
    texts = Texts(f"{i:03d}:" + "x" * 11 for i in range(128))
    shards = [make_train_iterator([(texts, 1.0)], TOKENIZER, 16, 4, 0, shard_index=i, shard_count=2) for i in range(2)]
    for _ in range(2):
        found = [set(first_documents(shard, 64)) for shard in shards]
        assert not found[0] & found[1]
        assert len(found[0] | found[1]) == 128


def test_long_documents_are_cut_and_lose_nothing():
    texts = Texts("".join(chr(97 + (i + j) % 26) for j in range(1000)) for i in range(64))
    iterator = make_train_iterator([(texts, 1.0)], TOKENIZER, 77, batch_size=64 * 13, seed=0)
    expected = counted(p for i in range(64) for p in pieces_of(texts[i]["text"], 77))
    assert counted(documents_of(next(iterator))) == expected


def make_mixed(seed: int = 3, packing: str = "first_fit"):
    task = TaskSource(make_task("countdown"), "train", seed=0, size=1000)
    mixture = [(numbered(90, longest=300), 3.0), (task, 1.0)]
    return make_train_iterator(mixture, TOKENIZER, 96, batch_size=8, seed=seed, packing=packing)


def test_weights_are_shares_of_rows():
    rows = [row for batch in islice(make_mixed(), 100) for row in batch["tokens"]]
    task_rows = sum(b"=>" in bytes(np.minimum(row, 255).astype(np.uint8)) for row in rows)
    assert abs(task_rows / len(rows) - 0.25) < 0.01


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("done", [0, 1, 7, 8, 50])
def test_resuming_is_bit_identical(done, packing):
    straight = make_mixed(packing=packing)
    for _ in range(done):
        next(straight)
    state = json.dumps(straight.get_state())
    rest = list(islice(straight, 40))
    resumed = make_mixed(packing=packing)
    next(resumed)  # A used iterator must be reset, too.
    resumed.set_state(json.loads(state))
    assert json.dumps(resumed.get_state()) == state
    assert all(same(a, b) for a, b in zip(rest, islice(resumed, 40), strict=True))


def test_resuming_twice_and_at_every_batch():
    reference = list(islice(make_mixed(), 30))
    iterator = make_mixed()
    for expected in reference:
        state = json.loads(json.dumps(iterator.get_state()))
        iterator = make_mixed()
        iterator.set_state(state)
        assert same(next(iterator), expected)


def test_seeds_change_the_order():
    assert same(next(make_mixed(1)), next(make_mixed(1)))
    assert not same(next(make_mixed(1)), next(make_mixed(2)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixture": []}, "mixture: got none"),
        ({"mixture": [(numbered(5), 0.0)]}, r"mixture\[0\]: got weight 0.0, must be above 0"),
        ({"mixture": [(numbered(5), float("nan"))]}, r"mixture\[0\]: got weight nan"),
        ({"mixture": [(Texts(), 1.0)]}, r"mixture\[0\]: got a source of 0 documents"),
        ({"row_length": 0}, "row_length: got 0, may be an integer of at least 1"),
        ({"batch_size": 2.0}, "batch_size: got 2.0, may be an integer"),
        ({"seed": -1}, "seed: got -1"),
        ({"packing": "tight"}, "packing: got 'tight', may be one of first_fit, best_fit"),
        ({"shard_index": 2, "shard_count": 2}, r"shard_index: got 2, may be an integer of at least 0 and at most 1"),
        ({"shard_count": 9}, "a source of 5 documents, must be at least 9"),
    ],
)
def test_bad_arguments_fail_early(changes, message):
    good = {"mixture": [(numbered(5), 1.0)], "tokenizer": TOKENIZER, "row_length": 8}
    with pytest.raises(ValueError, match=message):
        make_train_iterator(**{**good, "batch_size": 2, "seed": 0, **changes})


def test_bad_eval_arguments_fail_early():
    with pytest.raises(ValueError, match="limit: got 0"):
        eval_batches(numbered(5), TOKENIZER, 8, 2, limit=0)
    with pytest.raises(ValueError, match="source: got one without documents"):
        eval_batches(Texts(), TOKENIZER, 8, 2)
