"""Put the official data of a benchmark in place: downloaded, taken from a folder of the user's, or found there already.

Reads   the table of archives, the user's folder (`benchmark_data.benchmarks.NAME.path`), the web.
Writes  resources/{benchmark}/ in the official layout, links to what the user has unpacked, and `official.json` last:
        the files, their digests and origins, the numbers of samples, the terms of use.
Holds   nothing of the user's is changed. With `official.json` the data are whole: digests as published, numbers of
        samples as they officially are. Killed at any moment it goes on where it was.
"""

import logging
import os
from pathlib import Path
from typing import Any

from cliptex import versions
from cliptex.benchmarks.reading import SOURCES
from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import digest_file, read_json, write_json
from cliptex.core.plugins import find
from cliptex.core.progress import track
from cliptex.core.redact import without_secrets
from cliptex.data.http import check_digest, fetch_file
from cliptex.data.miniature.layouts import SEAL
from cliptex.data.official.archives import RECEIPTS, Archive, Place, archives, begun, locate, receipt
from cliptex.data.official.status import chosen_variant
from cliptex.data.official.unpack import unpack

log = logging.getLogger("cliptex")
RESERVED = (RECEIPTS, SEAL, *(f"{source}.json" for source in SOURCES))
DOWNLOAD = "download"
CHECKED = 16
"""Samples of each part that are read as a check."""


def fetch(config: Config, name: str, root: Path) -> dict[str, Any]:
    """Put the data of the benchmark `name` into `root` and return what `official.json` says.

    Raises CliptexError when something must be got by hand, is not what it should be, or does not fit on the disk.
    """
    from filelock import FileLock

    source = config.benchmark_source(name)
    if source.source != "official":
        raise CliptexError(f"benchmark_data: {name}'s data are rendered in this configuration; set source: official")
    variant = chosen_variant(config, name)
    root = Path(root)
    if (root / SEAL).exists():
        raise CliptexError(
            f"{root}: holds rendered data; remove it, or work in another directory (snakemake --directory)"
        )
    if source.path and not Path(source.path).is_dir():
        raise CliptexError(f"benchmark_data.benchmarks.{name}.path: {source.path} is not a folder")
    rows = archives(name, variant, config.benchmark_data.archives)
    given = {"path": source.path, "keep": config.benchmark_data.keep_archives}
    (root / RECEIPTS).mkdir(parents=True, exist_ok=True)
    with FileLock(root / RECEIPTS / "lock"):
        if rows:
            records = [_put(row, root, name, **given) for row in rows]
        else:
            records = [_link_all(root, name, source.path)]
        mark: dict[str, Any] = {"schema_version": 1, "source": "official", "benchmark": name, "variant": variant}
        mark |= find("benchmarks", name)(root, mark).prepare()
        mark["counts"] = _check(find("benchmarks", name)(root, mark))
        mark["archives"] = [record for record in records if record]
        mark["terms"] = sorted({record["terms"] for record in mark["archives"]})
        write_json(root / "official.json", mark | {"version": versions.FETCH})
    log.info("%s: %s", name, ", ".join(f"{count:,} samples to {part}" for part, count in mark["counts"].items()))
    return mark


