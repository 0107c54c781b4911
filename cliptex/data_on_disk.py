"""What must be put in place by hand and is not there yet. Imports nothing heavy: the workflow asks at every start."""

from pathlib import Path

from cliptex import paths
from cliptex.config import Config

OFFICIAL = {
    "voc": "VOCtrainval_11-May-2012.tar",
    "ade20k": "ADEChallengeData2016.zip",
    "coco": "train2017.zip, val2017.zip and annotations_trainval2017.zip",
    "nyuv2": "nyu_depth_v2_labeled.mat, splits.mat and nyu_dataset.zip",
    "imagenet": "ILSVRC2012_img_train.tar and its inner tars, ILSVRC2012_img_val.tar, ILSVRC2012_devkit_t12.tar.gz",
    "places365": "places365standard_easyformat.tar",
}
"""What the folder of a benchmark holds, unpacked."""


def missing_data(config: Config) -> list[str]:
    """A line for each list of urls, and for each benchmark to probe, that is not there; none for the miniature."""
    if config.dataset.source == "miniature":
        return []
    lists = config.dataset.urls.files if config.dataset.source == "urls" and config.dataset.urls else []
    lines = [
        f"{name}: not there yet; the download needs this list of urls (dataset.urls.files, docs/data.md)"
        for name in lists
        if not Path(name).exists()
    ]
    for name in dict.fromkeys([*config.probes.benchmarks, *config.zeroshot.benchmarks]):
        if not paths.benchmark(name).exists():
            content = OFFICIAL.get(name, "its data")
            lines.append(f"{paths.benchmark(name)}: not there yet; the probes need it, with {content} (docs/data.md)")
    return lines
