"""What of a label store has been lost since it was written. Imports nothing heavy: the workflow asks at every start."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def batches_to_redo(folders: Iterable[Path | str]) -> dict[Path, list[Path]]:
    """Batch files of the label stores in `folders` that no longer tell the truth, each with what it lacks.

    A batch file names the label files that its job wrote. It is in the result with those that are missing or of
    another size, or with itself where it cannot be read. One that is gone itself is in the result where the store's
    index.json lists label files of it that are missing: so a loss is not forgotten until it is made good. Looks at
    sizes only; digests are checked by `index_labels`.
    """
    redo: dict[Path, list[Path]] = {}
    for folder in map(Path, folders):
        for batch in sorted(folder.glob("batch-*.json")):
            try:
                files = {folder / item["file"]: item["bytes"] for item in json.loads(batch.read_text())["shards"]}
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
    """What the store's index lists; nothing without one, or with one that cannot be read and will be made again."""
    try:
        return json.loads((folder / "index.json").read_text())["files"]
    except (OSError, ValueError, LookupError, TypeError):
        return []
