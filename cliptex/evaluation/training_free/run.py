"""Evaluate frozen encoders on one benchmark without training anything: all tasks, models and seeds in one job.

Reads   results/models/{model}/seed{seed}/ and resources/{benchmark}/ in its official layout.
Writes  results/training_free/{benchmark}.json, and next to it {benchmark}.per_image.npz: `ids` [N], and for each task
        `{task}.rows` [R] (`plain/cliptex/seed0`: variant, model, seed) and arrays `{task}.{name}` [R, N, ...], listed
        at the top of the task's file; {benchmark}.thumbnails.npz, if a task has thumbnails, with arrays
        `{task}/{row}.{name}`; and {benchmark}.npz with the first `probes.save_predictions` images: `ids` [n],
        `image_{i}` uint8 [H, W, 3], `{task}.rows` and the arrays of the task's file.
Holds   nothing is trained or chosen; models with the same weights are evaluated once.
"""

import logging
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cliptex.benchmarks.reading import source
from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError, working_on
from cliptex.core.files import sha256_file
from cliptex.core.provenance import provenance
from cliptex.evaluation.job import Job
from cliptex.evaluation.per_image import check, stacked_rows, write_evaluation, write_per_image
from cliptex.evaluation.probes.base import Outcome
from cliptex.evaluation.protocols.resolve import TRAINING_FREE, TrainingFreeEntry, protocol_of
from cliptex.evaluation.results import Row, TrainingFreeResult
from cliptex.evaluation.thumbnails import thumbnails_path
from cliptex.evaluation.training_free.base import Evaluated, FrozenModel, TrainingFreeRun
from cliptex.evaluation.training_free.tasks import tasks_of
from cliptex.evaluation.zeroshot import load_zero_shot_model
from cliptex.models.encoders import Encoder, load_encoder

log = logging.getLogger("cliptex")


@torch.no_grad()  # inference_mode would make bf16 several times slower on a CPU
def run(config: Config, job: Job) -> None:
    """Evaluate every model and seed on a benchmark. The results file is `results/training_free/{benchmark}.json` by
    default."""
    data = job.benchmark()
    protocol = protocol_of(job.name, config.training_free.benchmarks.get(job.name, {}), evaluator=TRAINING_FREE)
    tasks = [tasks_of(job.name)[name] for name in protocol.tasks]
    models = load_frozen_models(config, job, with_position=not all(task.reads_text for task in tasks))
    results: dict[str, Evaluated] = {}
    rows: list[Row] = []
    for task in tasks:
        able = [model for model in models if model.zero_shot is not None or not task.reads_text]
        distinct = list({(model.name, model.sha256): model for model in reversed(able)}.values())[::-1]
        section = protocol.section(task.name)
        start = time.perf_counter()
        with working_on(f"{job.name}, {task.name}"):
            found = task.evaluate(
                TrainingFreeRun(data, section, distinct, protocol.max_eval, config.probes.save_predictions)
            )
        found = _of_all_seeds(found, able)
        seconds = (time.perf_counter() - start) / max(1, len(found.outcomes))
        rows += [_row(job.name, protocol, *outcome, seconds) for outcome in found.outcomes]
        results[task.name] = found
    _check_ids(job, results)
    _write(config, job, protocol, models, results, rows)


def load_frozen_models(config: Config, job: Job, with_position: bool) -> list[FrozenModel]:
    """The baselines and models of the job for every seed. with_position: also the baseline `position`, if the
    configuration has it. All baselines have the architecture of the first model."""
    names = job.models_of(config)
    if not names:
        raise CliptexError("models: there are none to evaluate; add at least one")
    baselines = [name for name in config.probes.baselines if with_position or name != "position"]
    return [
        _frozen_model(name, seed, job.models_dir / (names[0] if name in baselines else name) / f"seed{seed}")
        for name in [*baselines, *names]
        for seed in job.seeds_of(config)
    ]


def _frozen_model(name: str, seed: int, folder: Path) -> FrozenModel:
    """folder: of the exported model; for a baseline of one that has its architecture."""
    if name == "position":
        return FrozenModel(name, seed, load_encoder(name, reference=folder), None)
    model = load_zero_shot_model(name, seed, folder)
    return FrozenModel(name, seed, Encoder(model.model.visual, folder, model.sha256), model)


