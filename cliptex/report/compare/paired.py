"""How results of two runs differ: the paired bootstrap over the same evaluation images, and Holm's correction.

Both runs are evaluated on the same draws of images and seeds (`cliptex.report.bootstrap`), so what an image or a seed
does to both of them cancels. Without that, as for other images, a difference is shown without interval and not tested.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import fmean

import numpy as np

from cliptex.config import Config
from cliptex.core.errors import CliptexError
from cliptex.evaluation.measures import measures, metric_of
from cliptex.evaluation.metrics.base import Arrays
from cliptex.evaluation.per_image import per_image_path, read_per_image
from cliptex.evaluation.results import SAME
from cliptex.report import names
from cliptex.report.bootstrap import draws, p_value, resampled
from cliptex.report.compare.runs import KINDS, ComparedRun
from cliptex.report.evaluators import ALPHA
from cliptex.report.gather import Scores
from cliptex.report.statistics import Difference, Gain, difference, gain_over, holm

TRUTHS = ("truth", "positives", "pixels", "queries")
"""Per-image parts that only the ground truth determines: if they differ, so do the images."""
Measured = tuple[dict[str, list[float]], dict[str, np.ndarray]]
"""Model -> one value a seed, and model -> its value in each draw."""


@dataclass(frozen=True)
class PairedResult:
    """One task of a benchmark with one head in both runs, by its main metric, over the seeds that both have."""

    kind: str
    scores: Scores
    task: str
    head: str
    metric: str
    first: Measured
    second: Measured
    protocols: tuple[str, str]
    """In words."""
    other_protocol: bool
    """Whether the digests of the protocols differ, as far as both are recorded."""

    @property
    def title(self) -> str:
        benchmark = names.benchmark(self.scores.benchmark, self.scores.source)
        read = dict.fromkeys((names.head(self.head), KINDS[self.kind]))
        return ", ".join([f"{benchmark} {names.task(self.task).lower()}", *read])

    @property
    def better(self) -> int:
        return metric_of(self.task, self.metric).better

    @property
    def models(self) -> list[str]:
        """That both runs have."""
        known = [name for name in names.MODELS if name in self.first[0]]
        models = [*known, *(name for name in self.first[0] if name not in known)]
        return [name for name in models if name in self.second[0]]


@dataclass(frozen=True)
class SharedTable:
    """The results of one benchmark that both runs have. untested: why there are no intervals; empty if there are."""

    kind: str
    scores: Scores
    seeds: list[int]
    pairs: list[PairedResult]
    untested: str


def shared_tables(first: ComparedRun, second: ComparedRun) -> list[SharedTable]:
    """Raises CliptexError for per-image parts that are broken."""
    rendered = [run.config and run.config.get("miniature") for run in (first, second)]
    keys = [key for key in first.scores if key in second.scores]
    return [_shared(kind, first.scores[kind, name], second.scores[kind, name], rendered) for kind, name in keys]


def _shared(kind: str, a: Scores, b: Scores, rendered: Sequence[object]) -> SharedTable:
    seeds = sorted({row.seed for row in a.results} & {row.seed for row in b.results})
    a, b = (one.model_copy(update={"results": [row for row in one.results if row.seed in seeds]}) for one in (a, b))
    cells = [cell for cell in a.cells() if cell in b.cells()]
    untested = _other_data(a, b)
    if a.source == "miniature" and None not in rendered and rendered[0] != rendered[1]:
        untested = untested or "the images were rendered with other settings (`miniature`)"
    images: dict[tuple[str, str], tuple[dict[str, list[Arrays]], ...]] = {}
    for task, head in cells if not untested else ():
        if task in measures():
            try:
                images[task, head] = a.images(task, head), b.images(task, head)
                untested = untested or ("the evaluation images are others" if _ids(a) != _ids(b) else "")
            except CliptexError as error:
                untested = str(error)
                break
            untested = untested or _other_truth(*images[task, head])
    number = zlib.crc32(a.benchmark.encode())
    weights = (
        draws(a.num_eval, Config.load({}).report.resamples, number)
        if images and not untested and a.num_eval > 1
        else None
    )
    pairs = [_pair(kind, a, b, cell, images.get(cell), weights) for cell in cells]
    return SharedTable(kind, a, seeds, pairs, untested)


def _other_data(a: Scores, b: Scores) -> str:
    for key in SAME:
        if getattr(a, key) != getattr(b, key):
            return f"{key} differs"
    return ""


def _ids(scores: Scores) -> list[str]:
    """Of the evaluation images, which all files of a table share."""
    return read_per_image(per_image_path(scores.head_path(scores.results[0]))).ids.tolist()


def _other_truth(a: Mapping[str, list[Arrays]], b: Mapping[str, list[Arrays]]) -> str:
    for model in a.keys() & b.keys():
        for left, right in zip(a[model], b[model], strict=False):
            if any(name in right and not np.array_equal(left[name], right[name]) for name in TRUTHS if name in left):
                return "the ground truth of the images differs"
    return ""


def _pair(
    kind: str,
    a: Scores,
    b: Scores,
    cell: tuple[str, str],
    images: Sequence[Mapping[str, list[Arrays]]] | None,
    weights: np.ndarray | None,
) -> PairedResult:
    task, head = cell
    metric = a.main_metric(task, head)
    drawn: list[dict[str, np.ndarray]] = [{}, {}]
    if images is not None and weights is not None:
        drawn = [{model: resampled(task, seeds, weights) for model, seeds in one.items()} for one in images]
    rows = [[row for row in scores.results if (row.task, row.head) == cell] for scores in (a, b)]
    digests = [{row.protocol_digest for row in own} - {None} for own in rows]
    values = [scores.values(task, head, metric) for scores in (a, b)]
    return PairedResult(
        kind,
        a,
        task,
        head,
        metric,
        *zip(values, drawn, strict=True),
        protocols=tuple(own[0].protocol for own in rows),
        other_protocol=all(digests) and digests[0] != digests[1],
    )


class ChangeStatus(StrEnum):
    """How certain a change is."""

    BETTER = "better"
    """Beyond the noise of seeds and images, after Holm's correction."""
    WORSE = "worse"
    ONE_SEED_BETTER = "better, one seed"
    """Beyond the noise of the images, after the correction; one seed has no spread."""
    ONE_SEED_WORSE = "worse, one seed"
    NOT_CORRECTED = "alone, not after Holm"
    WITHIN_NOISE = "within noise"
    SAME = "the same"
    UNTESTED = "not tested"


