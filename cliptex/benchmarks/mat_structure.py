"""Validate the structure of a MATLAB file (versions 5 to 7). scipy's reader trusts the declared types and sizes, and
crashes the process if they are wrong. After validation, scipy either reads the file or raises an error."""

import struct
import zlib
from collections.abc import Iterator
from itertools import count
from math import prod

HEADER = 128
MATRIX, COMPRESSED = 14, 15
SIZES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8}
"""Numeric type -> bytes per number."""
TEXTS = (1, 2, 4, 16, 17, 18)
CELL, STRUCT, OBJECT, TEXT, SPARSE, NUMBERS = 1, 2, 3, 4, 5, range(6, 16)
"""Classes of arrays."""
COMPLEX = 0x800
MAX_BYTES = 64 << 20
"""Maximum bytes of a file, and of all its variables unpacked; ImageNet's meta.mat, the largest one, has 3 MB."""
MAX_ARRAYS = 200_000
"""Maximum number of arrays, also in cells and fields; meta.mat has 15,000."""


def check_structure(data: bytes) -> None:
    """Raise ValueError (or an error of `struct` or `zlib`) if the declared types and sizes are inconsistent, or beyond
    the limits."""
    _require(len(data) <= MAX_BYTES, f"it has {len(data):,} bytes")
    if len(data) < HEADER or 0 in data[:4] or 1 not in data[124:126]:
        return  # another version, which scipy reads through numpy, or refuses
    order = "<" if data[126:128] == b"IM" else ">"
    at, left, arrays = HEADER, MAX_BYTES, count()
    while at < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        part = memoryview(data)[at + 8 : at + 8 + size]
        _require(len(part) == size, "the file is truncated")
        at += 8 + size
        if kind == COMPRESSED:
            unpacker = zlib.decompressobj()
            part = memoryview(unpacker.decompress(part, left + 1))
            left -= len(part)
            _require(left >= 0, f"its variables have over {MAX_BYTES >> 20} MB")
            _require(unpacker.eof, "a compressed part is incomplete")
            kind, size = struct.unpack_from(f"{order}II", part)
            part = part[8:]
        _require(kind == MATRIX and size == len(part), "a variable is not an array")
        _check_array(_Parts(part, order), arrays)


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)


class _Parts:
    """Iterates over the parts of an array."""

    def __init__(self, data: memoryview, order: str):
        self.data, self.order, self.at = data, order, 0

    def next(self, *kinds: int) -> tuple[int, memoryview]:
        """Type and bytes of the next part; raises ValueError if its type is not one of `kinds`."""
        kind, size = struct.unpack_from(f"{self.order}II", self.data, self.at)
        if kind >> 16:  # small format: up to four bytes in place of the size
            kind, size, start, end = kind & 0xFFFF, kind >> 16, self.at + 4, self.at + 8
            _require(size <= 4, "a small part has more than four bytes")
        else:
            start = self.at + 8
            # all parts but arrays are padded to a multiple of eight bytes
            end = start + size + (0 if kind == MATRIX else -size % 8)
        _require(kind in kinds, f"a part has type {kind}")
        _require(start + size <= len(self.data), "a part is longer than the array")
        self.at = end
        return kind, self.data[start : start + size]

    def numbers(self, *kinds: int) -> tuple[int, ...]:
        _, data = self.next(*kinds)
        return struct.unpack(f"{self.order}{len(data) // 4}i", data)


def _check_array(parts: _Parts, arrays: Iterator[int]) -> None:
    _require(next(arrays) < MAX_ARRAYS, f"it has over {MAX_ARRAYS:,} arrays")
    if not parts.data:  # an empty array in a cell or field
        return
    flags, _ = parts.numbers(6)
    shape = parts.numbers(5, 6)
    _require(1 <= len(shape) <= 32 and min(shape) >= 0, f"an array has the shape {shape}")
    numel, kind = prod(shape), flags & 0xFF
    parts.next(1, 2, 16)  # the name
    if kind == TEXT:
        _, data = parts.next(*TEXTS)
        _require(numel <= max(len(data), 1), f"{numel:,} characters in {len(data):,} bytes")
    elif kind in NUMBERS:
        for _ in range(2 if flags & COMPLEX else 1):
            stored, data = parts.next(*SIZES)
            _require(numel * SIZES[stored] == len(data), f"{numel:,} numbers in {len(data):,} bytes")
    elif kind == SPARSE:
        for _ in range(4 if flags & COMPLEX else 3):
            parts.next(*SIZES)
    elif kind in (CELL, STRUCT, OBJECT):
        if kind == OBJECT:
            parts.next(1, 2, 16)
        if kind != CELL:
            (longest,) = parts.numbers(5)
            _, names = parts.next(1, 2)
            _require(longest > 0 and len(names) % longest == 0, "field names are truncated")
            numel *= len(names) // longest
        # each has at least eight bytes, so that the count cannot exceed the file's size
        _require(8 * numel <= len(parts.data), f"{numel:,} arrays in {len(parts.data):,} bytes")
        for _ in range(numel):
            _, data = parts.next(MATRIX)
            _check_array(_Parts(data, parts.order), arrays)
    else:
        raise ValueError(f"an array has class {kind}")
