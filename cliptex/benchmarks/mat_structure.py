"""Is a MATLAB file of versions 5 to 7 sound? scipy's reader trusts what it says of its own kinds and sizes, and wrong
ones end the whole process. A file that passes here is one that scipy reads, or refuses."""

import struct
import zlib
from math import prod

HEADER = 128
MATRIX, COMPRESSED = 14, 15
SIZES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8}
"""Kind of numbers -> bytes of one."""
TEXTS = (1, 2, 4, 16, 17, 18)
CELL, STRUCT, OBJECT, TEXT, SPARSE, NUMBERS = 1, 2, 3, 4, 5, range(6, 16)
"""Classes of arrays."""
COMPLEX = 0x800
LARGEST = 1 << 30
"""Bytes that a compressed part may become."""


def require_sound(data: bytes) -> None:
    """ValueError (or what `struct` and `zlib` raise) for a file whose parts do not fit into each other."""
    if len(data) < HEADER or 0 in data[:4] or 1 not in data[124:126]:
        return  # of another version, which scipy reads by numpy's means or refuses
    order = "<" if data[126:128] == b"IM" else ">"
    at = HEADER
    while at < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        part = memoryview(data)[at + 8 : at + 8 + size]
        _require(len(part) == size, "it is cut off")
        at += 8 + size
        if kind == COMPRESSED:
            unpacker = zlib.decompressobj()
            part = memoryview(unpacker.decompress(part, LARGEST))
            _require(unpacker.eof, "a compressed part is not whole")
            kind, size = struct.unpack_from(f"{order}II", part)
            part = part[8:]
        _require(kind == MATRIX and size == len(part), "a variable is no array")
        _check_array(_Parts(part, order))


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)


class _Parts:
    """The parts of an array, one after the other."""

    def __init__(self, data: memoryview, order: str):
        self.data, self.order, self.at = data, order, 0

    def next(self, *kinds: int) -> tuple[int, memoryview]:
        """Kind and bytes of the next part, which must be of one of some kinds."""
        kind, size = struct.unpack_from(f"{self.order}II", self.data, self.at)
        if kind >> 16:  # up to four bytes, which stand in place of the size
            kind, size, start, end = kind & 0xFFFF, kind >> 16, self.at + 4, self.at + 8
            _require(size <= 4, "a part is larger than its place")
        else:
            start = self.at + 8
            # all but arrays end at a multiple of eight bytes
            end = start + size + (0 if kind == MATRIX else -size % 8)
        _require(kind in kinds, f"a part is of kind {kind}")
        _require(start + size <= len(self.data), "a part is longer than the whole")
        self.at = end
        return kind, self.data[start : start + size]

    def numbers(self, *kinds: int) -> tuple[int, ...]:
        _, data = self.next(*kinds)
        return struct.unpack(f"{self.order}{len(data) // 4}i", data)


def _check_array(parts: _Parts) -> None:
    if not parts.data:  # an empty one in a cell or a field
        return
    flags, _ = parts.numbers(6)
    shape = parts.numbers(5, 6)
    _require(1 <= len(shape) <= 32 and min(shape) >= 0, f"an array has the shape {shape}")
    count, kind = prod(shape), flags & 0xFF
    parts.next(1, 2, 16)  # the name
    if kind == TEXT:
        _, data = parts.next(*TEXTS)
        _require(count <= max(len(data), 1), f"{count:,} letters in {len(data):,} bytes")
    elif kind in NUMBERS:
        for _ in range(2 if flags & COMPLEX else 1):
            stored, data = parts.next(*SIZES)
            _require(count * SIZES[stored] == len(data), f"{count:,} numbers in {len(data):,} bytes")
    elif kind == SPARSE:
        for _ in range(4 if flags & COMPLEX else 3):
            parts.next(*SIZES)
    elif kind in (CELL, STRUCT, OBJECT):
        if kind == OBJECT:
            parts.next(1, 2, 16)
        if kind != CELL:
            (longest,) = parts.numbers(5)
            _, names = parts.next(1, 2)
            _require(longest > 0 and len(names) % longest == 0, "names of fields are cut off")
            count *= len(names) // longest
        # each has eight bytes at least, so that no number of them is larger than the file
        _require(8 * count <= len(parts.data), f"{count:,} arrays in {len(parts.data):,} bytes")
        for _ in range(count):
            _, data = parts.next(MATRIX)
            _check_array(_Parts(data, parts.order))
    else:
        raise ValueError(f"an array is of class {kind}")
