"""Rolling checkpoints of a run, and the signals that ask it to stop.

Writes  step-{step}.pt in the folder it is given: the newest two, each on disk (fsync) before it has its name.
Holds   a checkpoint is continued by the configuration and the data that made it, or by nothing.
"""

import contextlib
import logging
import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch

from cliptex.core.errors import CliptexError
from cliptex.core.files import replacing

log = logging.getLogger("cliptex")
EXIT_STOPPED = 75
"""EX_TEMPFAIL of sysexits.h: not done, and worth trying again."""
SHOWN_DIFFERENCES = 3


class Stopped(SystemExit):
    """The run was asked to stop, saved its state and wrote no outputs. Ends the process with EXIT_STOPPED."""

    def __init__(self, step: int):
        super().__init__(EXIT_STOPPED)
        self.step = step


class StopRequest:
    """Whether SIGTERM or SIGUSR1 has come, which schedulers send before they take a machine away.

    A context, in which these signals no longer end the process. Only the main thread hears them.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name


class Checkpoints:
    """The checkpoints in `folder` of a run with these `settings`: all that decides its result, as JSON values."""

    def __init__(self, folder: Path, settings: dict[str, Any]):
        self.folder, self.settings = folder, settings

    def save(self, state: dict[str, Any]) -> None:
        """Write `state`, which has a `step`, and keep the newest two.

        Raises CliptexError when it cannot be written, e.g. on a full disk; those before it stay.
        """
        for left in self.folder.glob(".step-*"):  # by a kill in the middle of a save; as large as a checkpoint
            left.unlink(missing_ok=True)
        path = self._path(state["step"])
        try:
            with replacing(path) as scratch:
                torch.save({**state, "settings": self.settings}, scratch)
        except (OSError, RuntimeError) as error:  # torch's own writer says no more than that something failed
            raise CliptexError(
                f"{path}: cannot be written ({error}); make room, and the same command goes on from the one before"
            ) from error
        for old in sorted(self.folder.glob("step-*.pt"))[:-2]:
            old.unlink(missing_ok=True)

    def latest(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be read; one that cannot is named in the log and left out.

        Raises CliptexError when it is of other settings, naming those that differ with both values.
        """
        for path in sorted(self.folder.glob("step-*.pt"), reverse=True):
            try:
                saved = torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # a truncated zip, a missing record, a foreign pickle
                log.warning("%s: unreadable checkpoint left out (%s)", path, error)
                continue
            return self._own(path, saved)
        return None

    def load(self, step: int) -> dict[str, Any]:
        """The checkpoint of a step, for a process that is told which by another."""
        path = self._path(step)
        try:
            return self._own(path, torch.load(path, map_location="cpu", weights_only=True))
        except FileNotFoundError as error:
            raise CliptexError(f"{path}: no such file; all processes must see the same folder") from error

    def remove(self) -> None:
        """Remove the folder with what a run writes there; whatever else lies in it stays, and the folder then too."""
        for pattern in ("step-*.pt", ".step-*", "metrics.jsonl", "not-finite-step-*.json"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.pt"

    def _own(self, path: Path, saved: dict[str, Any]) -> dict[str, Any]:
        made_with = saved.get("settings", {}) if isinstance(saved, dict) else {}
        found = differences(made_with, self.settings)
        if found:
            more = f", and {len(found) - SHOWN_DIFFERENCES} more" if len(found) > SHOWN_DIFFERENCES else ""
            raise CliptexError(
                f"{path}: made with {'; '.join(found[:SHOWN_DIFFERENCES])}{more}. Finish that run with what it began"
                f" with, or begin anew: rm -r {self.folder}"
            )
        return saved


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """Where two JSON values differ: "a.b = 1, which now is 2" for each."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*new, *(name for name in old if name not in new)]
        return [
            line
            for name in keys
            for line in differences(old.get(name, "absent"), new.get(name, "absent"), f"{key}.{name}".lstrip("."))
        ]
    return [] if old == new else [f"{key} = {_shown(old)}, which now is {_shown(new)}"]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
