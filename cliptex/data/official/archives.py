"""The files of which official benchmarks consist: a table of them, and where each of them is or comes from.

Reads   `cliptex/benchmarks/archives.tsv`, and a table of the user's own (`benchmark_data.archives`).
Holds   imports nothing heavy: the workflow asks at every start.
"""

import csv
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from cliptex.core.errors import CliptexError

KINDS = ("tar", "tars", "zip", "file")
DIGESTS = {"md5": 32, "sha256": 64}
"""Number of hexadecimal digits."""
HEX = "0123456789abcdef"
RECEIPTS = ".fetched"
"""Folder in a benchmark's own, in which is written down what has been put in place."""


@dataclass(frozen=True)
class Archive:
    """A row of the table: a published file of a benchmark."""

    benchmark: str
    variant: str
    """The variant that needs it; empty where all do."""
    file: str
    """Its name."""
    kind: str
    """tar (compressed or not), zip, tars (a tar of tars, each of which becomes a folder), file (used as it is)."""
    into: str
    """Where it is unpacked to, relative to the benchmark's folder."""
    gives: str
    """What then is there, relative to the benchmark's folder: names joined by commas, alternatives by |."""
    only: str
    """Patterns, joined by |, of the members that are needed; empty: all."""
    unless: str
    """Pattern of what makes it superfluous where it is there."""
    bytes: int | None
    """Its size, where known about; for plans."""
    digest: str
    """"md5:" or "sha256:" and hexadecimal digits; empty where none is known."""
    url: str
    """Empty where nobody may fetch it without having agreed to terms, or where only a browser can."""
    terms: str
    """Licence or terms of use, and where they are to be read."""

    @property
    def alternatives(self) -> list[list[str]]:
        """Lists of paths, of which one list is to be there."""
        return [names.split(",") for names in self.gives.split("|")]

    @property
    def patterns(self) -> tuple[str, ...]:
        """`only` as a list."""
        return tuple(self.only.split("|")) if self.only else ()


COLUMNS = tuple(field.name for field in fields(Archive))


@dataclass(frozen=True)
class Place:
    """Where an archive, or what it gives, is."""

    how: Literal["done", "superfluous", "tree", "archive", "in place", "download", "missing"]
    """`done`: put in place before. `tree`, `archive`: in the user's folder, unpacked or not. `in place`: by hand, in
    the benchmark's own folder. `download`: on the web. `missing`: to be got by the user."""
    path: Path | None = None
    """The archive, or the folder that holds what it gives."""
    names: tuple[str, ...] = ()
    """What of `path` it is."""


def archives(benchmark: str, variant: str | None, table: str | None = None) -> list[Archive]:
    """The files that a variant of a benchmark consists of, in the order in which they are put in place.

    table: path of a TSV file of the user's own. What its columns say of a benchmark and file replaces what ours says.
    """
    rows = list(_package_table())
    for where, given in _rows(Path(table)) if table else ():
        same = [n for n, row in enumerate(rows) if all(given.get(k) == getattr(row, k) for k in ("benchmark", "file"))]
        if not same and (missing := [name for name in COLUMNS if name not in given]):
            raise CliptexError(f"{where}: a new file needs all columns, and {', '.join(missing)} are not there")
        for number in same:
            rows[number] = _archive(vars(rows[number]) | given, where)
        if not same:
            rows.append(_archive(given, where))
    return [row for row in rows if row.benchmark == benchmark and row.variant in ("", variant)]


@cache
def _package_table() -> tuple[Archive, ...]:
    path = Path(str(files("cliptex.benchmarks").joinpath("archives.tsv")))
    return tuple(_archive(row, where) for where, row in _rows(path))


def _rows(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Where each row of a table stands, and its values by column."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise CliptexError(f"benchmark_data.archives: {path} cannot be read ({error.strerror})") from error
    reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    if unknown := [name for name in reader.fieldnames or ["nothing"] if name not in COLUMNS]:
        raise CliptexError(f"{path}: {unknown[0]!r} is not a column; they are {', '.join(COLUMNS)}, divided by tabs")
    rows = [(f"{path}: line {number}", row) for number, row in enumerate(reader, start=2)]
    for where, row in rows:
        if None in row or None in row.values():
            raise CliptexError(f"{where}: has not {len(reader.fieldnames)} columns, divided by tabs")
    return rows


def _archive(values: dict[str, Any], where: str) -> Archive:
    """The row of these values; CliptexError where one makes no sense."""
    size = str(values["bytes"] or "")
    row = Archive(**values | {"bytes": int(size) if size.isdigit() else None})
    algorithm, _, digits = row.digest.partition(":")
    paths = [Path(path) for path in (row.into, *(name for names in row.alternatives for name in names))]
    wrong = {
        "benchmark": not row.benchmark,
        "file": not row.file or Path(row.file).name != row.file,
        "kind": row.kind not in KINDS,
        "gives": not row.gives or any(path.is_absolute() or ".." in path.parts for path in paths),
        "bytes": bool(size) and not size.isdigit(),
        "digest": bool(row.digest) and not (len(digits) == DIGESTS.get(algorithm) and set(digits) <= set(HEX)),
        "url": bool(row.url) and not row.url.startswith(("http://", "https://")),
    }
    for column, is_wrong in wrong.items():
        if is_wrong:
            raise CliptexError(f"{where}: {values[column]!r} cannot be its {column}; docs/data.md explains the columns")
    return row


def receipt(root: Path, archive: Archive) -> Path:
    """The file that says that an archive has been put in place."""
    return root / RECEIPTS / f"{archive.file}.json"


def begun(root: Path, archive: Archive) -> Path:
    """The file that says that an archive is being unpacked: what is there may be a part."""
    return root / RECEIPTS / f"{archive.file}.begun"


def locate(archive: Archive, root: Path, path: str | None) -> Place:
    """Where an archive is. root: the benchmark's folder. path: the user's folder, None without one."""
    if receipt(root, archive).exists() and _there(archive, root):
        return Place("done", root)
    given = Path(path) if path else None
    if archive.unless and any(any(folder.glob(archive.unless)) for folder in (root, given) if folder):
        return Place("superfluous")
    if given:
        if names := _there(archive, given):
            return Place("tree", given, names)
        if (given / archive.file).is_file():
            return Place("archive", given / archive.file)
    if not begun(root, archive).exists() and (names := _there(archive, root)):
        return Place("in place", root, names)
    return Place("download" if archive.url else "missing")


def _there(archive: Archive, folder: Path) -> tuple[str, ...]:
    """The names of an alternative that are all in a folder; empty without one."""
    return next((tuple(names) for names in archive.alternatives if all((folder / name).exists() for name in names)), ())
