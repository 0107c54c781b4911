"""Install a benchmark's official data: download them, use archives or unpacked data of the user, check everything.

Reads   the table of archives, the user's folder (`benchmark_data.benchmarks.NAME.path`), the web.
Writes  resources/{benchmark}/ in the official layout, with links to data that the user has unpacked, and
        `official.json`, last: the files with digests and origins, the numbers of samples, the terms of use. For an
        optional part of the data `panoptic.json` in its place.
Holds   the user's files are never changed. If `official.json` exists, the data are complete, with the published digests
        and the official numbers of samples. If killed, it resumes.
"""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

from cliptex import versions
from cliptex.benchmarks.reading import MARKS
from cliptex.config import BenchmarkSource, Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError, working_on
from cliptex.core.files import digest_file, read_checked, write_json
from cliptex.core.plugins import find
from cliptex.core.progress import track
from cliptex.core.redact import without_secrets
from cliptex.data.miniature.layouts import SEAL
from cliptex.data.official.archives import OPTIONAL, RECEIPTS, Archive, ArchiveLocation, archives, locate, receipt
from cliptex.data.official.status import chosen_variant, evaluation_only
from cliptex.data.official.unpack import unpack
from cliptex.data.web import check_digest, fetch_file

log = logging.getLogger("cliptex")
RESERVED = (RECEIPTS, SEAL, *(f"{name}.json" for name in (*MARKS, *OPTIONAL)))
DOWNLOAD = "download"
NUM_CHECKED = 16
"""Number of samples of each part that are read as a check."""


def fetch(config: Config, name: str, benchmark_dir: Path, evaluation: bool | None = None) -> dict[str, Any]:
    """Install the data of the benchmark `name` in `benchmark_dir`. Returns the content of `official.json`.

    evaluation: only the data of the evaluation split; default: `evaluation_only`.
    Raises CliptexError if an archive must be downloaded manually, has a wrong digest, or does not fit on the disk.
    """
    from filelock import FileLock

    benchmark_dir = Path(benchmark_dir)
    source, variant = _checked_source(config, name, benchmark_dir), chosen_variant(config, name)
    rows = archives(name, variant, config.benchmark_data.archives)
    needed = rows
    if evaluation_only(config, name) if evaluation is None else evaluation:
        needed = [row for row in rows if row.part != "train"]
    (benchmark_dir / RECEIPTS).mkdir(parents=True, exist_ok=True)
    with FileLock(benchmark_dir / RECEIPTS / "lock"):
        if rows:
            records = _install_all(config, name, needed, benchmark_dir)
        else:
            records = [_link_all(benchmark_dir, name, source.path)]
        mark: dict[str, Any] = {"schema_version": 1, "source": source.source, "benchmark": name, "variant": variant}
        mark |= {"evaluation_only": True} if needed != rows else {}
        mark |= find("benchmarks", name)(benchmark_dir, mark).prepare()
        mark["counts"] = _check(find("benchmarks", name)(benchmark_dir, mark))
        _write_mark(benchmark_dir / "official.json", mark, records)
    log.info("%s: %s", name, ", ".join(f"{count:,} samples to {part}" for part, count in mark["counts"].items()))
    return mark


def fetch_part(config: Config, name: str, benchmark_dir: Path, part: str) -> dict[str, Any]:
    """Install an optional part of the data, such as `panoptic`, of a benchmark that is installed.

    Returns the content of `{part}.json`. Raises CliptexError like `fetch`, and if there is no such part.
    """
    from filelock import FileLock

    benchmark_dir = Path(benchmark_dir)
    source, variant = _checked_source(config, name, benchmark_dir), chosen_variant(config, name)
    rows = archives(name, variant, config.benchmark_data.archives, part)
    if part not in OPTIONAL or not rows:
        raise CliptexError(f"--part: {name} has no part {part!r}; leave the option out, or set another benchmark")
    if not (benchmark_dir / "official.json").exists():
        remedy = f"with your --config, run: cliptex fetch --benchmark {name}"
        raise CliptexError(f"{benchmark_dir}: the benchmark itself is not installed; {remedy}")
    (benchmark_dir / RECEIPTS).mkdir(exist_ok=True)
    with FileLock(benchmark_dir / RECEIPTS / "lock"):
        records = _install_all(config, name, rows, benchmark_dir)
        mark: dict[str, Any] = {"schema_version": 1, "source": source.source, "benchmark": name, "part": part}
        mark |= find("benchmarks", name)(benchmark_dir).prepare_part(part)
        _write_mark(benchmark_dir / f"{part}.json", mark, records)
    log.info("%s: %s installed", name, part)
    return mark


