"""Choose hyper-parameters of trained heads on a held-out part of the training split."""

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

from cliptex.evaluation.protocols.base import Training


class Candidate(NamedTuple):
    """Learning rate and weight decay of a head's optimizer."""

    learning_rate: float
    weight_decay: float

    def __str__(self) -> str:
        return f"rate {self.learning_rate:g}, decay {self.weight_decay:g}"


def candidates(options: Training) -> list[Candidate]:
    """All combinations of learning rates and weight decays."""
    return [Candidate(*pair) for pair in product(options.learning_rates, options.weight_decays)]


def best_candidate(options: Training, score: Callable[[Candidate], float]) -> tuple[Candidate, dict[str, float]]:
    """The candidate with the highest `score` on the holdout, and all scores.

    A single candidate is returned without a score. If scores are equal, the first candidate wins.
    """
    grid = candidates(options)
    if len(grid) == 1:
        return grid[0], {}
    scores = {candidate: score(candidate) for candidate in grid}
    return max(grid, key=lambda candidate: scores[candidate]), {
        str(candidate): value for candidate, value in scores.items()
    }
