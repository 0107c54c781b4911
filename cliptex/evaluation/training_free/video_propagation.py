"""Video object segmentation by propagation: the first frame's mask spreads to the others by similar patch tokens.

As Caron et al. (2021, arXiv 2104.14294, appendix) evaluate DINO, after Jabri et al. (2020, arXiv 2006.14613). Per-image
parts (a video counts as an image): those of `cliptex.evaluation.metrics.video`. Predictions of video i: `mask_{i}`
uint8 [H, W] of the last evaluated frame; shared by all rows `truth_{i}`, the same of the ground truth. Thumbnails:
masks of three frames next to each other (`drawn_frames`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from cliptex.config import Name, Positive, Rate, Section
from cliptex.evaluation.metrics.display import Metric
from cliptex.evaluation.probes.base import Measure, Outcome, imported, lazy
from cliptex.evaluation.training_free.base import Evaluated, TrainingFreeRun, TrainingFreeTask
from cliptex.evaluation.training_free.patch_maps import PatchTask, described_features, patch_maps

if TYPE_CHECKING:
    import numpy as np
    import torch

    from cliptex.evaluation.drawing import Drawing
    from cliptex.models.encoders import Encoder


class FrameInput(Section):
    """The encoder's input: whole frames, with nearly their aspect ratio."""

    short_px: Positive | None = None
    """Shorter side, a multiple of the patch size; the longer one is rounded to such a multiple, and position embeddings
    are interpolated. null: the encoder's own input size, for both sides."""


class Propagation(Section):
    """Each cell of a frame gets the mean of the masks at the most similar cells of earlier frames."""

    kind: Literal["propagation"]
    """How masks are propagated."""
    frames: Annotated[int, Field(ge=0)] = 7
    """Number of last frames that are the context, together with the first one."""
    neighbours: Positive = 5
    """Number of most similar cells, among those of the whole context."""
    radius: Positive | None = 12
    """Largest distance of rows and of columns between similar cells, cells; null: any."""
    temperature: Rate = 0.1
    """Temperature of the softmax over the cosine similarities, by which neighbours are weighted."""
    first_mask: Literal["nearest", "area"] = "nearest"
    """How the given mask becomes one of cells: the class at a cell's centre, or the shares of the classes in it."""
    stretch: bool = True
    """Whether each object's map is stretched to the range 0 to 1 in every frame before the largest one is chosen."""


class VideoPropagation(PatchTask):
    """Options of video object segmentation by propagation."""

    input: FrameInput = FrameInput()
    """The encoder's input."""
    variants: Annotated[dict[Name, Propagation], Field(min_length=1)]
    """Ways of propagating masks."""


