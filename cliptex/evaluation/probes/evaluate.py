"""Train and evaluate one head in all its tasks, and write its result files. Used for frozen and fine-tuned encoders."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cliptex.benchmarks.base import Benchmark
from cliptex.benchmarks.reading import source
from cliptex.core.errors import CliptexError, working_on
from cliptex.core.files import sha256_file
from cliptex.core.provenance import provenance
from cliptex.evaluation.metrics.base import Arrays
from cliptex.evaluation.per_image import check, num_images, write_evaluation, write_per_image
from cliptex.evaluation.probes.base import Outcome, Run
from cliptex.evaluation.probes.finished_heads import keeping
from cliptex.evaluation.probes.parts import Part
from cliptex.evaluation.probes.training import NotFinite
from cliptex.evaluation.protocols.base import DenseTask, Neighbours, ProbeSection
from cliptex.evaluation.protocols.resolve import Entry
from cliptex.evaluation.results import ProbeResult, Row
from cliptex.evaluation.thumbnails import thumbnails_path
from cliptex.experts.precision import frozen_precision
from cliptex.models.encoders import Encoder

log = logging.getLogger("cliptex")


@dataclass(frozen=True)
class Subject:
    """The encoder whose features a head reads. frozen: whether its weights stay fixed."""

    model: str
    seed: int
    encoder: Encoder
    frozen: bool = True


def evaluate_head(
    run: Run,
    subject: Subject,
    head: str,
    tasks: Sequence[str],
    parts: tuple[Part, Part],
    outcomes_of: Callable[[str], list[Outcome]],
    extra: Mapping[str, Any],
    folder: Path,
    depends_on: Callable[[str], Any],
) -> None:
    """Train and evaluate one head in all its tasks, and write its files to `folder`.

    parts: training and evaluation. outcomes_of: task -> outcomes. extra: further keys of the JSON file, among them
    `settings`. depends_on: task -> all that its training features and ground truth depend on, as JSON. Finished
    trainings are kept in `folder` (`cliptex.evaluation.probes.finished_heads`).
    """
    protocol, data, encoder, (train, evaluated) = run.protocol, run.benchmark, subject.encoder, parts
    rows, predictions, per_image, thumbnails = [], {}, {}, {}
    for task in tasks:
        untrained = isinstance(protocol.section(task).heads[head], Neighbours)
        input_text = described(protocol.section(task), encoder, subject.frozen, not untrained)
        start = time.perf_counter()
        where = f"{data.name}, {subject.model}/seed{subject.seed}, {head}"
        try:
            kept = _dependencies(run, subject, head, task, extra, depends_on(task))
            with working_on(f"{where}, {task}"), keeping(folder, kept) as keeper:
                outcomes = outcomes_of(task)
        except NotFinite as error:
            raise CliptexError(f"{where}: {error}") from error
        seconds = (time.perf_counter() - start + keeper.seconds) / len(outcomes)
        for outcome in outcomes:
            check(outcome.task, outcome.per_image, outcome.metrics)
            rows.append(
                Row(
                    task=outcome.task,
                    model=subject.model,
                    seed=subject.seed,
                    head=head,
                    metrics=outcome.metrics,
                    num_parameters=outcome.num_parameters,
                    seconds=seconds,
                    protocol=f"{protocol.protocol} ({protocol.digest}): {input_text}; {outcome.protocol}",
                    protocol_name=protocol.protocol,
                    protocol_digest=protocol.digest,
                    hyperparameters=outcome.hyperparameters,
                    **({} if subject.frozen else {"frozen": False}),
                    **({"family": "no_head"} if untrained else {}),
                )
            )
            predictions |= outcome.predictions
            per_image[outcome.task] = outcome.per_image
            thumbnails |= {outcome.task: outcome.thumbnails} if outcome.thumbnails else {}
            shown = (f"{name} {value:.2f}" for name, value in outcome.metrics.items() if value is not None)
            log.info("%s %s %s %s: %s", data.name, subject.model, head, outcome.task, " ".join(shown))
    _check_counts(data, protocol, train, evaluated, per_image)
    digests = {f"{subject.model}/seed{subject.seed}": encoder.sha256}
    result = ProbeResult(
        schema_version=1,
        benchmark=data.name,
        source=source(data.root),
        variant=data.variant,
        split=data.eval_split,
        num_train=len(train.ids),
        num_eval=len(evaluated.ids),
        class_names=data.class_names,
        input={"interpolation": encoder.interpolation}
        | {task: _input_of(protocol.section(task), encoder) for task in tasks},
        results=rows,
        provenance=provenance(extra["settings"]) | {"model_sha256": digests},
        **extra,
    )
    path = folder / f"{head}.json"
    if thumbnails:
        write_per_image(thumbnails_path(path), evaluated.ids, thumbnails)
        for row in rows:
            row.thumbnails_sha256 = sha256_file(thumbnails_path(path))
    images = _images(run.kept, evaluated, protocol.section(tasks[0]))
    write_evaluation(path, result, evaluated.ids, per_image, images, predictions)


def _dependencies(
    run: Run, subject: Subject, head: str, task: str, extra: Mapping[str, Any], depends_on: Any
) -> dict[str, Any]:
    """All that the training of a head depends on, but for its candidate, seed and views."""
    section = run.protocol.section(task).model_dump(mode="json")
    return {
        "data": depends_on,
        "model": [subject.model, subject.seed, subject.frozen],
        "task": [task, head, section["heads"].pop(head)],
        "section": {name: value for name, value in section.items() if name != "heads"},
        "settings": [extra["settings"][name] for name in ("fine_tuning",) if name in extra["settings"]],
        "holdout": [run.holdout, run.seed],
        "classes": list(run.benchmark.class_names),
    }


def _check_counts(
    data: Benchmark, protocol: Entry, train: Part, evaluated: Part, per_image: Mapping[str, Arrays]
) -> None:
    """Raise CliptexError if the number of images differs from that of the data set or the protocol's limit."""
    for part, used, limit in (("train", train, protocol.max_train), ("eval", evaluated, protocol.max_eval)):
        expected = data.expected(part)
        if expected is not None and len(used.ids) != min(expected, limit or expected):
            raise CliptexError(
                f"{data.name}: {len(used.ids):,} images to {part} were used, it has {expected:,}; "
                f"restore the data, or set max_{part} in the benchmark's entry"
            )
    for task, arrays in per_image.items():
        if (count := num_images(arrays)) != len(evaluated.ids):
            raise CliptexError(
                f"{data.name}: {task} was evaluated on {count:,} of {len(evaluated.ids):,} images; please report this"
            )