def _of_all_seeds(found: Evaluated, models: list[FrozenModel]) -> Evaluated:
    """The outcomes of models with different weights, for all models: a model that is not trained may have the same
    weights for every seed."""
    by_weights: dict[tuple[str, str], list[tuple[str, Outcome]]] = {}
    for variant, model, outcome in found.outcomes:
        by_weights.setdefault((model.name, model.sha256), []).append((variant, outcome))
    outcomes = [
        (variant, model, outcome) for model in models for variant, outcome in by_weights[model.name, model.sha256]
    ]
    return replace(found, outcomes=outcomes)


def _row(
    benchmark: str, protocol: TrainingFreeEntry, variant: str, model: FrozenModel, outcome: Outcome, seconds: float
) -> Row:
    check(outcome.task, outcome.per_image, outcome.metrics)
    log.info("%s %s %s %s: %s", benchmark, model.row, outcome.task, variant, outcome.metrics)
    return Row(
        task=outcome.task,
        model=model.name,
        seed=model.seed,
        head=variant,
        metrics=outcome.metrics,
        num_parameters=outcome.num_parameters,
        seconds=seconds,
        protocol=f"{protocol.protocol} ({protocol.digest}): {outcome.protocol}",
        protocol_name=protocol.protocol,
        protocol_digest=protocol.digest,
    )


def _check_ids(job: Job, results: dict[str, Evaluated]) -> None:
    """Raise CliptexError unless all tasks evaluated the same images."""
    first = next(iter(results.values())).ids
    for task, found in results.items():
        if found.ids != first:
            raise CliptexError(f"{job.name}: {task} was evaluated on other images than {next(iter(results))}")


def _write(
    config: Config,
    job: Job,
    protocol: TrainingFreeEntry,
    models: list[FrozenModel],
    results: dict[str, Evaluated],
    rows: list[Row],
) -> None:
    data, out = job.benchmark(), job.out or paths.RESULTS / "training_free" / f"{job.name}.json"
    ids = next(iter(results.values())).ids
    per_image, predictions, thumbnails = {}, {}, {}
    for task, found in results.items():
        predictions |= {f"{task}.{name}": values for name, values in found.truth.items()}
        for measure in dict.fromkeys(outcome.task for _, _, outcome in found.outcomes):
            own = [one for one in found.outcomes if one[2].task == measure]
            names = np.array([f"{variant}/{model.row}" for variant, model, _ in own])
            outcomes = [outcome for _, _, outcome in own]
            per_image[measure] = stacked_rows([outcome.per_image for outcome in outcomes]) | {"rows": names}
            if outcomes[0].predictions:
                saved = stacked_rows([outcome.predictions for outcome in outcomes]) | {"rows": names}
                predictions |= {f"{measure}.{name}": values for name, values in saved.items()}
            first = job.seeds_of(config)[0]  # the report shows images of the first seed
            small = {
                f"{measure}/{name}": one
                for name, (_, model, one) in zip(names, own, strict=True)
                if model.seed == first
            }
            thumbnails |= {name: one.thumbnails for name, one in small.items() if one.thumbnails}
    if thumbnails:
        write_per_image(thumbnails_path(out), ids, thumbnails)
        digest = {"thumbnails_sha256": sha256_file(thumbnails_path(out))}
        rows = [row.model_copy(update=digest) for row in rows]
    settings = {"benchmark": job.name, "protocol": protocol.model_dump(mode="json", exclude_none=True)}
    digests = {model.row: model.sha256 for model in models}
    result = TrainingFreeResult(
        schema_version=1,
        benchmark=job.name,
        source=source(job.folder),
        variant=data.variant,
        split=data.eval_split,
        num_train=0,
        num_eval=len(ids),
        class_names=next((list(one.class_names) for one in results.values() if one.class_names), data.class_names),
        chance={name: dict(levels) for found in results.values() for name, levels in found.chance.items()},
        settings=settings,
        details={task: dict(found.details) for task, found in results.items() if found.details},
        results=rows,
        provenance=provenance(settings | {"seeds": config.seeds}) | {"model_sha256": digests},
    )
    images = next((found.images for found in results.values() if found.images), [])
    write_evaluation(out, result, ids, per_image, images, predictions)
