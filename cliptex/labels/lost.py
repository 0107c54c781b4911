"""Find label files that are missing or truncated. Imports nothing heavy: the workflow runs it at every start."""

import json
from collections.abc import Iterable
from pathlib import Path


def batches_to_redo(folders: Iterable[Path | str]) -> dict[Path, list[Path]]:
    """Batch file -> its label files that are lost, for the label stores in `folders`; intact batches are left out.

    Files that are missing or have another size are lost; a batch file that cannot be read is listed with itself. A
    missing batch file is listed if label files that the store's index.json attributes to it are missing, so that a loss
    is reported until it is repaired. Digests are checked by `index_labels`.
    """
    redo: dict[Path, list[Path]] = {}
    for folder in map(Path, folders):
        for batch in sorted(folder.glob("batch-*.json")):
            try:
                records = json.loads(batch.read_text(encoding="utf-8"))["shards"]
                files = {folder / item["file"]: item["bytes"] for item in records}
            except (ValueError, LookupError, TypeError):
                redo[batch] = [batch]
                continue
            if lost := [path for path, size in files.items() if not path.is_file() or path.stat().st_size != size]:
                redo[batch] = lost
        try:
            indexed = json.loads((folder / "index.json").read_text(encoding="utf-8"))["files"]
        except (OSError, ValueError, LookupError, TypeError):
            continue  # missing, or unreadable and so rewritten
        for item in indexed:
            batch, path = folder / item["batch"], folder / item["file"]
            if not batch.exists() and not path.is_file():
                redo.setdefault(batch, []).append(path)
    return redo
