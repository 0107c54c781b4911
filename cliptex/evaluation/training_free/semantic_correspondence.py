"""Semantic correspondence: a keypoint of one image is found in another by the nearest patch token.

Per-image parts (a pair counts as an image): those of `cliptex.evaluation.metrics.correspondence`. Predictions of pair
i: `places_{i}` float32 [K, 2], columns and rows in the target image; shared by all rows `target_{i}` uint8 [H, W, 3],
`keypoints_{i}` and `target_keypoints_{i}` [K, 2]. Thumbnails: `counts` [N] and `places` [sum of K, 2] of all pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from cliptex.config import Name, Positive, Section
from cliptex.evaluation.metrics.display import Metric
from cliptex.evaluation.probes.base import Measure, Outcome, imported, lazy
from cliptex.evaluation.training_free.base import Evaluated, TrainingFreeRun, TrainingFreeTask
from cliptex.evaluation.training_free.patch_maps import PatchTask, SquashedInput, described_features, pair_maps, sampled

if TYPE_CHECKING:
    import numpy as np
    import torch

    from cliptex.evaluation.drawing import Drawing

BLOCK = 32
"""Pairs whose images are encoded together; features of the block before are kept, since an image is in many pairs."""


class NearestPatch(Section):
    """The place with the largest cosine similarity."""

    kind: Literal["nearest"]
    """How places are found."""
    upsample: Positive = 4
    """The target's map is interpolated to a grid of this many times its rows and columns, among which the place is."""


class SemanticCorrespondence(PatchTask):
    """Options of semantic correspondence."""

    input: SquashedInput = SquashedInput()
    """The encoder's input."""
    variants: Annotated[dict[Name, NearestPatch], Field(min_length=1)]
    """Ways of finding a place."""


class SemanticCorrespondenceTask(TrainingFreeTask):
    """Keypoints of pairs of images, evaluated by PCK relative to the target object's box."""

    name = "semantic_correspondence"
    section = SemanticCorrespondence
    needs = "has_keypoint_pairs"
    reads_text = False
    measures = (
        Measure(
            "semantic_correspondence",
            "Semantic correspondence",
            "PCK@0.1",
            lazy("metrics.correspondence:pck"),
            per_class=lazy("metrics.correspondence:pck_of_categories"),
            metrics={
                "PCK@0.1": Metric("PCK@0.1"),
                "PCK@0.1_per_point": Metric("PCK@0.1, per point"),
                "PCK@0.1_category_mean": Metric("PCK@0.1, mean of categories"),
                "PCK@0.05": Metric("PCK@0.05"),
                "PCK@0.05_per_point": Metric("PCK@0.05, per point"),
            },
            hub_task="image-feature-extraction",
            family="no_head",
        ),
    )

    def evaluate(self, run: TrainingFreeRun) -> Evaluated:
        from cliptex.core.progress import track
        from cliptex.evaluation.metrics.correspondence import chance_pck

        samples, section = run.samples, run.section
        sizes = [model.encoder.input_size(section.input.size_px) for model in run.models]
        maps: list[dict[str, torch.Tensor]] = [{} for _ in run.models]
        places: dict[tuple[str, int], list[np.ndarray]] = {
            (variant, number): [] for variant in section.variants for number in range(len(run.models))
        }
        ids, truths, shapes, images, shown = [], [], [], [], {}
        for start in track(range(0, len(samples), BLOCK), self.name):
            pairs = [samples[index] for index in range(start, min(start + BLOCK, len(samples)))]
            for number, model in enumerate(run.models):
                maps[number] = pair_maps(maps[number], pairs, model.encoder, sizes[number], section.features, model.row)
                for variant, options in section.variants.items():
                    places[variant, number] += [_match(maps[number], pair, options.upsample) for pair in pairs]
            for pair in pairs:
                if len(images) < run.keep:
                    shown |= {f"{key}_{len(images)}": pair[key] for key in ("target", "keypoints", "target_keypoints")}
                    images.append(pair["image"])
                ids.append(pair["id"])
                truths.append({key: pair[key] for key in ("target_keypoints", "target_box", "label")})
                shapes.append(pair["target"].shape[:2])
        outcomes = [
            (variant, model, _outcome(run, variant, sizes[number], places[variant, number], truths))
            for number, model in enumerate(run.models)
            for variant in section.variants
        ]
        chance = {self.name: {"PCK@0.1": chance_pck(truths, shapes)}}
        return Evaluated(ids, outcomes, images, shown, chance)

    def drawing(self) -> type[Drawing]:
        return imported("drawing_matches:MatchDrawing")

    def thumbnail(self, arrays: Mapping[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
        start = int(arrays["counts"][:index].sum())
        return {"target_keypoints": arrays["places"][start : start + int(arrays["counts"][index])]}


def _match(maps: Mapping[str, torch.Tensor], pair: Mapping[str, Any], upsample: int) -> np.ndarray:
    """The places float32 [K, 2] of a pair's keypoints in the target image."""
    import numpy as np

    source, target = (maps[name] for name in pair["image_names"])
    (height, width), (rows, columns) = pair["image"].shape[:2], pair["target"].shape[:2]
    shares = (pair["keypoints"] + 0.5) / np.array([width, height], np.float32)
    found = nearest_places(source, target, shares, upsample)
    return (found * np.array([columns, rows], np.float32) - 0.5).astype(np.float32)


def nearest_places(source: torch.Tensor, target: torch.Tensor, shares: np.ndarray, upsample: int) -> np.ndarray:
    """The places [K, 2] in an image whose features are the most similar, by cosine, to those at places of another.

    source, target: maps [C, h, w] of the two. shares: given places [K, 2], columns and rows as shares of width and
    height, as are the results. Features between the centres of cells are interpolated bilinearly, on the side of the
    target at the centres of `upsample` times as many cells.
    """
    import torch
    import torch.nn.functional as F

    fine = F.interpolate(target[None], scale_factor=upsample, mode="bilinear", align_corners=False)[0]
    similarity = F.normalize(sampled(source, shares), dim=0).T @ F.normalize(fine.flatten(1), dim=0)
    best = similarity.argmax(1)
    places = torch.stack([best % fine.shape[2], best // fine.shape[2]], 1).float() + 0.5
    return (places / torch.tensor([fine.shape[2], fine.shape[1]], device=places.device)).cpu().numpy()


def _outcome(
    run: TrainingFreeRun,
    variant: str,
    size: tuple[int, int],
    places: list[np.ndarray],
    truths: list[dict[str, Any]],
) -> Outcome:
    import numpy as np

    from cliptex.evaluation.metrics.correspondence import correspondence_metrics, correspondence_statistics

    parts = correspondence_statistics(places, truths)
    upsample = run.section.variants[variant].upsample
    protocol = f"nearest neighbour by cosine among {described_features(run.section.features, size)}, the target's "
    protocol += f"interpolated to {upsample} times as many rows and columns"
    return Outcome(
        task=SemanticCorrespondenceTask.name,
        metrics=correspondence_metrics(parts),
        num_parameters=0,
        hyperparameters={},
        protocol=protocol,
        predictions={f"places_{index}": place for index, place in enumerate(places[: run.keep])},
        per_image=parts,
        thumbnails={"counts": parts["points"], "places": np.concatenate(places).astype(np.float32)},
    )


PLUGIN = SemanticCorrespondenceTask