def _checked_source(config: Config, name: str, benchmark_dir: Path) -> BenchmarkSource:
    """The source of a benchmark's data. Raises CliptexError if they are rendered, or the user's folder is not there."""
    source = config.benchmark_source(name)
    if source.source == "miniature":
        problem = f"{name}'s data are rendered in this configuration"
        raise CliptexError(f"benchmark_data: {problem}; set benchmark_data.source: official")
    if (benchmark_dir / SEAL).exists():
        remedy = "move it away, or use another directory (snakemake --directory)"
        raise CliptexError(f"{benchmark_dir}: contains rendered data; {remedy}")
    if source.path and not Path(source.path).is_dir():
        raise CliptexError(f"benchmark_data.benchmarks.{name}.path: {source.path} is not a folder")
    return source


def _install_all(config: Config, name: str, rows: list[Archive], benchmark_dir: Path) -> list[dict[str, Any] | None]:
    source, keep = config.benchmark_source(name), config.benchmark_data.keep_archives
    install = _install_subset if source.source == "subset" else _install
    return [install(row, benchmark_dir, name, source.path, keep) for row in rows]


def _write_mark(path: Path, mark: dict[str, Any], records: list[dict[str, Any] | None]) -> None:
    mark["archives"] = [record for record in records if record]
    mark["terms"] = sorted({record["terms"] for record in mark["archives"]})
    write_json(path, mark | {"version": versions.FETCH})


