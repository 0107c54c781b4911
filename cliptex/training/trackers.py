"""Where the lines of metrics.jsonl go besides, while a run goes on: TensorBoard, Weights & Biases.

Both are imported only when asked for.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

from cliptex.core.errors import CliptexError

log = logging.getLogger("cliptex")
WANDB_PROJECT = "cliptex"


class Trackers:
    """Those named in `names`, for the run `name`, going on after line `step`; a context, as they have to be closed.

    folder: TensorBoard's event files go to `tensorboard/` in it, those of Weights & Biases to `wandb/`; `wandb_offline`
    writes them and sends nothing. Which account and project says Weights & Biases' own environment (WANDB_PROJECT).
    Raises CliptexError when wandb is asked for and not installed; without tensorboard, a default, there is a warning.
    """

    def __init__(self, names: tuple[str, ...], folder: Path, name: str, step: int, settings: dict[str, Any]):
        self._board = self._wandb = None
        if "tensorboard" in names:
            self._board = _tensorboard(folder / "tensorboard", step)
        if "wandb" in names or "wandb_offline" in names:
            self._wandb = _wandb(folder, name, settings, offline="wandb_offline" in names)

    def write(self, line: dict[str, float]) -> None:
        """One line of metrics.jsonl."""
        values = {key: value for key, value in line.items() if key != "step"}
        for key, value in values.items() if self._board else ():
            self._board.add_scalar(key, value, line["step"])
        if self._wandb:
            self._wandb.log(values, step=line["step"])

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, *error: object) -> None:
        if self._board:
            self._board.close()
        if self._wandb:
            self._wandb.finish(exit_code=0 if error[0] is None else 1)


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        log.warning(
            "train.trackers: TensorBoard is not installed (%s), so it gets nothing; pip install tensorboard", error
        )
        return None
    if not step:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that began anew
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


def _wandb(folder: Path, name: str, settings: dict[str, Any], offline: bool) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise CliptexError("train.trackers: wandb is not installed; pip install 'cliptex[wandb]'") from error
    import os

    folder.mkdir(parents=True, exist_ok=True)
    project = os.environ.get("WANDB_PROJECT", WANDB_PROJECT)
    # the same id after a restart, so that it is one run; offline that is for `wandb sync --append` to do
    how = {"mode": "offline"} if offline else {"resume": "allow"}
    return wandb.init(project=project, name=name, id=name.replace("/", "-"), dir=str(folder), config=settings, **how)
