"""The table of the official benchmarks' archives, and where each archive is or comes from.

Reads   `cliptex/benchmarks/archives.tsv`, and the user's own table (`benchmark_data.archives`).
Holds   imports nothing heavy, since the workflow uses it at every start.
"""

import csv
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from cliptex.core.errors import CliptexError

KINDS = ("tar", "tars", "zip", "zips", "file")
OPTIONAL = ("panoptic",)
"""Parts of a benchmark's data that are installed only where a protocol needs them."""
PARTS = ("train", *OPTIONAL)
DIGESTS = {"md5": 32, "sha256": 64}
"""Algorithm -> number of hexadecimal digits."""
HEX = "0123456789abcdef"
RECEIPTS = ".fetched"
"""Folder in a benchmark's folder with a receipt of each archive that was installed."""


@dataclass(frozen=True)
class Archive:
    """A row of the table: a published file of a benchmark. Paths are relative to the benchmark's folder."""

    benchmark: str
    variant: str  # the variant that needs it; empty: all
    file: str  # its name
    kind: str  # tar (compressed or not), zip, tars (of tars), zips (also those in it), file; see `unpack`
    into: str  # target folder
    gives: str  # resulting paths, separated by commas; alternatives by |
    only: str  # glob patterns, separated by |, of the required members; empty: all
    unless: str  # glob pattern; if it matches, the archive is not needed
    bytes: int | None  # approximate size if known, for plans
    digest: str  # "md5:" or "sha256:" and hexadecimal digits; empty where none is known
    url: str  # empty if the download requires accepting terms, or a browser
    terms: str  # licence or terms of use, and where to find them
    part: str = ""  # "train": only the training split needs it; "panoptic": only protocols with panoptic regions do

    @property
    def alternatives(self) -> list[list[str]]:
        """Lists of paths; all paths of one list must exist."""
        return [names.split(",") for names in self.gives.split("|")]


COLUMNS = tuple(field.name for field in fields(Archive))


@dataclass(frozen=True)
class ArchiveLocation:
    """Where an archive or its contents are."""

    how: Literal["done", "superfluous", "tree", "archive", "in place", "download", "missing"]
    """`done`: already installed. `tree`, `archive`: in the user's folder, unpacked or not. `in place`: unpacked by
    the user in the benchmark's folder. `download`: on the web. `missing`: the user must download it manually."""
    path: Path | None = None  # the archive, or the folder with its contents
    names: tuple[str, ...] = ()  # the archive's contents, relative to `path`


def archives(benchmark: str, variant: str | None, table: str | None = None, part: str | None = None) -> list[Archive]:
    """The archives of a benchmark's variant, in the order of installation.

    table: path of the user's own TSV file. Its values override those of the same benchmark and file. part: one of
    `OPTIONAL`; None: all that are not of an optional part.
    """
    rows = list(_package_table())
    for where, values in _rows(Path(table)) if table else ():
        key = (values.get("benchmark"), values.get("file"))
        same = [number for number, row in enumerate(rows) if (row.benchmark, row.file) == key]
        if not same and (missing := [name for name in COLUMNS if name not in values and name != "part"]):
            raise CliptexError(f"{where}: a new file needs all columns; missing: {', '.join(missing)}")
        for number in same:
            rows[number] = _archive(vars(rows[number]) | values, where)
        if not same:
            rows.append(_archive(values, where))
    rows = [row for row in rows if row.benchmark == benchmark and row.variant in ("", variant)]
    return [row for row in rows if (row.part == part if part else row.part not in OPTIONAL)]


@cache
def _package_table() -> tuple[Archive, ...]:
    path = Path(str(files("cliptex.benchmarks").joinpath("archives.tsv")))
    return tuple(_archive(row, where) for where, row in _rows(path))


