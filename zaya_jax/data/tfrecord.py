"""Records of a TFRecord file, each held to its checksums, without TensorFlow."""

import struct
from collections.abc import Iterator
from typing import BinaryIO

import google_crc32c


def read(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The records of an open file of `size` bytes. ValueError for one that is cut short or not as it was written.

    A record is its length (uint64), the length's masked CRC-32C, its bytes and their masked CRC-32C, little-endian.
    """
    while head := file.read(12):
        length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else size
        body = file.read(length + 4) if length < size else b""
        if len(body) != length + 4:
            raise ValueError("a TFRecord that is cut short")
        for part, written in ((head[:8], head[8:]), (body[:-4], body[-4:])):
            if masked_crc32c(part) != struct.unpack("<I", written)[0]:
                raise ValueError("a TFRecord with another checksum")
        yield body[:-4]


def masked_crc32c(data: bytes) -> int:
    """The checksum as TFRecord writes it."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
