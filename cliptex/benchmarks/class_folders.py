"""Base of benchmarks that are a folder of images for each class, of ImageNet's classes, and have no training split."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from cliptex.benchmarks.base import Benchmark
from cliptex.benchmarks.imagenet import official_wnids
from cliptex.benchmarks.reading import Lazy, files_in, folders_in, read_rgb
from cliptex.core.errors import CliptexError

SUFFIXES = (".jpeg", ".jpg", ".png")


class ClassFolders(Benchmark):
    """`folder`/<class>/*; a label is the position of a folder among the classes, which are in ImageNet's order."""

    tasks = ("classification",)
    eval_split = "test"
    has_training_split = False
    folder: ClassVar[str]
    """Folder in the archive that holds the folders of the classes."""
    unpack: ClassVar[str]
    """Remedy for files that are missing."""
    has_all_classes: ClassVar[bool] = True
    """Whether images are classified among all 1,000 classes; False: among those that have a folder, as in
    clip_benchmark."""

    @property
    def class_folders(self) -> list[str]:
        """Names of the folders of ImageNet's 1,000 classes, in label order."""
        return official_wnids()

    @cached_property
    def classes(self) -> list[int]:
        """Label -> position among ImageNet's 1,000 classes. Raises CliptexError for a folder that is no class."""
        if self.has_all_classes:
            return list(range(len(self.class_folders)))
        position = {folder: number for number, folder in enumerate(self.class_folders)}
        return sorted(position[folder] for folder in self._folders())

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @cached_property
    def class_names(self) -> list[str]:
        """open_clip's names of the classes."""
        from open_clip import IMAGENET_CLASSNAMES

        return [IMAGENET_CLASSNAMES[number] for number in self.classes]

    def read(self, part: str) -> Sequence[dict[str, Any]]:
        order = self.class_folders
        label = {order[number]: index for index, number in enumerate(self.classes)}
        items = []
        for folder in self._folders():
            paths = files_in(self.root / self.folder / folder, SUFFIXES, self.unpack)
            items += [(path, label[folder]) for path in paths]
        return Lazy(items, self._read)

    def _folders(self) -> list[str]:
        folders, known = folders_in(self.root / self.folder, self.unpack), set(self.class_folders)
        if unknown := [folder for folder in folders if folder not in known]:
            raise CliptexError(f"{self.root / self.folder / unknown[0]}: is no class of ImageNet; {self.unpack}")
        return folders

    def _read(self, item: tuple[str, int]) -> dict[str, Any]:
        path = Path(item[0])
        # file names repeat over classes
        return {"id": f"{path.parent.name}/{path.stem}", "file": path, "image": read_rgb(path), "label": item[1]}
