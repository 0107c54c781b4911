"""Configuration of a study: a question, the models that answer it, and where they are evaluated."""

from typing import Annotated, Literal

from cliptex.config.base import Name, Section, Unique
from cliptex.config.evaluation import Corruptions
from cliptex.config.labels import ExpertConfig, LabelStore
from cliptex.config.training import Model


class Study(Section):
    """A study: a question, the models that answer it, and how they are evaluated. Its models start from the main run's
    models and share its shards and label stores."""

    name: Name
    """Name of its folder in results/studies/."""
    title: str
    """Title of its page."""
    question: str
    """The question as a sentence, which the page states."""
    limits: str
    """What the study cannot show, the end of a sentence: "nor does it tell ..."."""
    form: Literal["differences", "tradeoff", "cost", "finetuning", "robustness"] = "differences"
    """Kind of plot. `differences`: differences from the reference. `tradeoff`: dense metrics against zero-shot
    accuracy. `cost`: dense metrics against the cost of training. `finetuning`: frozen and fine-tuned encoders.
    `robustness`: results under corruptions."""
    reference: Name = "clip_ft"
    """Model that the others are compared with."""
    shown: Annotated[list[Name], Unique] = ["cliptex"]
    """Models of the main run that are shown next to the study's own."""
    experts: dict[Name, ExpertConfig] = {}
    """Experts in addition to the main run's, by name."""
    label_stores: dict[Name, LabelStore] = {}
    """Label stores in addition to the main run's, by name."""
    models: dict[Name, Model] = {}
    """Models in addition to the main run's, by name."""
    rows: list[tuple[Name, str]] = []
    """Models to compare, each with its name on the page, in the order of the page; empty: all, in the order of
    definition."""
    probes: dict[Name, list[Name]] = {}
    """Benchmarks of `probes.benchmarks` to probe, each with the heads of its protocol to train."""
    zeroshot: Annotated[list[Name], Unique] = []
    """Benchmarks of `zeroshot.benchmarks` to evaluate on."""
    corruptions: Corruptions | None = None
    """Corruptions of the evaluation images, for `robustness`."""

    @property
    def compared(self) -> list[str]:
        """All models that it compares, in the order of the page."""
        named = [model for model, _ in self.rows]
        return list(dict.fromkeys([*named, self.reference, *self.shown, *self.models]))