def _check(data: Any) -> dict[str, int]:
    """The numbers of samples, asserted by `samples`; some are read. No image may be in both parts."""
    counts = {}
    data.check_apart()
    for part in ("train", "eval"):
        samples = data.samples(part)
        counts[part] = len(samples)
        step = max(1, len(samples) // CHECKED)
        for index in track(range(0, len(samples), step), f"check {data.name} {part}"):
            samples[index]
    return counts


def _put(archive: Archive, root: Path, name: str, path: str | None, keep: bool) -> dict[str, Any] | None:
    """One archive, or what it gives, in place; what the mark says of it, None where it is superfluous."""
    place = locate(archive, root, path)
    if place.how == "superfluous":
        return None
    if place.how == "done":
        record = read_json(receipt(root, archive))
        _clean(archive, root, record, keep)
        return record
    if place.how == "missing":
        raise CliptexError(missing(archive, name, path))
    key = f"benchmark_data.benchmarks.{name}.path"
    record: dict[str, Any] = {"file": archive.file, "terms": archive.terms, "url": without_secrets(archive.url) or None}
    if place.how in ("tree", "in place"):
        record |= {"from": str(place.path.absolute()), "unpacked_by": "the user"}
        record |= _digest_of(archive, place, key)
        if place.how == "tree":
            _link(root, place)
    elif archive.kind == "file":
        record |= _put_file(archive, root, place, key)
    else:
        record |= _unpack(archive, root, place, key)
    write_json(receipt(root, archive), record)
    _clean(archive, root, record, keep)
    return record


def _clean(archive: Archive, root: Path, record: dict[str, Any], keep: bool) -> None:
    """Remove what is not needed when the receipt is there."""
    begun(root, archive).unlink(missing_ok=True)
    if record["from"] == DOWNLOAD and not keep:
        (paths.ARCHIVES / archive.file).unlink(missing_ok=True)


def missing(archive: Archive, name: str, path: str | None) -> str:
    """What the user has to do for an archive that cannot be downloaded."""
    key = f"benchmark_data.benchmarks.{name}.path"
    gives = " or ".join(", ".join(names) for names in archive.alternatives)
    where = f"{Path(path).absolute()}: has neither" if path else f"{key}: is not set; name a folder that has either"
    return f"{where} {archive.file} {'nor' if path else 'or'} {gives}, which must be got by hand ({archive.terms})"


def _digest_of(archive: Archive, place: Place, key: str) -> dict[str, Any]:
    """Digest of a file that is used as it is; of an unpacked tree there is none."""
    if archive.kind != "file":
        return {"digest": None}
    file = place.path / place.names[0]
    return {"digest": _checked(archive, file, f"{key}: {file}"), "bytes": file.stat().st_size}


def _checked(archive: Archive, file: Path, what: str) -> str:
    """The digest of a file of the user's: the published one, which it must have, or else its SHA-256."""
    log.info("checking %s (%.1f GB)", file, file.stat().st_size / 1e9)
    if not archive.digest:
        return f"sha256:{digest_file(file, 'sha256')}"
    check_digest(file, archive.digest, what, "copy it again, or take it away to have it downloaded")
    return archive.digest


def _downloaded(archive: Archive, target: Path) -> dict[str, Any]:
    """Fetch an archive to a file. What is known of it then."""
    remedy = "try again later; where a newer one is published, give it a row in a table of your own (docs/data.md)"
    if target.is_file() and archive.digest:  # it came before a kill, or somebody put it there
        check_digest(target, archive.digest, str(target), "remove it, then it is downloaded")
    fetch_file(archive.url, target, "benchmark_data", archive.digest or None, remedy)
    digest = archive.digest or f"sha256:{digest_file(target, 'sha256')}"
    return {"from": DOWNLOAD, "digest": digest, "bytes": target.stat().st_size}


def _put_file(archive: Archive, root: Path, place: Place, key: str) -> dict[str, Any]:
    """A file that is used as it is."""
    target = root / archive.into / archive.file
    _clear_links(root, archive)
    if place.how == "download":
        return _downloaded(archive, target)
    digest = _checked(archive, place.path, f"{key}: {place.path}")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(place.path.absolute())
    return {"from": str(place.path.absolute()), "digest": digest, "bytes": place.path.stat().st_size}


def _unpack(archive: Archive, root: Path, place: Place, key: str) -> dict[str, Any]:
    """Get an archive, check it, unpack it."""
    if place.how == "download":
        file = paths.ARCHIVES / archive.file
        record = _downloaded(archive, file)
    else:
        file = place.path
        digest = _checked(archive, file, f"{key}: {file}")
        record = {"from": str(file.absolute()), "digest": digest, "bytes": file.stat().st_size}
    again = begun(root, archive).exists()
    begun(root, archive).touch()
    _clear_links(root, archive)
    log.info("unpacking %s", file)
    found = unpack(file, archive.kind, root / archive.into, archive.patterns, RESERVED, room=not again)
    os.sync()  # the files are on the disk before it is said that they are
    return record | {"files": found.files, "unpacked_bytes": found.bytes}


def _clear_links(root: Path, archive: Archive) -> None:
    """Links to the user's own files, of an earlier run: nothing may be written through them."""
    for name in [archive.into, *(name for names in archive.alternatives for name in names)]:
        if name != "." and (root / name).is_symlink():
            (root / name).unlink()


def _link(root: Path, place: Place) -> None:
    """Links in the benchmark's folder to what the user has."""
    for name in place.names:
        link = root / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink():
            link.unlink()
        elif link.exists():
            raise CliptexError(f"{link}: is there, and so is {place.path / name}; remove the one that is not wanted")
        link.symlink_to((place.path / name).absolute())


def _link_all(root: Path, name: str, path: str | None) -> dict[str, Any]:
    """A benchmark of which no archive is known: all that the user's folder has, or what lies in place."""
    place = Place("tree", Path(path), tuple(sorted(one.name for one in Path(path).iterdir()))) if path else None
    if place:
        _link(root, place)
    elif not any(one.name not in RESERVED for one in root.iterdir()):
        raise CliptexError(f"benchmark_data.benchmarks.{name}.path: is not set; name the folder that has its data")
    return {
        "file": None,
        "terms": "not known here",
        "url": None,
        "from": str((place.path if place else root).absolute()),
    }
