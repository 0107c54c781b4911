"""Rolling checkpoints of a run, its fingerprint, and graceful stop on SIGTERM and SIGUSR1.

Writes  step-{step}.pt, of which the newest two are kept; each is renamed into place after fsync.
Holds   a run resumes only from a checkpoint with the same fingerprint (configuration and data).
"""

import contextlib
import logging
import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_checked, replacing, require_file, sha256_json
from cliptex.data.shard_index import read_index
from cliptex.experts.tensors import refused, require_bounded
from cliptex.labels.store import read_label_index
from cliptex.versions import TRAIN

log = logging.getLogger("cliptex")
EXIT_STOPPED = 75
"""EX_TEMPFAIL of sysexits.h: not finished, try again."""
SHOWN_DIFFERENCES = 3
EXCLUDED = {"log_every", "checkpoint_every", "trackers", "watch", "compile"}
"""Keys of `train` that may change when a run is resumed."""


class Stopped(SystemExit):
    """The run was stopped by a signal: its state is saved, no outputs are written. Exits with EXIT_STOPPED."""

    def __init__(self, step: int):
        super().__init__(EXIT_STOPPED)
        self.step = step


class StopRequest:
    """Records SIGTERM and SIGUSR1, which schedulers send before they end a job.

    A context manager, within which these signals do not end the process. Without effect outside the main thread, which
    alone can handle signals.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._record) for number in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name


class Checkpoints:
    """The checkpoints of a run in `folder`.

    fingerprint: JSON values of everything that determines the run's result; stored in the checkpoint as `settings`.
    """

    def __init__(self, folder: Path, fingerprint: dict[str, Any]):
        self.folder, self.fingerprint = folder, fingerprint

    def save(self, state: dict[str, Any]) -> None:
        """Write `state`, which includes its `step`, and delete all but the newest two checkpoints.

        Raises CliptexError if it cannot be written, e.g. because the disk is full; earlier checkpoints are kept.
        """
        path = self._path(state["step"])
        try:
            with replacing(path) as scratch:
                torch.save({**state, "settings": self.fingerprint}, scratch)
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError
            raise CliptexError(
                f"{path}: cannot be written ({error}); make room, then run the same command again, which resumes from"
                " the previous checkpoint"
            ) from error
        for old in sorted(self.folder.glob("step-*.pt"))[:-2]:
            old.unlink(missing_ok=True)

    def latest(self) -> dict[str, Any] | None:
        """Load the newest readable checkpoint; unreadable ones are skipped with a warning. None if there is none.

        Raises CliptexError if its fingerprint differs, with the keys and both values.
        """
        for path in sorted(self.folder.glob("step-*.pt"), reverse=True):
            require_file(path)  # otherwise it may be good, and must not be skipped
            try:
                require_bounded(path)
                state = torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # a truncated zip, a missing record, a pickle of other objects
                reason = error if isinstance(error, CliptexError) else refused(error)
                log.warning("%s: unreadable checkpoint skipped (%s)", path, reason)
                continue
            return self._checked(path, state)
        return None

    def load(self, step: int) -> dict[str, Any]:
        """Load the checkpoint of a given step (other ranks get the step from rank 0)."""
        path = self._path(step)
        try:
            require_file(path, "all processes need the same working directory")
            require_bounded(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
        except CliptexError:
            raise
        except Exception as error:
            raise CliptexError(f"{path}: {refused(error)}") from error
        return self._checked(path, state)

    def remove(self) -> None:
        """Delete the run's files in the folder, and the folder unless it has other files."""
        for pattern in ("step-*.pt", ".step-*", "metrics.jsonl", "not-finite-step-*.json"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.pt"

    def _checked(self, path: Path, state: dict[str, Any]) -> dict[str, Any]:
        fingerprint = state.get("settings", {}) if isinstance(state, dict) else {}
        changes = differences(fingerprint, self.fingerprint)
        if changes:
            more = f", and {len(changes) - SHOWN_DIFFERENCES} more" if len(changes) > SHOWN_DIFFERENCES else ""
            raise CliptexError(
                f"{path}: made with {'; '.join(changes[:SHOWN_DIFFERENCES])}{more}. Undo these changes, or start over:"
                f" mv {self.folder} {self.folder}.old"
            )
        return state


def fingerprint(config: Config, name: str, seed: int, precision: str) -> dict[str, Any]:
    """The configuration of a run, and digests of its data and of the model that it starts from, as JSON values.

    Raises CliptexError if a label store was not made with this configuration.
    """
    model = config.models[name]
    shards = [entry["sha256"] for entry in read_index(paths.SHARD_INDEX)["shards"]]
    init = paths.model(model.init, seed) / "train.json" if model.init else None
    start = read_checked(init, dict) if init is not None and init.exists() else None
    return {
        "version": TRAIN,
        "seed": seed,
        "precision": precision,
        "models": {name: model.model_dump(mode="json")},
        "train": config.train.model_dump(mode="json", exclude=EXCLUDED),
        "student": config.student.model_dump(mode="json"),
        "label_stores": {
            store: {"index_sha256": sha256_json(read_label_index(config, store, paths.labels(store) / "index.json"))}
            for store in model.tasks
        },
        "shards": {"number": len(shards), "sha256": sha256_json(shards)},
        "init": {"model_sha256": start.get("model_sha256")} if start is not None else {},
    }


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """The differences between two JSON values, each as "a.b = 1, now 2"."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*new, *(name for name in old if name not in new)]
        return [
            line
            for name in keys
            for line in differences(old.get(name, "absent"), new.get(name, "absent"), f"{key}.{name}".lstrip("."))
        ]
    return [] if old == new else [f"{key} = {_shortened(old)}, now {_shortened(new)}"]


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
