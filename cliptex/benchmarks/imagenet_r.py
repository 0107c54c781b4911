"""ImageNet-R: imagenet-r/<wnid>/*.jpg."""

from typing import ClassVar

from cliptex.benchmarks.class_folders import ClassFolders


class ImagenetR(ClassFolders):
    """30,000 renditions of 200 of ImageNet's classes (Hendrycks et al. 2021), classified among these 200."""

    name = "imagenet_r"
    official_counts: ClassVar[dict[str, int]] = {"eval": 30_000}
    folder = "imagenet-r"
    unpack = "unpack imagenet-r.tar here"
    has_all_classes = False


PLUGIN = ImagenetR
