"""Hyper-parameters of trained heads, chosen on a held-out part of the training split."""

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

from cliptex.evaluation.protocols.base import Training


class Candidate(NamedTuple):
    """One setting of a head's optimizer."""

    learning_rate: float
    weight_decay: float

    def __str__(self) -> str:
        return f"rate {self.learning_rate:g}, decay {self.weight_decay:g}"


def candidates(options: Training) -> list[Candidate]:
    """Every rate with every decay."""
    return [Candidate(*pair) for pair in product(options.learning_rates, options.weight_decays)]


def best_candidate(options: Training, score: Callable[[Candidate], float]) -> tuple[Candidate, dict[str, float]]:
    """The candidate with the highest `score` on the holdout, and all scores; a lone candidate is not tried at all.

    Of equal scores the first wins.
    """
    grid = candidates(options)
    if len(grid) == 1:
        return grid[0], {}
    scores = {candidate: score(candidate) for candidate in grid}
    return max(grid, key=lambda candidate: scores[candidate]), {str(one): value for one, value in scores.items()}
