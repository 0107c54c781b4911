"""What of a label store has been lost since it was written. Imports nothing heavy: the workflow asks at every start."""

import json
from collections.abc import Iterable
from pathlib import Path


def batches_to_redo(folders: Iterable[Path | str]) -> dict[Path, list[Path]]:
    """Batch files of the label stores in `folders` that no longer tell the truth, each with what it lacks.

    A batch file names the label files that its job wrote. It is in the result with those that are missing or of
    another size, or with itself where it cannot be read. Looks at sizes only; digests are checked by `index_labels`.
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
    return redo