def _rows(path: Path) -> list[tuple[str, dict[str, str]]]:
    """File and line of each row of a table, and its values by column."""
    try:
        if not path.is_file():  # reading a pipe would wait for ever
            raise FileNotFoundError("it is not a file")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CliptexError(f"benchmark_data.archives: {path} cannot be read ({error}); correct it") from error
    reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    if unknown := [name for name in reader.fieldnames or ["nothing"] if name not in COLUMNS]:
        columns = f"the columns are {', '.join(COLUMNS)}, separated by tabs"
        raise CliptexError(f"{path}: {unknown[0]!r} is not a column; {columns}")
    rows = [(f"{path}: line {number}", row) for number, row in enumerate(reader, start=2)]
    for where, row in rows:
        if None in row or None in row.values():
            raise CliptexError(f"{where}: does not have {len(reader.fieldnames)} columns, separated by tabs")
    return rows


def _archive(values: dict[str, Any], where: str) -> Archive:
    """Convert a row; raises CliptexError for an invalid value."""
    size = str(values["bytes"] or "")
    row = Archive(**values | {"bytes": int(size) if size.isdigit() else None})
    algorithm, _, digits = row.digest.partition(":")
    paths = [Path(path) for path in (row.into, *(name for names in row.alternatives for name in names))]
    invalid = {
        "benchmark": not row.benchmark,
        "file": not row.file or Path(row.file).name != row.file,
        "kind": row.kind not in KINDS,
        "gives": not row.gives or any(path.is_absolute() or ".." in path.parts for path in paths),
        "bytes": bool(size) and not size.isdigit(),
        "part": row.part not in ("", *PARTS),
        "digest": bool(row.digest) and not (len(digits) == DIGESTS.get(algorithm) and set(digits) <= set(HEX)),
        "url": bool(row.url) and not row.url.startswith(("http://", "https://")),
    }
    for column in (column for column, is_invalid in invalid.items() if is_invalid):
        raise CliptexError(f"{where}: {values[column]!r} is not valid in column {column}; see docs/data.md")
    return row


def receipt(benchmark_dir: Path, archive: Archive, mark: Literal["json", "begun"] = "json") -> Path:
    """The file that marks an archive as installed, or ("begun") as being unpacked: its contents may be incomplete."""
    return benchmark_dir / RECEIPTS / f"{archive.file}.{mark}"


def locate(archive: Archive, benchmark_dir: Path, path: str | None) -> ArchiveLocation:
    """Find an archive in the benchmark's folder or in `path`, the user's folder (None: there is none)."""
    if receipt(benchmark_dir, archive).exists() and _contents(archive, benchmark_dir):
        return ArchiveLocation("done", benchmark_dir)
    user_dir = Path(path) if path else None
    if archive.unless and any(any(folder.glob(archive.unless)) for folder in (benchmark_dir, user_dir) if folder):
        return ArchiveLocation("superfluous")
    if user_dir:
        if names := _contents(archive, user_dir):
            return ArchiveLocation("tree", user_dir, names)
        if (user_dir / archive.file).is_file():
            return ArchiveLocation("archive", user_dir / archive.file)
    if not receipt(benchmark_dir, archive, "begun").exists() and (names := _contents(archive, benchmark_dir)):
        return ArchiveLocation("in place", benchmark_dir, names)
    return ArchiveLocation("download" if archive.url else "missing")


def unpacked_by_hand(archive: Archive, benchmark_dir: Path) -> bool:
    """Whether the user unpacked an archive in the benchmark's folder, and `cliptex fetch` has not seen it."""
    seen = receipt(benchmark_dir, archive).exists() or receipt(benchmark_dir, archive, "begun").exists()
    return not seen and bool(_contents(archive, benchmark_dir))


def _contents(archive: Archive, folder: Path) -> tuple[str, ...]:
    """The paths of the first alternative that is completely in a folder; empty if there is none."""
    return next((tuple(names) for names in archive.alternatives if all((folder / name).exists() for name in names)), ())
