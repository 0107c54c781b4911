"""Geometric correspondence: points of one view of a scene are found in another by the nearest patch tokens.

As Probe3D evaluates ScanNet's pairs (El Banani et al. 2024, arXiv 2404.08636). Per-image parts (a pair counts as an
image): those of `cliptex.evaluation.metrics.geometric_correspondence`. Predictions of pair i: `points_{i}` and
`places_{i}` uint16 [K, 2], columns and rows of the matches in the first and the second view, the best first, and
`errors_{i}` float32 [K]; shared by all rows `target_{i}` uint8 [H, W, 3], `depth_{i}` float32 [H, W], `intrinsics_{i}`
[3, 3] and `transform_{i}` [4, 4] of the sample. Thumbnails: `counts` [N], `points` and `places` [sum of counts, 2] of
matches from the best to the worst.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from cliptex.config import Name, Positive, Section
from cliptex.core.errors import CliptexError
from cliptex.evaluation.metrics.display import Metric
from cliptex.evaluation.probes.base import Measure, Outcome, imported, lazy
from cliptex.evaluation.training_free.base import Evaluated, TrainingFreeRun, TrainingFreeTask
from cliptex.evaluation.training_free.patch_maps import (
    PatchTask,
    SquashedInput,
    described_features,
    pair_maps,
    sampled,
)

if TYPE_CHECKING:
    import numpy as np
    import torch

    from cliptex.evaluation.drawing import Drawing

BLOCK = 8
"""Pairs whose images are encoded together; features of the block before are kept, since an image is in many pairs."""
SIMILARITIES = 2**24
"""Entries of the matrix of similarities that are in memory at a time; there may be 20,000 points in either view."""
NUM_KEPT = 24
"""Matches of a pair that are kept for the report."""


class NearestPoint(Section):
    """The point with the largest cosine similarity."""

    kind: Literal["nearest"]
    """How points are found."""
    ranking: Literal["ratio", "similarity"] = "ratio"
    """How the best matches are chosen: `ratio`, by the smallest ratio of the cosine distances to the nearest and the
    second nearest point (Lowe 2004), or by the similarity itself."""


class GeometricCorrespondence(PatchTask):
    """Options of geometric correspondence."""

    input: SquashedInput = SquashedInput()
    """The encoder's input."""
    stride_px: Positive = 4
    """Pixels of the depth map from one point to the next, in rows and in columns."""
    matches: Positive = 1000
    """Number of best matches that are evaluated; all, where a pair has fewer points."""
    variants: Annotated[dict[Name, NearestPoint], Field(min_length=1)]
    """Ways of finding points."""


