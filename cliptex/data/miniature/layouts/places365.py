"""Places365-Standard, "easy format": places365_standard/{train,val}/<category>/, and the category list."""

from pathlib import Path

from cliptex.core.progress import track
from cliptex.data.miniature.kinds import SCENE_CATEGORIES
from cliptex.data.miniature.layouts import Renderer, save_jpeg, save_text
from cliptex.data.miniature.scenes import SceneOptions

CATEGORIES = tuple(sorted(SCENE_CATEGORIES))


def write(renderer: Renderer, benchmark_dir: Path) -> None:
    """Write the tree. Wide views; categories are equally frequent."""
    folder = benchmark_dir / "places365_standard"
    for split in ("train", "val"):
        for index in track(range(renderer.counts[split]), f"render places365 {split}"):
            category = CATEGORIES[index % len(CATEGORIES)]
            options = SceneOptions(categories=(category,), things=(0, 4), scenery=1.4, closeness=0.2)
            name = f"{index // len(CATEGORIES) + 1:08d}.jpg"
            save_jpeg(folder / split / category / name, renderer.scene(split, index, options))
    lines = [f"/{category[0]}/{category} {number}" for number, category in enumerate(CATEGORIES)]
    save_text(benchmark_dir / "categories_places365.txt", lines)
