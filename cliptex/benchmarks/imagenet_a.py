"""ImageNet-A: imagenet-a/<wnid>/*.jpg."""

from typing import ClassVar

from cliptex.benchmarks.class_folders import ClassFolders


class ImagenetA(ClassFolders):
    """7,500 photographs of 200 of ImageNet's classes, on which a ResNet-50 fails (Hendrycks et al. 2021), classified
    among these 200."""

    name = "imagenet_a"
    official_counts: ClassVar[dict[str, int]] = {"eval": 7_500}
    folder = "imagenet-a"
    unpack = "unpack imagenet-a.tar here"
    has_all_classes = False


PLUGIN = ImagenetA