class VideoPropagationTask(TrainingFreeTask):
    """Masks of all frames of a video from that of the first one, evaluated by J and F."""

    name = "video_propagation"
    section = VideoPropagation
    needs = "has_videos"
    reads_text = False
    measures = (
        Measure(
            "video_propagation",
            "Video object segmentation",
            "JF",
            lazy("metrics.video:region_and_contour"),
            metrics={
                "JF": Metric("J&F"),
                "J": Metric("J"),
                "F": Metric("F"),
                "J_recall": Metric("J, recall"),
                "F_recall": Metric("F, recall"),
            },
            hub_task="image-feature-extraction",
            family="no_head",
        ),
    )

    def evaluate(self, run: TrainingFreeRun) -> Evaluated:
        from cliptex.core.progress import track

        samples, section = run.samples, run.section
        results = {(variant, number): _Results() for variant in section.variants for number in range(len(run.models))}
        ids, images, shown = [], [], {}
        for index in track(range(len(samples)), self.name):
            sample = samples[index]
            frames, truths = list(sample["frames"]), list(sample["masks"])
            for number, model in enumerate(run.models):
                size = frame_size(model.encoder, sample["image"].shape[:2], section.input.short_px)
                # the last frame is not evaluated
                maps = patch_maps(model.encoder, frames[:-1], size, section.features, model.row)
                for variant, options in section.variants.items():
                    masks = list(propagated(maps, truths[0], sample["num_objects"], options))
                    results[variant, number].add(masks, truths, sample["num_objects"], size)
            if index < run.keep:
                images.append(sample["image"])
                shown[f"truth_{index}"] = truths[-2]
            ids.append(sample["id"])
        outcomes = [
            (variant, model, results[variant, number].outcome(run, variant))
            for number, model in enumerate(run.models)
            for variant in section.variants
        ]
        return Evaluated(ids, outcomes, images, shown)

    def drawing(self) -> type[Drawing]:
        return imported("drawing_matches:VideoDrawing")

    def thumbnail(self, arrays: Mapping[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
        return imported("thumbnails:unpacked_mask")(arrays, index)


def drawn_frames(count: int) -> list[int]:
    """The frames of a video of `count` frames that are drawn: the first that is evaluated, one in the middle, the last
    that is."""
    return sorted({1, count // 2, count - 2})


def strip(masks: Mapping[int, np.ndarray] | list[np.ndarray], count: int) -> np.ndarray:
    """The masks uint8 [H, W] of the drawn frames, small, next to each other. masks: by frame. count: of frames."""
    import numpy as np

    from cliptex.evaluation.thumbnails import MASK_SIDE_PX, shrunk

    return np.concatenate([shrunk(masks[frame], MASK_SIDE_PX) for frame in drawn_frames(count)], axis=1)


def frame_size(encoder: Encoder, shape: tuple[int, int], short_px: int | None) -> tuple[int, int]:
    """Height and width of the encoder's input for frames of height and width `shape`."""
    if short_px is None:
        return encoder.input_size(None)
    patch = encoder.image_size // encoder.grid
    longer = max(1, round(max(shape) * short_px / min(shape) / patch)) * patch
    return (short_px, longer) if shape[0] <= shape[1] else (longer, short_px)


def propagated(
    maps: torch.Tensor, first_mask: np.ndarray, num_objects: int, options: Propagation
) -> Iterator[np.ndarray]:
    """The masks uint8 [H, W] of all frames but the first. maps: patch tokens [T, C, h, w]. first_mask: uint8 [H, W],
    from 0 for the background to `num_objects`; 255 counts as background."""
    import torch
    import torch.nn.functional as F

    shape, grid = first_mask.shape, tuple(maps.shape[-2:])
    tokens = F.normalize(maps.flatten(2), dim=1)
    labels = [cell_labels(torch.from_numpy(first_mask.copy()).to(maps.device), num_objects, grid, options.first_mask)]
    allowed = None if options.radius is None else neighbourhood(grid, options.radius, maps.device)
    for frame in range(1, len(tokens)):
        context = [0, *range(max(1, frame - options.frames), frame)]
        similarity = torch.cat([tokens[earlier].T @ tokens[frame] for earlier in context])
        if allowed is not None:
            similarity = similarity.masked_fill(~allowed.repeat(len(context), 1), -torch.inf)
        values, places = similarity.topk(min(options.neighbours, len(similarity)), dim=0)
        weights = (values / options.temperature).softmax(0)
        known = torch.cat([labels[earlier] for earlier in context], 1)
        labels.append((known[:, places] * weights).sum(1))
        maps_of_classes = F.interpolate(labels[frame].reshape(1, -1, *grid), shape, mode="bilinear")[0]
        if options.stretch:
            maps_of_classes = stretched(maps_of_classes)
        yield maps_of_classes.argmax(0).to(torch.uint8).cpu().numpy()


def cell_labels(mask: torch.Tensor, num_objects: int, grid: tuple[int, int], how: str) -> torch.Tensor:
    """Class shares float32 [1 + num_objects, h * w] of the cells of a mask uint8 [H, W]."""
    import torch.nn.functional as F

    classes = mask.long().masked_fill(mask > num_objects, 0)
    one_hot = F.one_hot(classes, num_objects + 1).permute(2, 0, 1)[None].float()
    if how == "area":
        return F.interpolate(one_hot, grid, mode="area")[0].flatten(1)
    return F.interpolate(one_hot, grid, mode="nearest-exact")[0].flatten(1)


def neighbourhood(grid: tuple[int, int], radius: int, device: Any = None) -> torch.Tensor:
    """bool [h * w, h * w]: whether two cells are at most `radius` rows and columns apart."""
    import torch

    rows, columns = (torch.arange(length, device=device) for length in grid)
    near_rows, near_columns = ((line[:, None] - line).abs() <= radius for line in (rows, columns))
    near = near_rows[:, None, :, None] & near_columns[None, :, None, :]
    return near.reshape(grid[0] * grid[1], -1)


def stretched(maps: torch.Tensor) -> torch.Tensor:
    """Maps [K, H, W] with the values of each from 0 to 1; one that is 0 everywhere stays so."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp(min=1e-12)


class _Results:
    """What is kept of the videos of one model and variant."""

    def __init__(self) -> None:
        self.values: list[np.ndarray] = []
        self.masks: list[np.ndarray] = []
        self.strips: list[np.ndarray] = []
        self.size = (0, 0)

    def add(self, masks: list[np.ndarray], truths: list[np.ndarray], num_objects: int, size: tuple[int, int]) -> None:
        from cliptex.evaluation.metrics.video import evaluate_video

        self.values.append(evaluate_video(masks, truths, num_objects))
        self.masks.append(masks[-1])
        self.strips.append(strip([truths[0], *masks], len(truths)))
        self.size = size

    def outcome(self, run: TrainingFreeRun, variant: str) -> Outcome:
        from cliptex.evaluation.metrics.video import video_metrics, video_statistics
        from cliptex.evaluation.thumbnails import packed_masks

        options = run.section.variants[variant]
        radius = "anywhere" if options.radius is None else f"at most {options.radius} cells away"
        protocol = f"masks of the first and the last {options.frames} frames, weighted by a softmax (temperature "
        protocol += f"{options.temperature:g}) over the {options.neighbours} cells nearest by cosine, {radius}, among "
        protocol += described_features(run.section.features, self.size)
        return Outcome(
            task=VideoPropagationTask.name,
            metrics=video_metrics(self.values),
            num_parameters=0,
            hyperparameters={},
            protocol=protocol,
            predictions={f"mask_{index}": mask for index, mask in enumerate(self.masks[: run.keep])},
            per_image=video_statistics(self.values),
            thumbnails=packed_masks(self.strips),
        )


PLUGIN = VideoPropagationTask
