"""ImageNet-1k classification: train/<wnid>/, and val flat with the development kit's labels or as val/<wnid>/."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from cliptex.benchmarks.base import Benchmark
from cliptex.benchmarks.reading import Lazy, existing, files_in, folders_in, is_folder, read_lines, read_mat, read_rgb
from cliptex.core.errors import CliptexError

SUFFIXES = (".jpeg", ".jpg")
UNPACK = "unpack ILSVRC2012_img_train.tar and its inner tars, ILSVRC2012_img_val.tar and the devkit here"


class Imagenet(Benchmark):
    """`train` and `val`; a label is the position of the wnid among the sorted wnids of train/."""

    name = "imagenet"
    tasks = ("classification",)
    official_counts: ClassVar[dict[str, int]] = {"train": 1_281_167, "eval": 50_000}

    @cached_property
    def wnids(self) -> list[str]:  # in label order
        return folders_in(self.root / "train", UNPACK) if "train" in self.parts else official_wnids()

    @property
    def num_classes(self) -> int:
        return len(self.wnids)  # they may have no names, which probes do not need

    @cached_property
    def class_names(self) -> list[str]:
        """open_clip's names for the 1000 official classes, else the first synonym in LOC_synset_mapping.txt."""
        if self.wnids == official_wnids():
            from open_clip import IMAGENET_CLASSNAMES

            return list(IMAGENET_CLASSNAMES)
        path = self.root / "LOC_synset_mapping.txt"
        lines = read_lines(path, "required to name the classes, since train/ does not have the 1000 official wnids")
        names = {line.split(" ", 1)[0]: line.partition(" ")[2].split(",")[0].strip() for line in lines}
        missing = [wnid for wnid in self.wnids if not names.get(wnid)]
        if missing:
            remedy = "add a line 'wnid name, synonym, ...'"
            raise CliptexError(f"{path}: has no name for {', '.join(missing[:3])}; {remedy}")
        return [names[wnid] for wnid in self.wnids]

    def read(self, part: str) -> Sequence[dict[str, Any]]:
        if part == "train":
            items = self._in_folders(self.root / "train")
        elif any(map(is_folder, os.scandir(existing(self.root / "val", UNPACK)))):
            items = self._in_folders(self.root / "val")
        else:
            items = list(zip(*self._flat_val(), strict=True))
        return Lazy(items, self._read)

    def names(self, part: str) -> Sequence[str]:
        return [Path(path).name for path, _ in self.read(part).items]

    def _read(self, item: tuple[str, int]) -> dict[str, Any]:
        path = Path(item[0])
        return {"id": path.stem, "file": path, "image": read_rgb(path), "label": item[1]}

    def _in_folders(self, folder: Path) -> list[tuple[str, int]]:
        label = {wnid: index for index, wnid in enumerate(self.wnids)}
        items = []
        for wnid in folders_in(folder, UNPACK):
            if wnid not in label:
                raise CliptexError(f"{folder / wnid}: is not a class of {self.root / 'train'}; {UNPACK}")
            items += [(path, label[wnid]) for path in files_in(folder / wnid, SUFFIXES, UNPACK)]
        return items

    def _flat_val(self) -> tuple[list[str], list[int]]:
        """Files of val/ in order, with the devkit's labels: the ground truth has ILSVRC ids, which are NOT positions
        among sorted wnids; meta.mat maps them to wnids."""
        devkit = self.root / "ILSVRC2012_devkit_t12" / "data"
        images = files_in(self.root / "val", SUFFIXES, UNPACK)
        truth = devkit / "ILSVRC2012_validation_ground_truth.txt"
        lines = read_lines(truth, UNPACK)
        if invalid := [line for line in lines if not re.fullmatch("[0-9]{1,6}", line)]:
            raise CliptexError(f"{truth}: {invalid[0][:80]!r} is not an ILSVRC id; {UNPACK}")
        ids = [int(line) for line in lines]
        if len(ids) != len(images):
            problem = f"{len(ids)} lines for the {len(images)} images of {self.root / 'val'}"
            raise CliptexError(f"{truth}: {problem}; {UNPACK}")
        # line n belongs to image n, so files in another order would get wrong labels
        for number, image in enumerate(images, 1):
            if Path(image).stem != (name := f"ILSVRC2012_val_{number:08d}"):
                raise CliptexError(f"{image}: expected {name} here, for line {number} of {truth}; {UNPACK}")
        wnid_of = read_meta(devkit / "meta.mat")
        label = {wnid: index for index, wnid in enumerate(self.wnids)}
        unknown = {number for number in ids if wnid_of.get(number) not in label}
        if unknown:
            raise CliptexError(f"{truth}: ILSVRC id {min(unknown)} has no folder in {self.root / 'train'}; {UNPACK}")
        return images, [label[wnid_of[number]] for number in ids]


def read_meta(path: Path) -> dict[int, str]:
    """ILSVRC id -> wnid of the leaf synsets (without children), from the development kit's meta.mat."""
    content = read_mat(path, UNPACK, squeeze_me=True)
    try:
        synsets = content["synsets"]
        rows = [(int(row["ILSVRC2012_ID"]), str(row["WNID"]), int(row["num_children"])) for row in synsets]
        if twice := [number for number, count in Counter(number for number, _, _ in rows).items() if count > 1]:
            raise ValueError(f"ILSVRC id {twice[0]} is there twice")
    except (LookupError, TypeError, ValueError) as error:
        raise CliptexError(f"{path}: not the development kit's meta.mat ({error}); {UNPACK}") from error
    return {number: wnid for number, wnid, children in rows if children == 0}


def official_wnids() -> list[str]:
    """The 1000 wnids in label order, from timm's data files (read without importing timm)."""
    folder = Path(find_spec("timm").submodule_search_locations[0])
    return (folder / "data" / "_info" / "imagenet_synsets.txt").read_text(encoding="utf-8").split()


PLUGIN = Imagenet
