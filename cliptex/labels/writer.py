"""Write label files. The bytes depend on the rows only, not on the portions in which they are written."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cliptex.core.files import replacing
from cliptex.labels.store import COLUMNS, METADATA_KEY

ROWS_PER_GROUP = 1024


@contextmanager
def open_label_writer(
    path: Path, scalars: list[str], extras: dict[str, Any], metadata: dict[str, Any]
) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    """Yield a function that appends rows to the label file `path`, which is created only if no error occurs.

    scalars: names of the task's scalar columns. extras: name -> pyarrow type of the expert's extra columns. metadata:
    see `label_recipe`.
    """
    import pyarrow as pa
    from pyarrow import parquet

    types = dict(zip(COLUMNS, (pa.string(), pa.int32(), pa.int32(), pa.binary(), pa.string()), strict=True))
    types |= dict.fromkeys(scalars, pa.float64()) | extras
    schema = pa.schema(types, metadata={METADATA_KEY: json.dumps(metadata)})
    rows: list[dict[str, Any]] = []
    with (
        replacing(path) as scratch,
        parquet.ParquetWriter(
            scratch,
            schema,
            compression={name: "none" if name == "payload" else "zstd" for name in types},
            use_dictionary=False,
            write_page_checksum=True,
        ) as file,
    ):

        def flush(count: int) -> None:
            table = pa.Table.from_pylist([{name: row.get(name) for name in types} for row in rows[:count]], schema)
            file.write_table(table, row_group_size=count)
            del rows[:count]

        def write(more: list[dict[str, Any]]) -> None:
            rows.extend(more)
            # only whole groups: the bytes must not depend on how rows arrive, and payloads must not fill the memory
            while len(rows) >= ROWS_PER_GROUP:
                flush(ROWS_PER_GROUP)

        yield write
        if rows:
            flush(len(rows))
