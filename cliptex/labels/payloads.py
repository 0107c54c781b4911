"""Read a few payloads of a label file by their places, without the others.

Payloads are not compressed: a page of a Parquet column chunk is a header, levels and the values, each after its length
(https://parquet.apache.org/docs/file-format/data-pages/). So lengths are followed in memory-mapped pages, which reads
4 bytes of each value. Checksums are not compared.
"""

import mmap
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyarrow import parquet

LENGTH = struct.Struct("<I")
DATA_PAGE, PLAIN = 0, 0
BYTE_FIELDS = {3: 1, 7: 8}
"""Bytes of the types `byte` and `double` of Thrift's compact protocol."""


class Unlike(ValueError):
    """The column is not laid out as `open_label_writer` does; read it by pyarrow."""


def read_payloads(data: mmap.mmap, form: "parquet.FileMetaData", rows: list[int]) -> list[bytes]:
    """Payloads of some rows, ascending. Raises Unlike also where a payload is null and for damaged pages."""
    wanted, found, first = iter([*rows, -1]), [], 0
    row = next(wanted)
    for number in range(form.num_row_groups):
        group = form.row_group(number)
        end = first + group.num_rows
        if first <= row < end:
            names = [group.column(column).path_in_schema for column in range(group.num_columns)]
            chunk = group.column(names.index("payload"))
            if chunk.compression != "UNCOMPRESSED" or chunk.statistics is None or chunk.statistics.null_count != 0:
                raise Unlike
            for count, at, until in _pages(data, chunk.data_page_offset, group.num_rows):
                place = first
                while first <= row < first + count:
                    for _ in range(row - place):
                        at += 4 + LENGTH.unpack_from(data, at)[0]
                    place = row
                    (size,) = LENGTH.unpack_from(data, at)
                    if at + 4 + size > until:
                        raise Unlike
                    found.append(data[at + 4 : at + 4 + size])
                    row = next(wanted)
                first += count
        first = end
    if len(found) != len(rows):
        raise Unlike
    return found


def _pages(data: mmap.mmap, at: int, num_rows: int) -> Iterator[tuple[int, int, int]]:
    """Values, start of the first value and end of each page of a column chunk that may have nulls, but has none."""
    while num_rows > 0:
        header, at = _struct(data, at)
        about, size = header.get(5), header.get(3)
        if header.get(1) != DATA_PAGE or not isinstance(about, dict) or about.get(2) != PLAIN or size is None:
            raise Unlike
        count = about.get(1, 0)
        if not 0 < count <= num_rows or not 0 < size <= len(data) - at:
            raise Unlike
        yield count, at + 4 + LENGTH.unpack_from(data, at)[0], at + size
        num_rows -= count
        at += size


def _struct(data: mmap.mmap, at: int) -> tuple[dict[int, int | dict | None], int]:
    """The integers and structures of a structure in Thrift's compact protocol, by field, and the place after it."""
    fields: dict[int, int | dict | None] = {}
    field = 0
    while kind := data[at]:
        field, kind, at = field + (kind >> 4), kind & 15, at + 1
        value: int | dict | None = None
        if not kind or field > 64:
            raise Unlike
        if kind in (4, 5, 6):
            number, at = _varint(data, at)
            value = (number >> 1) ^ -(number & 1)
        elif kind == 8:  # bytes
            size, at = _varint(data, at)
            at += size
        elif kind == 12:
            value, at = _struct(data, at)
        elif kind in BYTE_FIELDS:
            at += BYTE_FIELDS[kind]
        elif kind not in (1, 2):  # true and false have no bytes
            raise Unlike
        fields[field] = value
    return fields, at + 1


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = 0
    for place in range(10):
        byte = data[at + place]
        value |= (byte & 127) << (7 * place)
        if byte < 128:
            return value, at + place + 1
    raise Unlike
