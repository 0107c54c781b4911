"""Places365-Standard classification, "easy format": places365_standard/{train,val}/<category>/*.jpg."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from cliptex.benchmarks.base import Benchmark
from cliptex.benchmarks.reading import Lazy, files_in, folders_in, read_rgb
from cliptex.errors import CliptexError

UNPACK = "unpack places365standard_easyformat.tar here"


class Places365(Benchmark):
    """`train` and `val`; a label is the position of the category among the sorted folders of train/."""

    name = "places365"
    tasks = ("classification",)
    eval_split = "val"

    def __init__(self, root: Path):
        super().__init__(root)
        self.folder = self.root / "places365_standard"

    @cached_property
    def categories(self) -> list[str]:
        """Folder names in label order."""
        return folders_in(self.folder / "train", UNPACK)

    @cached_property
    def class_names(self) -> list[str]:
        return [category_name(category) for category in self.categories]

    def samples(self, part: str) -> Sequence[dict[str, Any]]:
        folder = self.folder / ("train" if part == "train" else "val")
        label = {category: index for index, category in enumerate(self.categories)}
        items: list[tuple[Path, int]] = []
        for category in folders_in(folder, UNPACK):
            if category not in label:
                raise CliptexError(f"{folder / category}: is not a category of {self.folder / 'train'}; {UNPACK}")
            items += [(path, label[category]) for path in files_in(folder / category, (".jpg",), UNPACK)]
        # file names repeat over categories, so the category is part of the id
        return Lazy(
            items,
            lambda item: {"id": f"{item[0].parent.name}/{item[0].stem}", "image": read_rgb(item[0]), "label": item[1]},
        )


def category_name(folder: str) -> str:
    """A folder as words: `apartment_building-outdoor` -> "outdoor apartment building"."""
    name, _, kind = folder.partition("-")
    return f"{kind} {name}".replace("_", " ").strip()


PLUGIN = Places365
