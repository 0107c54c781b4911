"""What fine-tuning shares over tasks: features of an encoder in training, and how a head is trained with it.

A head that the protocol trains starts as it does on frozen features. One that it solves in closed form (ridge,
logistic) starts from that solution and is trained further together with the encoder ("LP-FT", Kumar et al. 2022,
arXiv 2202.10054). Features stay standardised by their mean and variance before the first step.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from cliptex.config import FineTuning
from cliptex.evaluation.probes.base import Outcome
from cliptex.evaluation.probes.features import Features, standardised
from cliptex.evaluation.probes.parts import Computed, Part, Reader
from cliptex.evaluation.probes.selection import Candidate, candidates
from cliptex.evaluation.protocols.base import DenseTask, Training
from cliptex.models.encoders import BATCH_SIZE, Encoder

TUNED = "fine-tuned end to end: the encoder by AdamW, together with the head; "
FROM_RIDGE = TUNED + "the head starts from ridge regression; its map resized (bilinear) to the original resolution"


class TrainableFeatures(Computed):
    """Features computed on every access by an encoder in training, without rounding.

    Where gradients are enabled, all views of an access are one batch.
    """

    def read(self, index: np.ndarray) -> torch.Tensor:
        index = np.asarray(index)
        if torch.is_grad_enabled():
            return self._tokens(index)
        return torch.cat([self._tokens(index[at : at + BATCH_SIZE]) for at in range(0, len(index), BATCH_SIZE)])


@dataclass
class Tuned:
    """An encoder in training, and its features of both parts, standardised as they were before the first step."""

    encoder: Encoder
    readers: tuple[Reader, Reader]
    parts: tuple[Part, Part]
    network: torch.nn.Module = field(init=False)
    train: Features = field(init=False)
    eval: Features = field(init=False)

    def __post_init__(self):
        section = self.readers[0].task
        self.network = self.encoder.unfrozen()
        dense = isinstance(section, DenseTask)
        cls = dense and section.features.cls
        grid = self.encoder.map_shape(self.readers[0].size)[1:] if dense else None
        with torch.no_grad():
            rows = [TrainableFeatures(*pair, self.encoder) for pair in zip(self.readers, self.parts, strict=True)]
            self.train, self.eval = standardised(rows, grid, cls, section.features.standardise, memory_bytes=0)


@dataclass(frozen=True)
class Recipe:
    """How one head is trained with the encoder; both follow the same schedule."""

    training: Training
    head: Candidate


Loss = Callable[[torch.nn.Module, torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor]
"""(head, features of a batch, indices of its views, generator) -> scalar."""


class Tuner(ABC):
    """One head of one task, trained together with the encoder.

    recipes: what is tried on the holdout.
    """

    recipes: list[Recipe]

    @abstractmethod
    def start(self) -> torch.nn.Module:
        """A new head with its first weights."""

    @abstractmethod
    def loss(
        self, head: torch.nn.Module, features: torch.Tensor, batch: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """See `Loss`."""

    def score(self, head: torch.nn.Module, tuned: Tuned, chosen: np.ndarray) -> float:
        """How good the head is on the training views `chosen`; larger is better. By default the negative loss."""
        total = 0.0
        for start in range(0, len(chosen), BATCH_SIZE):
            batch = torch.from_numpy(chosen[start : start + BATCH_SIZE])
            features = tuned.train[batch].to(tuned.encoder.device)
            total += float(self.loss(head, features, batch, torch.Generator())) * len(batch)
        return -total / len(chosen)

    @abstractmethod
    def outcomes(self, head: torch.nn.Module, tuned: Tuned, chosen: dict[str, Any], keep: int) -> list[Outcome]:
        """Evaluate the head. chosen: hyper-parameters for the row. keep: evaluation images whose predictions are kept."""


def recipe_of_solved_head(options: FineTuning) -> Recipe:
    """Recipe of a head that the protocol solves in closed form."""
    training = Training(
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rates=(options.head_rate,),
        weight_decays=(0.0,),
        warmup=options.warmup,
    )
    (candidate,) = candidates(training)
    return Recipe(training, candidate)