def _input_of(section: ProbeSection, encoder: Encoder) -> dict[str, Any]:
    size = encoder.input_size(section.input.size_px)
    grid = {"grid": list(encoder.map_shape(size)[1:])} if isinstance(section, DenseTask) else {}
    return {"size_px": list(size)} | grid


def described(section: ProbeSection, encoder: Encoder, frozen: bool, standardised: bool = True) -> str:
    """The input of a head in words, for the key `protocol` of every row.
    standardised: whether the head reads features as `features.standardise` says; else as the encoder computes them."""
    features, views = section.features, section.augment.views
    if isinstance(section, DenseTask):
        layers = {"last": "the last block", "quarters": "the blocks after each quarter"}
        which = layers.get(features.layers) if isinstance(features.layers, str) else f"blocks {list(features.layers)}"
        tokens = f"patch tokens of {which}" + (" after the final normalisation" if features.norm else ", raw")
        tokens += ", class token beside each" if features.cls else ""
        images = {"squash": "the squashed image", "crop": "the image's centre"}
        image = images.get(section.input.fit, "windows that slide over the image")
    else:
        tokens = {
            "pooled": "pooled feature before the projection",
            "embedding": "embedding after the projection",
            "tokens": f"class tokens of the last {features.blocks} blocks and mean patch token",
        }[features.point]
        image = "the resized and centre-cropped image"
    text = f"{'frozen ' if frozen else ''}{tokens}, of {image}"
    text += ", standardised a channel over the training split" if standardised and features.standardise else ""
    text += f"; {views} augmented views of each training image" if views else "; no augmentation"
    if not frozen:
        return text
    precision = frozen_precision(features.encoder_precision, encoder.input_size(section.input.size_px))
    text += f"; encoder in {precision}" if precision != "fp32" else ""
    return text + (f"; features kept as {features.precision}" if features.precision != "fp32" else "")


def _images(kept: Sequence[Mapping[str, Any]], evaluated: Part, section: ProbeSection) -> list[np.ndarray]:
    """The evaluated region of the kept samples' images."""
    if isinstance(section, DenseTask) and section.input.fit == "crop":
        views = evaluated.views[: len(kept)]
        return [sample["image"][view.slices()] for sample, view in zip(kept, views, strict=True)]
    return [sample["image"] for sample in kept]
