"""Records of a TFRecord file, each held to its checksum, without TensorFlow.

A record is its length (uint64), the length's masked CRC-32C, its bytes and their masked CRC-32C, little-endian. NumPy
has no CRC-32C and Python is slow by the byte, so the records of a batch are cut into blocks, which go through the table
side by side.
"""

import functools
import struct
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np

BLOCK = 256  # bytes that go through the table one after the other
BATCH_BYTES = 1 << 20  # of records that are checked together, at least


def read(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The records of an open file of `size` bytes. ValueError for one that is cut short or not as it was written."""
    held: list[tuple[bytes, bytes, bytes, bytes]] = []  # length, its checksum, record, its checksum
    total = 0
    while head := file.read(12):
        length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else size
        body = file.read(length + 4) if length < size else b""
        if len(body) != length + 4:
            raise ValueError("a TFRecord that is cut short")
        held.append((head[:8], head[8:], body[:-4], body[-4:]))
        total += length
        if total >= BATCH_BYTES:
            yield from _checked(held)
            held, total = [], 0
    yield from _checked(held)


def _checked(held: Sequence[tuple[bytes, bytes, bytes, bytes]]) -> Iterator[bytes]:
    found = crc32c([part for length, _, record, _ in held for part in (length, record)])
    masked = ((found >> np.uint32(15)) | (found << np.uint32(17))) + np.uint32(0xA282EAD8)
    written = np.frombuffer(b"".join(part for _, one, _, other in held for part in (one, other)), "<u4")
    if not np.array_equal(masked, written):
        raise ValueError("a TFRecord with another checksum")
    for _, _, record, _ in held:
        yield record


def crc32c(messages: Sequence[bytes]) -> np.ndarray:
    """The CRC-32C of each message, uint32 [messages]."""
    # Zeros before a message change nothing if the register starts as 0, and it starts as 0 if the first four bytes are
    # inverted; a message of fewer gets the four that undo what the padding inverts.
    blocks = [max(1, -(-len(message) // BLOCK)) for message in messages]
    lanes = np.zeros((sum(blocks), BLOCK), np.uint8)
    flat, end = lanes.reshape(-1), 0
    for message, count in zip(messages, blocks, strict=True):
        end += count * BLOCK
        start = end - len(message)
        flat[start:end] = np.frombuffer(message, np.uint8)
        flat[start : min(end, start + 4)] ^= 0xFF
    table, over = _table(), _over_block()
    state = np.zeros(len(lanes), np.uint32)
    for column in np.ascontiguousarray(lanes.T):
        state = table[(state ^ column) & 0xFF] ^ (state >> np.uint32(8))
    out, values = [], iter(state.tolist())
    for message, count in zip(messages, blocks, strict=True):
        crc = 0
        for _ in range(count):
            crc = over[0][crc & 255] ^ over[1][crc >> 8 & 255] ^ over[2][crc >> 16 & 255] ^ over[3][crc >> 24]
            crc ^= next(values)
        # of the register's first 32 ones a message of fewer than four bytes has not met all
        out.append(crc ^ 0xFFFFFFFF ^ (0xFFFFFFFF >> 8 * len(message) if len(message) < 4 else 0))
    return np.array(out, np.uint32)


@functools.cache
def _table() -> np.ndarray:
    """What a byte makes of an empty register, uint32 [256]."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> np.uint32(1)) ^ np.where(table & 1, np.uint32(0x82F63B78), np.uint32(0))
    return table


@functools.cache
def _over_block() -> list[list[int]]:
    """What BLOCK bytes of zeros make of a register, as the sum of its four bytes' parts: [4][256]."""
    table = _table()
    state = (np.arange(256, dtype=np.uint32)[None] << np.array([[0], [8], [16], [24]], np.uint32)).astype(np.uint32)
    for _ in range(BLOCK):
        state = table[state & 0xFF] ^ (state >> np.uint32(8))
    return state.tolist()
