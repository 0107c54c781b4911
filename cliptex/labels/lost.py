"""Find label files that are missing or truncated. Imports nothing heavy: the workflow runs it at every start."""

import json
from collections.abc import Iterable
from pathlib import Path

from cliptex.core.errors import CliptexError
from cliptex.core.files import require_file


def batches_to_redo(folders: Iterable[Path | str]) -> dict[Path, list[Path]]:
    """Batch file -> its label files that are lost, for the label stores in `folders`; intact batches are left out.

    Files that are missing or have another size are lost; a batch file that cannot be read is listed with itself. A
    missing batch file is listed if label files that the store's index.json attributes to it are missing, so that a loss
    is reported until it is repaired. Digests are checked by `index_labels`.
    """
    redo: dict[Path, list[Path]] = {}
    for folder in map(Path, folders):
        for batch in sorted(path for path in folder.glob("batch-*.json") if path.is_file()):
            try:
                records = json.loads(batch.read_text(encoding="utf-8"))["shards"]
                files = {folder / _name(item["file"]): item["bytes"] for item in records}
            except (ValueError, LookupError, TypeError, RecursionError):
                redo[batch] = [batch]
                continue
            if lost := [path for path, size in files.items() if not path.is_file() or path.stat().st_size != size]:
                redo[batch] = lost
        try:
            require_file(folder / "index.json")  # reading a pipe would wait for ever
            indexed = json.loads((folder / "index.json").read_text(encoding="utf-8"))["files"]
            files = [(folder / _name(item["batch"]), folder / _name(item["file"])) for item in indexed]
        except (CliptexError, OSError, ValueError, LookupError, TypeError, RecursionError):
            continue  # missing, or unreadable and so rewritten
        for batch, path in files:
            if not batch.exists() and not path.is_file():
                redo.setdefault(batch, []).append(path)
    return redo


def _name(text: str) -> str:
    if Path(text).name != text or not 0 < len(text.encode()) < 256:
        raise ValueError(f"{text[:80]!r} is not the name of a file")
    return text
