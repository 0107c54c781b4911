"""Fine-tuning of heads and encoder, for all tasks: features of an encoder in training, and the base class `Tuner`.

A head that the protocol trains starts from the same initial weights as on frozen features. A head that is solved in
closed form (ridge, logistic) starts from that solution and is trained further with the encoder ("LP-FT", Kumar et al.
2022, arXiv 2202.10054). Features stay standardised by their mean and variance before the first step.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from cliptex.config import FineTuning
from cliptex.evaluation.probes.base import Outcome, Run
from cliptex.evaluation.probes.feature_cache import Loaded
from cliptex.evaluation.probes.features import Features, Split, standardised_parts
from cliptex.evaluation.probes.parts import ComputedFeatures, Part, Reader
from cliptex.evaluation.probes.training import Candidate, candidates
from cliptex.evaluation.protocols.base import Training
from cliptex.models.encoders import BATCH_SIZE, Encoder

TUNED = "fine-tuned end to end: the encoder by AdamW, together with the head; "
FROM_RIDGE = TUNED + "the head starts from ridge regression; its map resized (bilinear) to the original resolution"


class TrainableFeatures(ComputedFeatures):
    """Features computed on every access by an encoder in training, without rounding.
    If gradients are enabled, all views of an access are one batch."""

    def load(self, index: np.ndarray) -> Loaded:
        index = np.asarray(index)
        if torch.is_grad_enabled():
            return self._tokens(index), None
        starts = range(0, len(index), BATCH_SIZE)
        return torch.cat([self._tokens(index[start : start + BATCH_SIZE]) for start in starts]), None


@dataclass
class Tuned:
    """An encoder in training and its features of both parts, standardised by their statistics before the first step."""

    encoder: Encoder
    readers: tuple[Reader, Reader]
    parts: tuple[Part, Part]
    network: torch.nn.Module = field(init=False)
    train: Features = field(init=False)
    eval: Features = field(init=False)

    def __post_init__(self):
        self.network = self.encoder.unfrozen()
        with torch.no_grad():
            sources = [TrainableFeatures(*pair, self.encoder) for pair in zip(self.readers, self.parts, strict=True)]
            self.train, self.eval = standardised_parts(self.readers[0].section, self.encoder, sources, memory_bytes=0)


class Recipe(NamedTuple):
    """How one head is trained with the encoder; both use the same schedule."""

    training: Training
    head: Candidate


Loss = Callable[[torch.nn.Module, torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor]
"""(head, features of a batch, indices of its views, generator) -> scalar."""


class Tuner(ABC):
    """One head of one task, trained together with the encoder.
    task: name of the probe task. options: of the head in the protocol. recipes: the candidates on the holdout."""

    task: ClassVar[str]

    def __init__(self, run: Run, head: str, tuned: Tuned, split: Split, seed: int, options: FineTuning):
        """head: its name. split: training views for fitting, and the held-out ones. options: of fine-tuning."""
        self.section = run.protocol.section(self.task)
        self.options = self.section.heads[head]
        self.seed, self.device = seed, tuned.encoder.device
        training = self.options if isinstance(self.options, Training) else training_of_solved_head(options)
        self.recipes = [Recipe(training, candidate) for candidate in candidates(training)]
        self.prepare(run, tuned, split)

    @abstractmethod
    def prepare(self, run: Run, tuned: Tuned, split: Split) -> None:
        """Keep the ground truth, and solve the head if it is solved in closed form."""

    @abstractmethod
    def start(self) -> torch.nn.Module:
        """A new head with its initial weights."""

    @abstractmethod
    def loss(
        self, head: torch.nn.Module, features: torch.Tensor, batch: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """See `Loss`."""

    def score(self, head: torch.nn.Module, tuned: Tuned, chosen: np.ndarray) -> float:
        """Score of the head on the training views `chosen`; higher is better. By default the negative loss."""
        total = 0.0
        for start in range(0, len(chosen), BATCH_SIZE):
            batch = torch.from_numpy(chosen[start : start + BATCH_SIZE])
            features = tuned.train[batch].to(tuned.encoder.device)
            total += float(self.loss(head, features, batch, torch.Generator())) * len(batch)
        return -total / len(chosen)

    @abstractmethod
    def outcomes(self, head: torch.nn.Module, tuned: Tuned, chosen: dict[str, Any], keep: int) -> list[Outcome]:
        """Evaluate the head.
        chosen: hyper-parameters for the row. keep: number of evaluation images whose predictions are kept."""


def training_of_solved_head(options: FineTuning) -> Training:
    """How a head is trained that is solved in closed form."""
    values = {name: getattr(options, name) for name in ("steps", "batch_size", "warmup")}
    return Training(learning_rates=(options.head_rate,), weight_decays=(0.0,), **values)
