"""Measures of zero-shot classification and retrieval, and the measure of any row of results. Imports nothing heavy."""

from cliptex.core.errors import CliptexError
from cliptex.evaluation.metrics.display import Metric, lookup
from cliptex.evaluation.probes.base import Measure, lazy
from cliptex.evaluation.probes.tasks import probe_measures
from cliptex.evaluation.training_free.tasks import training_free_measures

_top1 = lazy("metrics.ranking:top1")
_recall_at_1 = lazy("metrics.ranking:recall_at_1")
ZERO_SHOT = Measure(
    "zero_shot_classification",
    "Zero-shot classification",
    "top1",
    _top1,
    dense=False,
    hub_task="zero-shot-image-classification",
    family="text",
)
IMAGE_TO_TEXT = Measure(
    "image_to_text_retrieval",
    "Captions of an image",
    "R@1",
    _recall_at_1,
    dense=False,
    hub_task="image-to-text",
    family="text",
)
TEXT_TO_IMAGE = Measure(
    "text_to_image_retrieval",
    "Image of a caption",
    "R@1",
    _recall_at_1,
    dense=False,
    hub_task="text-to-image",
    family="text",
)


def measures() -> dict[str, Measure]:
    """All measures by name: those of probe tasks, of tasks without training, of zero-shot classification and
    retrieval."""
    others = {measure.name: measure for measure in (ZERO_SHOT, IMAGE_TO_TEXT, TEXT_TO_IMAGE)}
    return probe_measures() | training_free_measures() | others


def measure(name: str) -> Measure:
    """The measure of a row whose `task` is `name`. Raises CliptexError for one that is not known."""
    known = measures()
    if name not in known:
        raise CliptexError(f"task {name!r} of a result: not one of {', '.join(known)}")
    return known[name]


def shown(name: str) -> Measure:
    """The measure of that name, for the report: an unknown one keeps its name as title and has no metrics of its
    own."""
    return measures().get(name) or Measure(name, name, "", _top1, dense=False)


def metric_of(task: str, name: str) -> Metric:
    """A metric of a row's `task`, by its name in the results."""
    return lookup(name, shown(task).metrics)