@dataclass(frozen=True)
class Change:
    """The second run minus the first, signed so that positive is better.

    model: empty if the change is of a gain, whose value in each run is in `gains`. p: of this change alone; None if it
    is not tested.
    """

    pair: PairedResult
    model: str
    difference: Difference | None
    p: float | None
    status: ChangeStatus
    gains: tuple[Gain, ...] = ()


def model_changes(tables: Sequence[SharedTable]) -> list[Change]:
    """Of every trained model with every head, corrected for their number."""
    changes = [
        _change(pair, model)
        for table in tables
        for pair in table.pairs
        for model in pair.models
        if model not in names.BASELINES
    ]
    return corrected(changes)


def baseline_changes(tables: Sequence[SharedTable]) -> list[Change]:
    """Of the baselines, which no training changes."""
    pairs = [pair for table in tables for pair in table.pairs]
    return [_change(pair, model) for pair in pairs for model in pair.models if model in names.BASELINES]


def _change(pair: PairedResult, model: str) -> Change:
    (first, drawn), (second, drawn_again) = pair.first, pair.second
    found = difference(second[model], first[model], pair.better, (drawn_again.get(model), drawn.get(model)))
    p = None
    if found is not None and found.interval is not None:
        p = p_value(found.value, drawn_again[model] - drawn[model])
    return Change(pair, model, found, p, _status(found, first[model] == second[model]))


def gain_changes(tables: Sequence[SharedTable]) -> list[Change]:
    """Of the relative gain of CLIPTeX over CLIP-FT, in percentage points, where both runs have both models."""
    changes = [_gain_change(pair) for table in tables for pair in table.pairs]
    return corrected([change for change in changes if change is not None])


def _gain_change(pair: PairedResult) -> Change | None:
    named = {"subject": names.SUBJECT, "reference": names.REFERENCE}
    first, second = (
        gain_over(values, pair.better, **named, baselines=(), needed=(), draws=drawn)
        for values, drawn in (pair.first, pair.second)
    )
    if first.percent is None or second.percent is None:
        return None
    drawn = second.percent_draws, first.percent_draws
    found = difference(_by_seed(pair, pair.second[0]), _by_seed(pair, pair.first[0]), 1, drawn)
    p = None if found.interval is None else p_value(found.value, drawn[0] - drawn[1])
    status = _status(found, pair.first[0] == pair.second[0])
    return Change(pair, "", found, p, status, (first, second))


def _by_seed(pair: PairedResult, values: Mapping[str, Sequence[float]]) -> list[float]:
    """The gain of each seed in percent of the reference's mean, so that their mean is the gain."""
    subject, reference = values[names.SUBJECT], values[names.REFERENCE]
    scale = 100 * pair.better / abs(fmean(reference))
    return [scale * (new - old) for new, old in zip(subject, reference, strict=True)]


def _status(found: Difference | None, same: bool) -> ChangeStatus:
    """Before correction."""
    if same:
        return ChangeStatus.SAME
    if found is None or found.interval is None:
        return ChangeStatus.UNTESTED
    if not found.interval.excludes_zero or found.beyond_noise is False:
        return ChangeStatus.WITHIN_NOISE
    if found.spread is None:
        return ChangeStatus.ONE_SEED_BETTER if found.value > 0 else ChangeStatus.ONE_SEED_WORSE
    return ChangeStatus.BETTER if found.value > 0 else ChangeStatus.WORSE


def corrected(changes: Sequence[Change]) -> list[Change]:
    """The same with Holm's correction over all that are tested."""
    tested = [change for change in changes if change.p is not None and change.status is not ChangeStatus.SAME]
    adjusted = dict(zip(map(id, tested), holm([change.p for change in tested]), strict=True))
    certain = set(ChangeStatus) - {ChangeStatus.WITHIN_NOISE, ChangeStatus.SAME, ChangeStatus.UNTESTED}
    return [
        replace(change, status=ChangeStatus.NOT_CORRECTED)
        if change.status in certain and adjusted.get(id(change), 0) > ALPHA
        else change
        for change in changes
    ]
