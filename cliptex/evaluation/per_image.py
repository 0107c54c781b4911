"""Per-image parts of a main metric, from which it can be computed for any weighting of the images.

Reads, writes  `results/probes/{benchmark}/{model}/seed{seed}/{head}.per_image.npz` next to the probe's JSON, and
               `results/zeroshot/{benchmark}.per_image.npz` and `results/training_free/{benchmark}.per_image.npz` for
               all models of a benchmark.
Holds          with all weights equal to one the metric is that in the JSON; otherwise the file is not written.

The files have `ids` [N], and arrays named `{task}.{name}`. The top of a probe task's file,
cliptex/evaluation/probes/*.py, lists its arrays (K is the number of classes), and so does that of a task without
training, cliptex/evaluation/training_free/*.py; there the arrays have a first axis for the names in `{task}.rows`
(`plain/cliptex/seed0`). The others:
    zero_shot_classification  `top1`, `top5` bool [R, N] for the R names in `rows` (`cliptex/seed0`)
    image_to_text_retrieval, text_to_image_retrieval
                              `queries`: number of queries of an image (the image itself, or its captions), and `R@1`,
                              `R@5`, `R@10`: how many of them are successful, int32 [R, N]; weights apply to queries,
                              never to the items that are searched
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cliptex.core.errors import CliptexError
from cliptex.core.files import read_error, replacing, require_file, sha256_file
from cliptex.core.npz import read_npz
from cliptex.evaluation.measures import measure
from cliptex.evaluation.metrics.base import Arrays
from cliptex.evaluation.results import Result, write_result


@dataclass(frozen=True)
class PerImage:
    """Content of a file. rows: for zero-shot, the models and seeds along the first axis of the arrays. rows_of: the
    same by task, if each has its own."""

    ids: np.ndarray
    tasks: dict[str, Arrays]
    rows: tuple[str, ...] = ()
    rows_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def has(self, task: str, row: str | None = None) -> bool:
        """Whether it has a task's arrays; for a file with rows also of that row."""
        return task in self.tasks and (row is None or row in self.rows_of.get(task, self.rows))

    def of(self, task: str, row: str | None = None) -> Arrays:
        """A task's arrays. row: in a file with rows, one of them, e.g. `cliptex/seed0`."""
        arrays, rows = self.tasks[task], self.rows_of.get(task, self.rows)
        return arrays if row is None else {name: values[rows.index(row)] for name, values in arrays.items()}


def per_image_path(path: Path) -> Path:
    """`linear.json` -> `linear.per_image.npz`."""
    return path.with_name(f"{path.stem}.per_image.npz")


def write_per_image(path: Path, ids: Sequence[str], tasks: Mapping[str, Arrays], rows: Sequence[str] = ()) -> None:
    """Write a file; see the head of this module for the arrays."""
    named = {f"{task}.{name}": values for task, arrays in tasks.items() for name, values in arrays.items()}
    if rows:
        named["rows"] = np.array(rows)
    with replacing(path) as scratch:
        np.savez_compressed(scratch, ids=np.array(ids), **named)


def write_predictions(
    path: Path, ids: Sequence[str], images: Sequence[np.ndarray], predictions: Mapping[str, np.ndarray]
) -> None:
    """Save the first evaluation samples: `ids` [n], `image_{i}` uint8 [H, W, 3], and the arrays of `predictions`."""
    numbered = {f"image_{index}": image for index, image in enumerate(images)}
    with replacing(path) as scratch:
        np.savez_compressed(scratch, ids=np.array(ids), **numbered, **predictions)


def write_evaluation(
    path: Path,
    result: Result,
    ids: Sequence[str],
    tasks: Mapping[str, Arrays],
    images: Sequence[np.ndarray],
    predictions: Mapping[str, np.ndarray],
    rows: Sequence[str] = (),
) -> None:
    """Write a results file and, first, what is next to it: the first predictions if there are images of them, and the
    per-image parts, whose digest goes into the rows."""
    if images:
        write_predictions(path.with_suffix(".npz"), ids[: len(images)], images, predictions)
    write_per_image(per_image_path(path), ids, tasks, rows)
    digest = {"per_image_sha256": sha256_file(per_image_path(path))}
    write_result(path, result.model_copy(update={"results": [row.model_copy(update=digest) for row in result.results]}))


def read_per_image(path: Path) -> PerImage:
    """Read a file. Raises CliptexError that names the file if it is missing, broken or too large unpacked."""
    require_file(path)
    try:
        arrays = read_npz(path)
        ids, rows = arrays.pop("ids"), arrays.pop("rows", np.array([], str))
    except Exception as error:  # numpy and zipfile raise many kinds of errors
        raise read_error(error, path, "a file of per-image parts") from error
    tasks: dict[str, dict[str, np.ndarray]] = {}
    for name, values in arrays.items():
        task, _, part = name.partition(".")
        tasks.setdefault(task, {})[part] = values
    rows_of = {task: tuple(parts.pop("rows").tolist()) for task, parts in tasks.items() if "rows" in parts}
    return PerImage(ids, tasks, tuple(rows.tolist()), rows_of)


def main_metric(task: str, arrays: Arrays, weights: np.ndarray | None = None) -> np.ndarray:
    """The main metric (`Measure.main`, in its unit) for each row of weights [B, N]: float64 [B], NaN without truths.
    weights: how often each image counts, by default once; twice is the same as two images (but for equal scores)."""
    weights = np.ones((1, num_images(arrays))) if weights is None else np.asarray(weights, np.float64)
    return measure(task).from_images(arrays, weights)


def num_images(arrays: Arrays) -> int:
    """N of a task's arrays."""
    return len(arrays["positives"] if "positives" in arrays else next(iter(arrays.values())))


def stacked_rows(rows: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """Stack the arrays of several models and seeds: [R, N]."""
    return {name: np.stack([arrays[name] for arrays in rows]) for name in rows[0]}


def check(task: str, arrays: Arrays, metrics: Mapping[str, float | None]) -> None:
    """Raise CliptexError if the main metric computed from the arrays differs from the reported one."""
    if wrong := mismatch(task, arrays, metrics):
        raise CliptexError(f"{task}: {wrong}; please report this")


def mismatch(task: str, arrays: Arrays, metrics: Mapping[str, float | None]) -> str | None:
    """How the reported main metric differs from the one computed from the arrays, in words; None if it does not."""
    name = measure(task).main
    reported = metrics.get(name)
    try:
        recomputed = float(main_metric(task, arrays)[0])
    except (LookupError, ValueError, TypeError) as error:
        return f"{name} cannot be computed from its per-image parts ({error})"
    if reported is None or not np.isfinite(reported):
        agree = not np.isfinite(recomputed)
    else:
        agree = abs(recomputed - reported) <= 1e-5 * max(1.0, abs(reported))
    return None if agree else f"{name} is {reported}, but {recomputed} from its per-image parts"


def each_image(task: str, arrays: Arrays) -> np.ndarray:
    """The main metric of every image by itself, float64 [N]; NaN if an image has nothing to evaluate."""
    if (function := measure(task).each_image) is not None:
        return function(arrays)
    count = num_images(arrays)
    rows = [main_metric(task, arrays, block) for block in np.array_split(np.eye(count), -(-count // 512))]
    return np.concatenate(rows)
