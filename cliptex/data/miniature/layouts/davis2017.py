"""DAVIS 2017 at 480p: JPEGImages, Annotations (palette PNG) and ImageSets/2017; frames are 16:9."""

from pathlib import Path

from cliptex.core.progress import track
from cliptex.data.miniature.kinds import THINGS
from cliptex.data.miniature.layouts import Renderer, save_jpeg, save_png, save_text
from cliptex.data.miniature.layouts.voc import palette
from cliptex.data.miniature.scenes import SceneOptions

SHARE = (0.3, 0.6)


def write(renderer: Renderer, benchmark_dir: Path) -> None:
    """Write the tree."""
    folder, colours = benchmark_dir / "DAVIS", palette()
    width = round(renderer.size * 16 / 9)
    for split in ("train", "val"):
        names = []
        for index in track(range(renderer.counts[split]), f"render davis2017 {split}"):
            options = SceneOptions(subject=THINGS[index % len(THINGS)], things=(1, 3), share=SHARE)
            video = renderer.video(split, index, options, width)
            name = f"{video.kind.replace(' ', '-')}-{split}-{index}"
            for number, (frame, mask) in enumerate(zip(video.frames, video.masks, strict=True)):
                save_jpeg(folder / "JPEGImages" / "480p" / name / f"{number:05d}.jpg", frame)
                save_png(folder / "Annotations" / "480p" / name / f"{number:05d}.png", mask, colours)
            names.append(name)
        save_text(folder / "ImageSets" / "2017" / f"{split}.txt", names)