def _check(data: Any) -> dict[str, int]:
    """Number of samples of each part, which `samples` compares with the official one. Reads some of the samples.
    Raises CliptexError also if an image is in both parts."""
    counts = {}
    data.check_apart()
    for part in data.parts:
        samples = data.samples(part)
        counts[part] = len(samples)
        step = max(1, len(samples) // NUM_CHECKED)
        for index in track(range(0, len(samples), step), f"check {data.name} {part}"):
            with working_on(f"{data.root}: sample {index} of {part}"):
                samples[index]
    return counts


def _install(archive: Archive, benchmark_dir: Path, name: str, path: str | None, keep: bool) -> dict[str, Any] | None:
    """Install one archive. Returns its record for `official.json`, or None if it is not needed."""
    location = locate(archive, benchmark_dir, path)
    if location.how == "superfluous":
        return None
    if location.how == "done":
        record = read_checked(receipt(benchmark_dir, archive), {"from": str})
        _clean(archive, benchmark_dir, record, keep)
        return record
    key = f"benchmark_data.benchmarks.{name}.path"
    if location.how == "missing":
        contents = " or ".join(", ".join(names) for names in archive.alternatives)
        problem = f"{key}: is not set; set it to a folder with {archive.file} or {contents}"
        if path:
            problem = f"{Path(path).absolute()}: contains neither {archive.file} nor {contents}"
        raise CliptexError(f"{problem}, which must be downloaded manually ({archive.terms})")
    record: dict[str, Any] = {"file": archive.file, "terms": archive.terms, "url": without_secrets(archive.url) or None}
    if location.how in ("tree", "in place"):
        record |= {"from": str(location.path.absolute()), "unpacked_by": "the user", "digest": None}
        if archive.kind == "file":
            record |= _checked(archive, location.path / location.names[0], key)
        if location.how == "tree":
            _link(benchmark_dir, location)
    elif archive.kind == "file":
        record |= _install_file(archive, benchmark_dir, location, key)
    else:
        record |= _unpack(archive, benchmark_dir, location, key)
    write_json(receipt(benchmark_dir, archive), record)
    _clean(archive, benchmark_dir, record, keep)
    return record


def _install_subset(archive: Archive, benchmark_dir: Path, name: str, path: str, keep: bool) -> dict[str, Any] | None:
    """Install the user's own files in place of what is in one archive, which has all images. Returns their record."""
    location = locate(archive, benchmark_dir, path)
    if location.how == "superfluous":
        return None
    if location.how == "done":
        return read_checked(receipt(benchmark_dir, archive), {"from": str})
    if location.how != "tree":
        contents = " or ".join(", ".join(names) for names in archive.alternatives)
        problem = f"contains no {contents}, which a subset needs in the official layout, unpacked"
        raise CliptexError(f"{Path(path).absolute()}: {problem} (benchmark_data.benchmarks.{name}.path)")
    _link(benchmark_dir, location)
    record = {"file": archive.file, "terms": archive.terms, "url": None, "from": str(location.path.absolute())}
    record |= {"unpacked_by": "the user", "digest": None}
    write_json(receipt(benchmark_dir, archive), record)
    return record


def _clean(archive: Archive, benchmark_dir: Path, record: dict[str, Any], keep: bool) -> None:
    """Delete what is no longer needed once the receipt exists."""
    receipt(benchmark_dir, archive, "begun").unlink(missing_ok=True)
    if record["from"] == DOWNLOAD and not keep:
        (paths.ARCHIVES / archive.file).unlink(missing_ok=True)


def _checked(archive: Archive, file: Path, key: str) -> dict[str, Any]:
    """Verify a file of the user against the published digest. Returns its size, and that digest, or the SHA-256 if none
    is known."""
    size = file.stat().st_size
    log.info("checking %s (%.1f GB)", file, size / 1e9)
    if archive.digest:
        check_digest(file, archive.digest, f"{key}: {file}", "copy it again, or move it away to have it downloaded")
    return {"digest": archive.digest or f"sha256:{digest_file(file, 'sha256')}", "bytes": size}


def _downloaded(archive: Archive, target: Path) -> dict[str, Any]:
    """Download an archive to a file. Returns its origin, digest and size."""
    remedy = "try again later; if a newer file was published, add it to your own table of archives (docs/data.md)"
    if target.is_file() and archive.digest:  # from an interrupted run, or from the user
        check_digest(target, archive.digest, str(target), "move it away to have it downloaded again")
    fetch_file(archive.url, target, "benchmark_data", archive.digest or None, remedy)
    digest = archive.digest or f"sha256:{digest_file(target, 'sha256')}"
    return {"from": DOWNLOAD, "digest": digest, "bytes": target.stat().st_size}


def _install_file(archive: Archive, benchmark_dir: Path, location: ArchiveLocation, key: str) -> dict[str, Any]:
    target = benchmark_dir / archive.into / archive.file
    _clear_links(benchmark_dir, archive)
    if location.how == "download":
        return _downloaded(archive, target)
    checked = _checked(archive, location.path, key)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(location.path.absolute())
    return {"from": str(location.path.absolute())} | checked


def _unpack(archive: Archive, benchmark_dir: Path, location: ArchiveLocation, key: str) -> dict[str, Any]:
    if location.how == "download":
        file = paths.ARCHIVES / archive.file
        record = _downloaded(archive, file)
    else:
        file = location.path
        record = {"from": str(file.absolute())} | _checked(archive, file, key)
    begun = receipt(benchmark_dir, archive, "begun")
    resumed = begun.exists()
    begun.touch()
    _clear_links(benchmark_dir, archive)
    log.info("unpacking %s", file)
    only = tuple(archive.only.split("|")) if archive.only else ()
    unpacked = unpack(file, archive.kind, benchmark_dir / archive.into, only, RESERVED, check_space=not resumed)
    os.sync()  # the files must be on the disk before the receipt is
    return record | {"files": unpacked.files, "unpacked_bytes": unpacked.bytes}


def _clear_links(benchmark_dir: Path, archive: Archive) -> None:
    """Delete links to the user's files from an earlier run, so that nothing is written through them."""
    for name in [archive.into, *(name for names in archive.alternatives for name in names)]:
        _own_folders(benchmark_dir, name)
        if name != "." and (benchmark_dir / name).is_symlink():
            (benchmark_dir / name).unlink()


def _own_folders(benchmark_dir: Path, name: str) -> None:
    """Replace links to the user's folders above a path by folders with links to what is in them, so that nothing is
    written into the user's: `annotations` may be one, and the panoptic annotations are to be in it."""
    for parent in reversed(Path(name).parents[:-1]):
        link = benchmark_dir / parent
        scratch = link.with_name(f".{link.name}.links")
        if scratch.is_dir() and not os.path.lexists(link):  # killed before the last line
            scratch.rename(link)
        if not link.is_symlink():
            continue
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        for entry in link.resolve().iterdir() if link.is_dir() else ():
            (scratch / entry.name).symlink_to(entry)
        link.unlink()
        scratch.rename(link)


def _link(benchmark_dir: Path, location: ArchiveLocation) -> None:
    """Link the user's unpacked data in the benchmark's folder."""
    for name in location.names:
        link = benchmark_dir / name
        if link.exists() and link.samefile(location.path / name):
            continue
        _own_folders(benchmark_dir, name)
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink():
            link.unlink()
        elif link.exists():
            raise CliptexError(f"{link}: exists, and so does {location.path / name}; move one of them away")
        link.symlink_to((location.path / name).absolute())


def _link_all(benchmark_dir: Path, name: str, path: str | None) -> dict[str, Any]:
    """Install a benchmark without known archives: link all of the user's folder, or use the data in `benchmark_dir`."""
    if path:
        names = sorted(entry.name for entry in Path(path).iterdir())
        _link(benchmark_dir, ArchiveLocation("tree", Path(path), tuple(names)))
    elif not any(entry.name not in RESERVED for entry in benchmark_dir.iterdir()):
        raise CliptexError(f"benchmark_data.benchmarks.{name}.path: is not set; set it to the folder with its data")
    return {"file": None, "terms": "not known here", "url": None, "from": str(Path(path or benchmark_dir).absolute())}
