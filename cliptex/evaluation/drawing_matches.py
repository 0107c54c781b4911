"""How matched keypoints and propagated masks are drawn in an album."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from cliptex.evaluation.drawing import Drawing, Labels, LegendEntry, Sample, swatch
from cliptex.evaluation.metrics.correspondence import correct
from cliptex.evaluation.training_free.video_propagation import drawn_frames, strip
from cliptex.tasks.segmentation import palette

HIT, MISS = (70, 200, 90), (235, 70, 60)
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
        images = [sample["image"], sample["target"]]
        scales = [SIDE_PX / image.shape[0] for image in images]
        resized = [
            np.asarray(Image.fromarray(image).resize((max(1, round(image.shape[1] * scale)), SIDE_PX)))
            for image, scale in zip(images, scales, strict=True)
        ]
        drawn = Image.fromarray(np.concatenate(resized, axis=1))
        pen = ImageDraw.Draw(drawn)
        ends = labels["target_keypoints"]
        hits = correct(ends, sample["target_keypoints"], sample["target_box"], 0.1)
        for start, end, hit in list(zip(sample["keypoints"], ends, hits, strict=True))[:NUM_SHOWN]:
            first = tuple(float(value) for value in (start + 0.5) * scales[0])
            last = tuple(float(value) for value in (end + 0.5) * scales[1] + [resized[0].shape[1], 0])
            pen.line((first, last), fill=HIT if hit else MISS, width=1)
            for x, y in (first, last):
                pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=HIT if hit else MISS, outline=(0, 0, 0))
        return np.asarray(drawn), "photo"

    def legend(self, sample: Sample, shown: Sequence[Labels]) -> list[LegendEntry]:
        return [LegendEntry(swatch(HIT), "correct (PCK@0.1)"), LegendEntry(swatch(MISS), "wrong")]


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
