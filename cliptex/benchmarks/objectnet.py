"""ObjectNet: objectnet-1.0/images/<folder>/*.png, and the publisher's tables in objectnet-1.0/mappings/."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from cliptex.benchmarks.base import Benchmark
from cliptex.benchmarks.reading import Lazy, existing, files_in, read_rgb
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_checked

UNPACK = "unpack objectnet-1.0.zip here (docs/data.md)"
BORDER_PX = 2


class Objectnet(Benchmark):
    """The images of the 113 of ObjectNet's 313 classes that are also classes of ImageNet (Barbu et al. 2019).

    As in clip_benchmark, images are classified among these 113 classes by ObjectNet's own names in lower case. Two
    pixels at each side, which hold the publisher's red border of one pixel, are removed.
    """

    name = "objectnet"
    tasks = ("classification",)
    eval_split = "test"
    has_training_split = False
    official_counts: ClassVar[dict[str, int]] = {"eval": 18_574}

    @cached_property
    def folders(self) -> dict[str, str]:
        """Folder of a class that ImageNet has, too -> its name, sorted by folder, which is the order of labels."""
        tables = self.root / "objectnet-1.0" / "mappings"
        of_folder = tables / "folder_to_objectnet_label.json"
        names = read_checked(existing(of_folder, UNPACK), {str: str}, remedy=UNPACK)
        in_imagenet = read_checked(
            existing(tables / "objectnet_to_imagenet_1k.json", UNPACK), {str: str}, remedy=UNPACK
        )
        if missing := in_imagenet.keys() - set(names.values()):
            raise CliptexError(f"{of_folder}: has no folder for the class {min(missing)!r}; {UNPACK}")
        if wrong := [folder for folder in names if Path(folder).name != folder or folder.startswith(".")]:
            raise CliptexError(f"{of_folder}: {wrong[0]!r} is not the name of a folder; {UNPACK}")
        return {folder: name for folder, name in sorted(names.items()) if name in in_imagenet}

    @property
    def class_names(self) -> list[str]:
        return [name.lower() for name in self.folders.values()]

    def read(self, part: str) -> Sequence[dict[str, Any]]:
        images = self.root / "objectnet-1.0" / "images"
        items = []
        for label, folder in enumerate(self.folders):
            items += [(path, label) for path in files_in(images / folder, (".png",), UNPACK)]
        return Lazy(items, self._read)

    def _read(self, item: tuple[str, int]) -> dict[str, Any]:
        path = Path(item[0])
        pixels = read_rgb(path)
        if min(pixels.shape[:2]) <= 2 * BORDER_PX:
            raise CliptexError(f"{path}: {pixels.shape[1]} x {pixels.shape[0]} pixels are only a border; {UNPACK}")
        image = pixels[BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX]
        # without `file`, since an export would copy the stored image, which has the border
        return {"id": f"{path.parent.name}/{path.stem}", "image": image, "label": item[1]}


PLUGIN = Objectnet