class GeometricCorrespondenceTask(TrainingFreeTask):
    """Points of two views of a scene, evaluated by the distance to where they truly are in the second view."""

    name = "geometric_correspondence"
    section = GeometricCorrespondence
    needs = "has_view_pairs"
    reads_text = False
    measures = (
        Measure(
            "geometric_correspondence",
            "Geometric correspondence",
            "recall@10px",
            lazy("metrics.geometric_correspondence:recall"),
            metrics={
                "recall@5px": Metric("Recall at 5 px"),
                "recall@10px": Metric("Recall at 10 px"),
                "recall@20px": Metric("Recall at 20 px"),
                "recall@10px_0_15": Metric("Recall at 10 px, views less than 15° apart"),
                "recall@10px_15_30": Metric("Recall at 10 px, views 15 to 30° apart"),
                "recall@10px_30_60": Metric("Recall at 10 px, views 30 to 60° apart"),
                "recall@10px_60_180": Metric("Recall at 10 px, views 60° apart or more"),
            },
            hub_task="image-feature-extraction",
            family="no_head",
        ),
    )

    def evaluate(self, run: TrainingFreeRun) -> Evaluated:
        import numpy as np

        from cliptex.core.progress import track
        from cliptex.evaluation.metrics.geometric_correspondence import MAIN, angle_bins, chance_recall, view_angle

        samples, section = run.samples, run.section
        sizes = [model.encoder.input_size(section.input.size_px) for model in run.models]
        maps: list[dict[str, torch.Tensor]] = [{} for _ in run.models]
        matches: dict[tuple[str, int], list[Matches]] = {
            (variant, number): [] for variant in section.variants for number in range(len(run.models))
        }
        ids, angles, chances, images, shown = [], [], [], [], {}
        for start in track(range(0, len(samples), BLOCK), self.name):
            pairs = [samples[index] for index in range(start, min(start + BLOCK, len(samples)))]
            for number, model in enumerate(run.models):
                maps[number] = pair_maps(maps[number], pairs, model.encoder, sizes[number], section.features, model.row)
                for pair in pairs:
                    for variant, found in match_pair(maps[number], pair, section).items():
                        matches[variant, number].append(found)
            for pair in pairs:
                if len(images) < run.keep:
                    keys = ("target", "depth", "intrinsics", "transform")
                    shown |= {f"{key}_{len(images)}": pair[key] for key in keys}
                    images.append(pair["image"])
                ids.append(pair["id"])
                angles.append(view_angle(pair["transform"]))
                chances.append(chance_recall(pair, section.stride_px))
        outcomes = [
            (variant, model, _outcome(run, variant, sizes[number], matches[variant, number], angles))
            for number, model in enumerate(run.models)
            for variant in section.variants
        ]
        chance = {self.name: {MAIN: 100 * float(np.mean(chances))}}
        bins = {name: int(inside.sum()) for name, inside in angle_bins(np.array(angles)).items()}
        return Evaluated(ids, outcomes, images, shown, chance, {"pairs_by_angle": bins})

    def drawing(self) -> type[Drawing]:
        return imported("drawing_matches:ViewPairDrawing")

    def thumbnail(self, arrays: Mapping[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
        start = int(arrays["counts"][:index].sum())
        rows = slice(start, start + int(arrays["counts"][index]))
        return {key: arrays[key][rows].astype(int) for key in ("points", "places")}


@dataclass(frozen=True)
class Matches:
    """Evaluated matches of a pair, the best first. points, places: uint16 [K, 2], pixels of the first and the second
    view, columns and rows. errors: float32 [K], as of `match_errors`."""

    points: np.ndarray
    places: np.ndarray
    errors: np.ndarray

    @property
    def kept(self) -> np.ndarray:
        """Indices of the matches for the report, from the best to the worst."""
        import numpy as np

        return np.linspace(0, len(self.points) - 1, min(len(self.points), NUM_KEPT)).round().astype(int)


def match_pair(
    maps: Mapping[str, torch.Tensor], pair: Mapping[str, Any], section: GeometricCorrespondence
) -> dict[str, Matches]:
    """The matches of a pair, by variant. maps: [C, h, w] by name of the image. Raises CliptexError if a depth map has
    no point of the grid."""
    import numpy as np
    import torch.nn.functional as F

    from cliptex.evaluation.metrics.geometric_correspondence import grid_points, match_errors

    grids = [grid_points(pair[key], section.stride_px) for key in ("depth", "target_depth")]
    if not all(map(len, grids)):
        problem = f"a depth map has no depth at every {section.stride_px} pixels"
        raise CliptexError(f"{pair['id']}: {problem}; lower `stride_px`, or remove the pair from test.npz")
    shape = np.array(pair["depth"].shape[::-1])
    first, second = (
        F.normalize(sampled(maps[name], (grid + 0.5) / shape), dim=0).T
        for name, grid in zip(pair["image_names"], grids, strict=True)
    )
    found, ratio, similarity = nearest_points(first, second)
    out = {}
    for variant, options in section.variants.items():
        order = ranked(ratio if options.ranking == "ratio" else -similarity)[: section.matches]
        points, places = grids[0][order], grids[1][found[order]]
        errors = match_errors(pair, points, places).astype(np.float32)
        out[variant] = Matches(points.astype(np.uint16), places.astype(np.uint16), errors)
    return out


def ranked(values: np.ndarray) -> np.ndarray:
    """Indices of values [N], the smallest first; equal ones in a random order that is always the same. In their own
    order the matches of the baseline `position`, whose ratios are all 0, would be from the first rows of the image."""
    import numpy as np

    mixed = np.random.default_rng(0).permutation(len(values))
    return mixed[np.argsort(values[mixed], kind="stable")]


def nearest_points(first: torch.Tensor, second: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of N unit features [N, C] the nearest of M others [M, C] by cosine: its index [N], the ratio of its
    distance to that of the second nearest [N] (1 without one, or if both are 0), and its similarity [N]."""
    import torch

    parts = []
    for rows in first.split(max(1, SIMILARITIES // len(second))):
        found = (rows @ second.T).topk(min(2, len(second)), dim=1).indices
        # half the squared distance is 1 - cosine, but keeps the digits of nearly equal features
        distances, order = ((rows[:, None] - second[found]) ** 2).sum(2).div(2).sort(dim=1)
        nearest, other = distances[:, 0], distances[:, -1]
        ratio = torch.where(other > 0, nearest / other.clamp(min=1e-30), 1.0)
        parts.append((found.gather(1, order)[:, 0], ratio, 1 - nearest))
    index, ratio, similarity = (torch.cat(values).cpu().numpy() for values in zip(*parts, strict=True))
    return index, ratio, similarity


def _outcome(
    run: TrainingFreeRun, variant: str, size: tuple[int, int], matches: list[Matches], angles: list[float]
) -> Outcome:
    import numpy as np

    from cliptex.evaluation.metrics.geometric_correspondence import ROWS, geometric_metrics, geometric_statistics

    section = run.section
    parts = geometric_statistics([pair.errors for pair in matches], angles)
    chosen = {"ratio": "by ratio test", "similarity": "by similarity"}[section.variants[variant].ranking]
    protocol = f"the {section.matches} best ({chosen}) nearest neighbours by cosine among points every "
    protocol += f"{section.stride_px} pixels of {described_features(section.features, size)}; errors in pixels of "
    protocol += f"{ROWS} rows"
    predictions = {
        f"{key}_{index}": getattr(pair, key)
        for index, pair in enumerate(matches[: run.keep])
        for key in ("points", "places", "errors")
    }
    thumbnails = {
        key: np.concatenate([getattr(pair, key)[pair.kept] for pair in matches]) for key in ("points", "places")
    }
    return Outcome(
        task=GeometricCorrespondenceTask.name,
        metrics=geometric_metrics(parts),
        num_parameters=0,
        hyperparameters={},
        protocol=protocol,
        predictions=predictions,
        per_image=parts,
        thumbnails={"counts": np.array([len(pair.kept) for pair in matches]), **thumbnails},
    )


PLUGIN = GeometricCorrespondenceTask
