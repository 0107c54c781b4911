"""Find label files that are missing or truncated. Imports nothing heavy: the workflow runs it at every start."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def batches_to_redo(folders: Iterable[Path | str]) -> dict[Path, list[Path]]:
    """Batch file -> its label files that are lost, for the label stores in `folders`; intact batches are left out.

    A batch file names the label files that its job wrote. Files that are missing or have another size are lost; a batch
    file that cannot be read is listed with itself. A missing batch file is listed if label files that the store's
    index.json attributes to it are missing, so that a loss is reported until it is repaired. Compares sizes only;
    digests are checked by `index_labels`.
    """
    redo: dict[Path, list[Path]] = {}
    for folder in map(Path, folders):
        for batch in sorted(folder.glob("batch-*.json")):
            try:
                files = {
                    folder / item["file"]: item["bytes"]
                    for item in json.loads(batch.read_text(encoding="utf-8"))["shards"]
                }
            except (ValueError, LookupError, TypeError):
                redo[batch] = [batch]
                continue
            if lost := [path for path, size in files.items() if not path.is_file() or path.stat().st_size != size]:
                redo[batch] = lost
        for item in _indexed(folder):
            batch, path = folder / item["batch"], folder / item["file"]
            if not batch.exists() and not path.is_file():
                redo.setdefault(batch, []).append(path)
    return redo


def _indexed(folder: Path) -> list[dict[str, Any]]:
    """`files` of the store's index.json; empty if it is missing, or unreadable and so will be rewritten."""
    try:
        return json.loads((folder / "index.json").read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, LookupError, TypeError):
        return []
