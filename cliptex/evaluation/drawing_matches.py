"""How matched points of two images, and propagated masks, are drawn in an album."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from cliptex.evaluation.drawing import Drawing, Labels, LegendEntry, Sample, swatch
from cliptex.evaluation.metrics.correspondence import correct
from cliptex.evaluation.metrics.geometric_correspondence import (
    ROWS,
    THRESHOLDS_PX,
    grid_points,
    in_second_view,
    match_errors,
    project,
)
from cliptex.evaluation.training_free.geometric_correspondence import NUM_KEPT
from cliptex.evaluation.training_free.video_propagation import drawn_frames, strip
from cliptex.tasks.segmentation import palette

HIT, MISS = (70, 200, 90), (235, 70, 60)
ERRORS = (HIT, (190, 215, 60), (245, 165, 50), MISS)
"""Colours of errors below each of `THRESHOLDS_PX`, and of larger ones."""
OCCLUDED = 0.05
"""Relative difference of depths from which a point counts as hidden in the second view."""
SIDE_PX = 192
NUM_SHOWN = 10
"""Keypoints of a pair that are drawn, so that lines can be told apart."""


class MatchDrawing(Drawing):
    """Source and target next to each other, with a line from each keypoint to its place in the target."""

    note = "Lines join a keypoint of the left image with the place found in the right one."
    content = "matches of"

    def truth(self, sample: Sample) -> Labels:
        return {"target_keypoints": sample["target_keypoints"]}

    def pixels(self, sample: Sample, labels: Labels) -> tuple[np.ndarray, str]:
        ends = labels["target_keypoints"]
        hits = correct(ends, sample["target_keypoints"], sample["target_box"], 0.1)
        colours = [HIT if hit else MISS for hit in hits]
        return _with_lines(sample, sample["keypoints"][:NUM_SHOWN], ends[:NUM_SHOWN], colours[:NUM_SHOWN]), "photo"

    def legend(self, sample: Sample, shown: Sequence[Labels]) -> list[LegendEntry]:
        return [LegendEntry(swatch(HIT), "correct (PCK@0.1)"), LegendEntry(swatch(MISS), "wrong")]


class ViewPairDrawing(Drawing):
    """Two views next to each other, with lines from points of the first to the places found in the second."""

    note = "Lines join points of the left view with the places found in the right one, coloured by their error."
    content = "matches of"

    def truth(self, sample: Sample) -> Labels:
        """Points that the second view sees, too."""
        points = grid_points(sample["depth"], max(1, len(sample["depth"]) // 24))
        seen = in_second_view(sample, points)
        places, (height, width) = project(seen, sample["intrinsics"]), sample["depth"].shape
        pixels = np.nan_to_num(places, nan=-1).round().clip(-1, max(height, width)).astype(int)
        inside = ((pixels >= 0) & (pixels < [width, height])).all(1)
        points, pixels, depth = points[inside], pixels[inside], seen[inside, 2]
        visible = np.abs(sample["target_depth"][pixels[:, 1], pixels[:, 0]] - depth) < OCCLUDED * depth
        chosen = np.linspace(0, visible.sum() - 1, min(visible.sum(), NUM_KEPT)).round().astype(int)
        return {"points": points[visible][chosen], "places": pixels[visible][chosen]}

    def pixels(self, sample: Sample, labels: Labels) -> tuple[np.ndarray, str]:
        errors = match_errors(sample, labels["points"], labels["places"])
        colours = [ERRORS[number] for number in np.searchsorted(THRESHOLDS_PX, errors, side="right")]
        return _with_lines(sample, labels["points"], labels["places"], colours), "photo"

    def legend(self, sample: Sample, shown: Sequence[Labels]) -> list[LegendEntry]:
        limits = [f"less than {limit} px off ({ROWS} rows)" for limit in THRESHOLDS_PX]
        texts = [*limits, "farther off"]
        return [LegendEntry(swatch(colour), text) for colour, text in zip(ERRORS, texts, strict=True)]


def _with_lines(
    sample: Sample, starts: np.ndarray, ends: np.ndarray, colours: Sequence[tuple[int, int, int]]
) -> np.ndarray:
    """The images of a pair next to each other, with lines from places [K, 2] in the first to places in the second."""
    images = [sample["image"], sample["target"]]
    scales = [SIDE_PX / image.shape[0] for image in images]
    resized = [
        np.asarray(Image.fromarray(image).resize((max(1, round(image.shape[1] * scale)), SIDE_PX)))
        for image, scale in zip(images, scales, strict=True)
    ]
    drawn = Image.fromarray(np.concatenate(resized, axis=1))
    pen = ImageDraw.Draw(drawn)
    for start, end, colour in zip(starts, ends, colours, strict=True):
        first = tuple(float(value) for value in (start + 0.5) * scales[0])
        last = tuple(float(value) for value in (end + 0.5) * scales[1] + [resized[0].shape[1], 0])
        pen.line((first, last), fill=colour, width=1)
        for x, y in (first, last):
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour, outline=(0, 0, 0))
    return np.asarray(drawn)


class VideoDrawing(Drawing):
    """The first evaluated frame, one in the middle and the last one, with the objects' masks."""

    note = "The second frame, one in the middle and the last but one; the first frame's mask is given."
    content = "masks of"

    def truth(self, sample: Sample) -> Labels:
        return {"mask": strip(sample["masks"], len(sample["frames"]))}

    def pixels(self, sample: Sample, labels: Labels) -> tuple[np.ndarray, str]:
        mask, count = labels["mask"], len(sample["frames"])
        size = (mask.shape[1] // len(drawn_frames(count)), mask.shape[0])
        frames = [Image.fromarray(sample["frames"][frame]).resize(size) for frame in drawn_frames(count)]
        pixels = np.concatenate([np.asarray(frame) for frame in frames], axis=1)
        objects = (mask > 0) & (mask <= sample["num_objects"])
        mixed = (pixels[objects].astype(int) + 2 * palette()[mask[objects]].astype(int)) // 3
        pixels = pixels.copy()
        pixels[objects] = mixed.astype(np.uint8)
        return pixels, "photo"

    def legend(self, sample: Sample, shown: Sequence[Labels]) -> list[LegendEntry]:
        return [LegendEntry(swatch(palette()[i]), f"object {i}") for i in range(1, min(sample["num_objects"], 8) + 1)]
