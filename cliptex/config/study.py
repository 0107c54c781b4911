"""Configuration of a study: a question, the models that answer it, and where they are evaluated."""

from typing import Annotated, Literal

from cliptex.config.base import Name, Section, Unique
from cliptex.config.evaluation import Corruptions
from cliptex.config.labels import ExpertConfig, LabelStore
from cliptex.config.training import Model


class Study(Section):
    """A question, the runs that answer it, and how they are evaluated. Its models start from the main run's models and
    share its shards and label stores."""

    name: Name
    """Its folder in results/studies/."""
    title: str
    """Headline of its page."""
    question: str
    """The question, a sentence."""
    limits: str
    """What the study cannot show, the end of a sentence: "nor does it tell ..."."""
    form: Literal["differences", "tradeoff", "cost", "finetuning", "robustness"] = "differences"
    """Kind of plot. `differences`: to the reference. `tradeoff`: dense metrics against zero-shot accuracy. `cost`:
    dense metrics against cost. `finetuning`: frozen and fine-tuned encoders. `robustness`: under corruptions."""
    reference: Name = "clip_ft"
    """Model that the others are compared with."""
    shown: Annotated[list[Name], Unique] = ["cliptex"]
    """Models of the main run to show next to the study's own."""
    experts: dict[Name, ExpertConfig] = {}
    """Further experts."""
    label_stores: dict[Name, LabelStore] = {}
    """Further label stores."""
    models: dict[Name, Model] = {}
    """Further models."""
    rows: list[tuple[Name, str]] = []
    """Models to compare, in the order of the page, with their names there; empty: all, in the order of definition."""
    probes: dict[Name, list[Name]] = {}
    """Benchmarks of `probes.benchmarks`, and which of their heads are trained."""
    zeroshot: Annotated[list[Name], Unique] = []
    """Benchmarks of `zeroshot.benchmarks`."""
    corruptions: Corruptions | None = None
    """Corruptions of the evaluation images, for `robustness`."""

    @property
    def compared(self) -> list[str]:
        """All models that it compares, in the order of the page."""
        named = [model for model, _ in self.rows]
        return list(dict.fromkeys([*named, self.reference, *self.shown, *self.models]))
