"""Places365-Standard classification: the "easy format", or the small images with lists of files."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from cliptex.benchmarks.base import Benchmark
from cliptex.benchmarks.reading import Lazy, files_in, folders_in, read_lines, read_rgb, require_files
from cliptex.core.errors import CliptexError

UNPACK = {
    "easyformat": "unpack places365standard_easyformat.tar here",
    "small": "unpack train_256_places365standard.tar, val_256.tar and filelist_places365-standard.tar here",
}
EASYFORMAT = "places365_standard"
CATEGORIES = "categories_places365.txt"
LISTS = {"train": "places365_train_standard.txt", "eval": "places365_val.txt"}
FOLDERS = {"train": ("data_256", "data_256_standard"), "eval": ("val_256",)}
"""The second name is torchvision's."""


class Places365(Benchmark):
    """`train` and `val`; a label is a category's number in categories_places365.txt, or without it, in the easy format,
    the position of its folder when sorted (the same number).

    Variants: `easyformat`, places365_standard/{train,val}/<category>/*.jpg, with "-" in place of "/" in category names;
    `small`, data_256/a/airfield/*.jpg and val_256/*.jpg with places365_train_standard.txt and places365_val.txt."""

    name = "places365"
    tasks = ("classification",)
    variants = ("easyformat", "small")
    official_counts: ClassVar[dict[str, int]] = {"train": 1_803_460, "eval": 36_500}

    @cached_property
    def categories(self) -> list[str]:
        """Categories in label order, without the leading letter: "airfield", "apartment_building/outdoor"."""
        path = self.root / CATEGORIES
        if not path.exists() and self.variant == "easyformat":
            folders = folders_in(self.root / EASYFORMAT / "train", UNPACK["easyformat"])
            return [folder.replace("-", "/") for folder in folders]
        lines = read_lines(path, UNPACK["small"])
        for number, line in enumerate(lines):
            if not re.fullmatch(rf"/([a-z])/\1[\w/]*\s+{number}", line, re.ASCII):
                expected = f"'/a/airfield {number}' (a category and its number, from 0)"
                raise CliptexError(f"{path}: its line {line[:80]!r} must be like {expected}; {UNPACK['small']}")
        categories = [line.split()[0][3:] for line in lines]
        if len(set(categories)) < len(categories):
            twice = Counter(categories).most_common(1)[0][0]
            raise CliptexError(f"{path}: has the category {twice!r} twice; {UNPACK['small']}")
        return categories

    @cached_property
    def class_names(self) -> list[str]:
        return [category_name(category) for category in self.categories]

    def read(self, part: str) -> Sequence[dict[str, Any]]:
        items = self._listed(part) if self.variant == "small" else self._in_folders(part)
        return Lazy(items, self._read)

    def names(self, part: str) -> Sequence[str]:
        return [self._name(item) for item in self.read(part).items]

    def prepare(self) -> dict[str, Any]:
        """Check that all listed small images exist."""
        for part in self.parts if self.variant == "small" else ():
            names = defaultdict(list)
            for path, _ in self._listed(part):
                folder, _, name = path.rpartition("/")
                names[folder].append(name)
            for folder, listed in names.items():
                require_files(Path(folder), listed, UNPACK["small"])
        return {}

    def _in_folders(self, part: str) -> list[tuple[str, int]]:
        folder = self.root / EASYFORMAT / ("train" if part == "train" else "val")
        label = {category.replace("/", "-"): index for index, category in enumerate(self.categories)}
        items: list[tuple[str, int]] = []
        for category in folders_in(folder, UNPACK["easyformat"]):
            if category not in label:
                raise CliptexError(f"{folder / category}: is not a category of Places365; {UNPACK['easyformat']}")
            images = files_in(folder / category, (".jpg",), UNPACK["easyformat"])
            items += [(path, label[category]) for path in images]
        return items

    def _listed(self, part: str) -> list[tuple[str, int]]:
        """Lines such as "/a/airfield/00000001.jpg 0" and "Places365_val_00000001.jpg 165"."""
        path = self.root / LISTS[part]
        candidates = [self.root / name for name in FOLDERS[part]]
        folder = next((folder for folder in candidates if folder.is_dir()), candidates[0])
        items, classes = [], len(self.categories)
        for line in read_lines(path, UNPACK["small"]):
            name, _, label = line.rpartition(" ")
            if not (label.isdecimal() and label.isascii() and int(label[:9]) < classes) or ".." in name.split("/"):
                problem = f"{line[:80]!r} is not a file name and a label below {classes}"
                raise CliptexError(f"{path}: {problem}; {UNPACK['small']}")
            items.append((f"{folder}/{name.strip().lstrip('/')}", int(label)))
        return items

    def _read(self, item: tuple[str, int]) -> dict[str, Any]:
        path = Path(item[0])
        return {"id": self._name(item), "file": path, "image": read_rgb(path), "label": item[1]}

    def _name(self, item: tuple[str, int]) -> str:
        # file names repeat over categories
        return f"{self.categories[item[1]].replace('/', '-')}/{Path(item[0]).stem}"


def category_name(category: str) -> str:
    """A category as words: "apartment_building/outdoor" -> "outdoor apartment building"."""
    name, _, kind = category.partition("/")
    return f"{kind} {name}".replace("_", " ").strip()


PLUGIN = Places365
