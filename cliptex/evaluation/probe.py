"""Probe frozen encoders on one benchmark: train the heads of its tasks, with the same budget for every model.

Reads   results/models/{model}/seed{seed}/ and resources/{benchmark}/ in its official layout.
Writes  results/probes/{benchmark}/{model}/seed{seed}/{head}.json, and next to it {head}.per_image.npz (see
        `cliptex.evaluation.per_image`), {head}.thumbnails.npz (see `cliptex.evaluation.thumbnails`) and {head}.npz.
Holds   hyper-parameters are chosen on a holdout of the training split, never on the evaluation split; every model
        has the same images, batches, initial weights of the heads and number of steps.

The .npz file has the first `probes.save_predictions` evaluation samples: `ids` [n], `image_{i}` (uint8 [H, W, 3] as in
the data set), and the arrays listed at the top of the task's file, cliptex/evaluation/probes/*.py.
"""

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from cliptex.benchmarks.base import Benchmark
from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.progress import track
from cliptex.core.seeds import seed_of
from cliptex.evaluation.job import Job
from cliptex.evaluation.probes import finished_heads
from cliptex.evaluation.probes.base import Data, Outcome, Run
from cliptex.evaluation.probes.evaluate import Subject, evaluate_head
from cliptex.evaluation.probes.feature_cache import FeatureCache
from cliptex.evaluation.probes.features import standardised_parts, unstandardised_parts
from cliptex.evaluation.probes.parts import Reader, features_of
from cliptex.evaluation.probes.tasks import probe_task, tasks_of
from cliptex.evaluation.protocols.base import PooledTask
from cliptex.evaluation.protocols.resolve import Entry, protocol_of
from cliptex.models.encoders import Encoder, load_encoders


def run(config: Config, job: Job) -> None:
    """Probe the models and baselines of a job; by default results go to `results/probes/{benchmark}`.
    The baselines "random" and "position" have the architecture of the job's first model, or of any exported model."""
    data = job.benchmark()
    sections = [task.section for task in tasks_of(job.name).values()]
    if len(sections) > 1 and any(issubclass(section, PooledTask) for section in sections):
        raise CliptexError(f"{job.name}: classification and dense tasks cannot be in one benchmark; split it in two")
    data.check_apart()
    protocol = protocol_of(job.name, config.probes.benchmarks.get(job.name, {}))
    folders = [_probe_seed(config, job, data, protocol, seed) for seed in job.seeds_of(config)]
    for folder in chain.from_iterable(folders):  # at the end of the job: a killed one loses its finished results
        finished_heads.remove(folder)


def _probe_seed(config: Config, job: Job, data: Benchmark, protocol: Entry, seed: int) -> list[Path]:
    """Probe the models of a seed; returns the folders of their results."""
    models, memory = job.models_of(config), config.probes.memory_gb * 1e9
    encoders = load_encoders(models, seed, job.models_dir)
    first = encoders[models[0]]
    run_, indices = prepare_run(config, job.name, data, protocol, seed)
    cache = FeatureCache(job.cache_dir, config.probes.cache_gb * 1e9)
    streams, training_readers = {}, {}
    for tasks in protocol.tasks_by_features:
        section = protocol.section(tasks[0])
        truths = {task: probe_task(task).truth(run_, first) for task in tasks}
        readers = tuple(Reader(data, part, indices[part], section, first, truths) for part in ("train", "eval"))
        training_readers |= dict.fromkeys(tasks, readers[0])
        streams[tuple(tasks)] = features_of(readers, encoders, cache, memory)
    settings = {
        "benchmark": job.name,
        "protocol": protocol.model_dump(mode="json", exclude_none=True),
        "holdout": config.probes.holdout,
        "seed": seed,
    }
    out = job.out or paths.RESULTS / "probes" / job.name
    for model, encoder in track(encoders.items(), f"probe {job.name}", total=len(encoders)):
        features_by_task: dict[str, Data] = {}
        seconds_features = 0.0
        for tasks, stream in streams.items():
            train, evaluated, features = next(stream)
            seconds_features += features.seconds
            section = protocol.section(tasks[0])
            sources = [features.train, features.eval]
            both = standardised_parts(section, encoder, sources, memory)
            plain = unstandardised_parts(section, encoder, sources)
            data_of_tasks = Data(train, evaluated, encoder.input_size(section.input.size_px), *both, plain)
            features_by_task |= dict.fromkeys(tasks, data_of_tasks)
        extra = {"seconds_features": seconds_features, "settings": settings}
        for head, tasks in protocol.heads.items():
            parts = features_by_task[tasks[0]].train, features_by_task[tasks[0]].eval

            def outcomes(task: str, head: str = head, by_task: dict[str, Data] = features_by_task) -> list[Outcome]:
                return probe_task(task).outcomes(run_, head, by_task[task])

            subject, folder = Subject(model, seed, encoder), out / model / f"seed{seed}"

            def depends_on(task: str, encoder: Encoder = encoder, by_task: dict[str, Data] = features_by_task) -> Any:
                truths = by_task[task].train.truths[task]
                return [training_readers[task].depends_on(encoder), finished_heads.digest(truths)]

            evaluate_head(run_, subject, head, tasks, parts, outcomes, extra, folder, depends_on)
    return [out / model / f"seed{seed}" for model in encoders]


def prepare_run(
    config: Config, name: str, data: Benchmark, protocol: Entry, seed: int
) -> tuple[Run, dict[str, list[int]]]:
    """The run of a benchmark, and the indices of the samples used, for the parts "train" and "eval"."""
    samples = data.samples("eval")
    indices = {
        "train": part_indices(len(data.samples("train")), protocol.max_train, seed),
        "eval": part_indices(len(samples), protocol.max_eval, None),
    }
    kept = [samples[index] for index in indices["eval"][: config.probes.save_predictions]]
    return Run(data, protocol, config.probes.holdout, seed_of(name, seed), kept), indices


def part_indices(count: int, limit: int | None, seed: int | None) -> list[int]:
    """Indices of the samples used: all, or `limit` of them, drawn with `seed`, or the first ones if `seed` is None."""
    if limit is None or limit >= count:
        return list(range(count))
    if seed is None:
        return list(range(limit))
    return np.sort(np.random.default_rng(seed).permutation(count)[:limit]).tolist()
