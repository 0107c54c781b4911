"""The form of a Parquet file from its footer: what reading it would cost, known before anything is read.

pyarrow ends the process on some damaged footers when it is asked for a column's metadata (its `RowGroupMetaData.column`
lets C++ exceptions through), so the few numbers that are needed are decoded here. Formats: parquet-format's
`parquet.thrift`, and Thrift's compact protocol.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAGIC = b"PAR1"
MAX_FOOTER_BYTES, MAX_DEPTH = 1 << 22, 16
"""A label file of 10,000 rows has a footer of some 20 kB."""
PLAIN, RLE = 0, 3
"""`Encoding` of parquet.thrift."""


@dataclass(frozen=True)
class Chunk:
    """A column of a row group."""

    encodings: frozenset[int]
    has_dictionary: bool
    uncompressed_bytes: int


@dataclass(frozen=True)
class RowGroup:
    rows: int
    chunks: tuple[Chunk, ...]


def row_groups(path: Path) -> list[RowGroup]:
    """The row groups of a Parquet file. Raises ValueError if the footer is damaged."""
    with Path(path).open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 8))
        end = file.read(8)
        length = int.from_bytes(end[:4], "little")
        if end[4:] != MAGIC or length > size - 8:
            raise ValueError("no Parquet footer")
        if length > MAX_FOOTER_BYTES:
            raise ValueError(f"a footer of {length:,} bytes")
        file.seek(size - 8 - length)
        footer = _Compact(file.read(length)).struct()
    try:
        groups = [RowGroup(_count(group[3]), tuple(_chunk(column[3]) for column in group[1])) for group in footer[4]]
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError("a footer without the numbers of its columns") from error
    return groups


def _chunk(column: dict[int, Any]) -> Chunk:
    return Chunk(frozenset(column[2]), column.get(11) is not None, _count(column[6]))


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("a footer with a number that is none")
    return value


class _Compact:
    """Decodes a struct of Thrift's compact protocol to a dictionary of field numbers."""

    def __init__(self, data: bytes):
        self._data, self._at = data, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        if depth > MAX_DEPTH:
            raise ValueError("a footer nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._signed()
            fields[number] = self._value(head & 15, depth)
        return fields

    def _byte(self) -> int:
        at = self._at
        if at >= len(self._data):
            raise ValueError("a footer that ends early")
        self._at = at + 1
        return self._data[at]

    def _take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        if len(taken) != count:
            raise ValueError("a footer that ends early")
        self._at += count
        return taken

    def _unsigned(self) -> int:
        value = shift = 0
        while (byte := self._byte()) > 127:
            value |= (byte & 127) << shift
            if (shift := shift + 7) > 63:
                raise ValueError("a number that is too long")
        return value | byte << shift

    def _signed(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2):
            return kind == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._signed()
        if kind == 7:
            return self._take(8)
        if kind == 8:
            return self._take(self._unsigned())
        if kind in (9, 10):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._unsigned()
            return [self._element(head & 15, depth) for _ in range(count)]
        if kind == 11:
            kinds = self._byte() if (count := self._unsigned()) else 0
            pairs = ((self._element(kinds >> 4, depth), self._element(kinds & 15, depth)) for _ in range(count))
            return list(pairs)
        if kind == 12:
            return self.struct(depth + 1)
        raise ValueError("a footer with unknown types")

    def _element(self, kind: int, depth: int) -> Any:
        return self._byte() == 1 if kind in (1, 2) else self._value(kind, depth + 1)
