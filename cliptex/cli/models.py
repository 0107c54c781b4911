"""Commands that train models, and use or export trained ones."""

import sys
from contextlib import chdir
from pathlib import Path
from typing import Annotated

import typer

from cliptex.cli import common
from cliptex.cli.common import DEFAULT, ConfigFiles, Count, Index, Model, Seed, echo, load_config, require_model
from cliptex.cluster import gpu
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.plugins import find


def fetch_student(config_files: ConfigFiles = DEFAULT, model: Annotated[str | None, typer.Option()] = None) -> None:
    """Download the published weights that training starts from, if student.pretrained is a tag.

    Args:
        model: A model with `pretrained`; downloads its weights instead.
    """
    from cliptex.models import clip

    config = load_config(config_files)
    if model is None:
        clip.fetch(config.student, paths.STUDENT)
        return
    require_model(config, model)
    clip.fetch(config.student_of(model), paths.released(model))


def train(
    context: typer.Context,
    model: Model,
    config_files: ConfigFiles = DEFAULT,
    seed: Seed = 0,
    workers: Annotated[int | None, typer.Option(min=0)] = None,
    nodes: Count = 1,
    gpus: Index = 1,
    same_as_seed: Annotated[int | None, typer.Option(min=0)] = None,
) -> None:
    """Train a model, or resume its training, and export it for open_clip. Exit code 75: stopped, state saved.

    Args:
        workers: Processes that decode; default: --threads on a GPU, none on a CPU.
        nodes: Nodes of the SLURM job to train on, by srun and torchrun.
        gpus: GPUs on all nodes together, one process each; 0: all visible GPUs.
        same_as_seed: Copy the export of this seed, for a model that is not trained and the same for every seed.
    """
    config = load_config(config_files)
    if same_as_seed is not None:
        from cliptex.training.start import copy_untrained

        require_model(config, model)
        copy_untrained(config, model, seed, same_as_seed)
        return
    if model in config.models and config.models[model].interpolate is not None:
        raise CliptexError(f"models.{model}: is interpolated, not trained; run: cliptex interpolate --model {model}")
    if nodes == 1:
        for lock in gpu.take(gpus):
            context.call_on_close(lock.close)
    if (nodes, gpus) != (1, 1):
        from cliptex.cluster.launch import launch

        with chdir(common.started_in):  # the processes start with the same --directory
            launch(sys.argv[1:], nodes, gpus, context.obj)
    from cliptex.training.run import train

    train(config, model, seed, workers=workers)


def interpolate(model: str, config_files: ConfigFiles = DEFAULT, seed: Seed = 0) -> None:
    """Make a model from the weights of two others, without training.

    Args:
        model: Name of an entry in `models` that has `interpolate`.
    """
    from cliptex.models.interpolate import interpolate

    interpolate(load_config(config_files), model, seed)


def predict(
    images: Annotated[list[Path], typer.Argument()],
    model: Path,
    out: Path = Path("predictions.png"),
    config_files: ConfigFiles = DEFAULT,
) -> None:
    """Draw images next to the predictions of a model's heads: segmentation, depth, normals.

    Tasks of your own are only used if a configuration of --config names them: a model's files may not import modules.

    Args:
        images: Images to draw, one per row.
        model: Folder of a trained model that has its heads.
        out: File for the sheet, a .png.
    """
    from cliptex.models.inference import TrainedModel
    from cliptex.models.predict import draw_predictions

    if config_files:
        for store in load_config(config_files).label_stores.values():
            find("tasks", store.task)
    classes_by_store = draw_predictions(TrainedModel(model), images, out)
    lines = [f"{store}: {', '.join(classes)}" for store, classes in classes_by_store.items()]
    echo("\n".join([*lines, f"sheet: {out}"]))


def export(
    model: Model, out: Path, config_files: ConfigFiles = DEFAULT, seed: Seed = 0, heads: bool = True, licence: str = ""
) -> None:
    """Copy a trained model to a folder that can be published: open_clip's files and a model card.

    Args:
        out: Folder for the exported model; other files in it are kept.
        heads: Whether to include the heads.
        licence: Licence for the model card, as the Hugging Face hub writes it.
    """
    from cliptex.report.model_card import export_model

    export_model(load_config(config_files), model, seed, out, heads=heads, licence=licence)
    echo(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
