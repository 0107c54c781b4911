"""The 80 object categories of COCO 2017, in official order."""

from functools import cache
from importlib.resources import files


@cache
def coco_categories() -> list[tuple[int, str, str]]:
    """(id, name, supercategory) of each category, with COCO's sparse ids 1..90. The contiguous class of a category is
    its position + 1 (0 is background)."""
    lines = files("cliptex.benchmarks").joinpath("coco_categories.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return [(int(number), name, group) for number, name, group in (line.split("\t") for line in lines)]
