"""ImageNet-V2, matched frequency: imagenetv2-matched-frequency-format-val/<number of the class>/*.jpeg."""

from typing import ClassVar

from cliptex.benchmarks.class_folders import ClassFolders


class ImagenetV2(ClassFolders):
    """10,000 images, ten of each class (Recht et al. 2019). Folders are named 0..999, by the position of the class
    among ImageNet's sorted wnids."""

    name = "imagenet_v2"
    official_counts: ClassVar[dict[str, int]] = {"eval": 10_000}
    folder = "imagenetv2-matched-frequency-format-val"
    unpack = "unpack imagenetv2-matched-frequency.tar.gz here"

    @property
    def class_folders(self) -> list[str]:
        return [str(number) for number in range(1000)]


PLUGIN = ImagenetV2
