"""ImageNet-Sketch: sketch/<wnid>/*.JPEG."""

from typing import ClassVar

from cliptex.benchmarks.class_folders import ClassFolders


class ImagenetSketch(ClassFolders):
    """50,889 sketches of ImageNet's 1,000 classes (Wang et al. 2019)."""

    name = "imagenet_sketch"
    official_counts: ClassVar[dict[str, int]] = {"eval": 50_889}
    folder = "sketch"
    unpack = "unpack ImageNet-Sketch.zip here"


PLUGIN = ImagenetSketch
