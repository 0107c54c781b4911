"""Optional metric loggers: TensorBoard, Weights & Biases. Each is imported only if enabled."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any, Self

from cliptex.core.errors import CliptexError

log = logging.getLogger("cliptex")
WANDB_PROJECT = "cliptex"


class Loggers:
    """The loggers in `names` for the run `run_name`, continuing after `step`. A context manager, which closes them.

    folder: TensorBoard's event files are written to `tensorboard/` in it, those of Weights & Biases to `wandb/`;
    `wandb_offline` writes them without sending. config: the run's configuration, for Weights & Biases. Its own
    environment sets account and project (WANDB_PROJECT).
    Raises CliptexError if wandb is enabled but not installed; without tensorboard, a default, there is only a warning.
    """

    def __init__(self, names: tuple[str, ...], folder: Path, run_name: str, step: int, config: dict[str, Any]):
        self._tensorboard = self._wandb = None
        if "tensorboard" in names:
            self._tensorboard = _tensorboard(folder / "tensorboard", step)
        if "wandb" in names or "wandb_offline" in names:
            self._wandb = _wandb(folder, run_name, config, offline="wandb_offline" in names)

    def write(self, line: dict[str, float]) -> None:
        """Log one line of metrics.jsonl."""
        values = {key: value for key, value in line.items() if key != "step"}
        if self._tensorboard:
            for key, value in values.items():
                self._tensorboard.add_scalar(key, value, line["step"])
        if self._wandb:
            self._wandb.log(values, step=line["step"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish(exit_code=0 if error[0] is None else 1)


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        log.warning(
            "train.trackers: TensorBoard is not installed (%s), nothing is logged to it; run: pip install tensorboard",
            error,
        )
        return None
    if not step:
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier run
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


def _wandb(folder: Path, run_name: str, config: dict[str, Any], offline: bool) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise CliptexError("train.trackers: wandb is not installed; run: pip install 'cliptex[wandb]'") from error
    folder.mkdir(parents=True, exist_ok=True)
    # a fixed id, so that a resumed run is the same one; offline runs are joined by `wandb sync --append`
    return wandb.init(
        project=os.environ.get("WANDB_PROJECT", WANDB_PROJECT),
        name=run_name,
        id=run_name.replace("/", "-"),
        dir=str(folder),
        config=config,
        **({"mode": "offline"} if offline else {"resume": "allow"}),
    )
