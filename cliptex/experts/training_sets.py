"""Names of data sets that experts were trained on, and which benchmarks' images these hold."""

import re
from collections.abc import Sequence
from typing import NamedTuple

NOT_STATED = "not stated"
"""Name in place of training sets that nobody states."""
SPLIT = re.compile(r"(.+?)[/ ]((?:train|trainaug|trainval|val|test|all)(?:\d{4})?)", re.IGNORECASE)
TRAINING = re.compile(r"train(aug)?\d*")
"""Splits without images of the official evaluation splits. VOC's trainaug leaves out the images of val."""

TITLES = {
    "voc": "Pascal VOC",
    "ade20k": "ADE20K",
    "coco": "COCO",
    "nyuv2": "NYUv2",
    "imagenet": "ImageNet",
    "imagenet21k": "ImageNet-21k",
    "places365": "Places365",
    "cityscapes": "Cityscapes",
    "kitti": "KITTI",
    "pascal_context": "PASCAL-Context",
    "imagenet_v2": "ImageNet-V2",
    "imagenet_r": "ImageNet-R",
    "imagenet_a": "ImageNet-A",
    "imagenet_sketch": "ImageNet-Sketch",
    "objectnet": "ObjectNet",
    "scannet": "ScanNet",
    "hypersim": "Hypersim",
    "virtual_kitti": "Virtual KITTI 2",
    "mapillary_vistas": "Mapillary Vistas",
    "sun_rgbd": "SUN RGB-D",
    "sbd": "SBD",
    "lvis": "LVIS",
    "visual_genome": "Visual Genome",
}
ALIASES = {
    "pascalvoc": "voc",
    "voc2012": "voc",
    "pascalvoc2012": "voc",
    "ade": "ade20k",
    "ade20k150": "ade20k",
    "sceneparse150": "ade20k",
    "mscoco": "coco",
    "coco2017": "coco",
    "coco2014": "coco",
    "cocopanoptic": "coco",
    "cocostuff": "coco",
    "cococaptions": "coco",
    "nyu": "nyuv2",
    "nyudepthv2": "nyuv2",
    "imagenet1k": "imagenet",
    "ilsvrc2012": "imagenet",
    "imagenet22k": "imagenet21k",
    "places": "places365",
    "places365standard": "places365",
    "vkitti": "virtual_kitti",
    "vkitti2": "virtual_kitti",
    "virtualkitti2": "virtual_kitti",
}
"""Letters and digits of other names -> name."""
OVERLAPS = {
    # the training images of ILSVRC 2012 are part of it (Deng et al. 2009; Russakovsky et al. 2015, section 3.1)
    "imagenet21k": {"imagenet": "train"},
    # images of COCO, those of its val with images of COCO's train and val (Gupta et al. 2019, section 3)
    "lvis": {"coco": ""},
    # images in both COCO and YFCC100M (Krishna et al. 2017, section 4.1)
    "visual_genome": {"coco": ""},
    # has the 1,449 labelled images of NYUv2 (Song et al. 2015, section 3)
    "sun_rgbd": {"nyuv2": ""},
    # images of VOC 2011's trainval (Hariharan et al. 2011), which has those of VOC 2010
    "sbd": {"voc": "", "pascal_context": ""},
    # has images of VOC 2010, whose split is another than that for segmentation (Mottaghi et al. 2014, section 3)
    "pascal_context": {"voc": ""},
    "voc": {"pascal_context": ""},
}
"""Data set -> benchmarks whose images it has, with the benchmark's split ("" if it may be any)."""
SAME_IMAGES = {"coco_stuff": "coco", "scannet1500": "scannet"}
"""Benchmark -> the one whose images and splits it has, or the data set of which it is the test split."""


class TrainingSet(NamedTuple):
    """A data set that an expert, or the network that it started from, was trained on."""

    name: str
    """The benchmark's name in cliptex/benchmarks/, or another name; `NOT_STATED` for what is unknown."""
    split: str = ""
    """Official name of the split; empty if it is not stated."""
    how: str = ""
    """What it was used for, if not for the expert's own task."""

    @property
    def text(self) -> str:
        """`COCO train2017`, `ImageNet train (backbone)`."""
        title = TITLES.get(self.name, self.name)
        return " ".join(filter(None, (title, self.split, f"({self.how})" if self.how else "")))

    def has_images_of(self, benchmark: str) -> str | None:
        """Whether it has images of a benchmark: "data set" for those of training splits alone, "images" if the
        evaluated ones may be among them, None if neither is known."""
        benchmark, split = SAME_IMAGES.get(benchmark, benchmark), self.split
        if self.name.lower() != benchmark:
            overlaps = OVERLAPS.get(self.name, {})
            if benchmark not in overlaps:
                return None
            split = overlaps[benchmark]
        return "data set" if TRAINING.fullmatch(split) else "images"


def parse(text: str) -> TrainingSet:
    """A data set as users write it: a name, and a split after a slash or a space (`coco/train2017`). Names of the same
    data set with other capitals, hyphens or version numbers are read alike."""
    text = text.strip()
    name, split = match.groups() if (match := SPLIT.fullmatch(text)) else (text, "")
    letters = re.sub("[^a-z0-9]", "", name.lower())
    known = {re.sub("[^a-z0-9]", "", key): key for key in TITLES} | ALIASES
    return TrainingSet(known.get(letters, name), split.lower())


def in_words(sets: Sequence[TrainingSet]) -> str:
    """`COCO train2017; backbone: ImageNet train`."""
    grouped: dict[str, dict[str, None]] = {}
    for one in sets:
        grouped.setdefault(one.how, {})[one._replace(how="").text] = None
    return "; ".join(f"{how}: {', '.join(of)}" if how else ", ".join(of) for how, of in grouped.items())
