"""Commands that make image-caption pairs and benchmarks available."""

from typing import Annotated

import typer

from cliptex.cli.common import DEFAULT, ConfigFiles, Count, Index, load_config, load_config_with_protocols
from cliptex.core import paths
from cliptex.core.cache import cached
from cliptex.core.errors import CliptexError

MinYield = Annotated[
    float | None, typer.Option(min=0, max=1, help="Minimum share of usable samples; default: dataset.min_yield.")
]


def render_pairs(shard: Index, config_files: ConfigFiles = DEFAULT) -> None:
    """Render a shard of image-caption pairs (the miniature's replacement for CC3M).

    Args:
        shard: Number of the shard.
    """
    from cliptex.data.miniature.sets import render_pairs

    config, path = load_config(config_files), paths.shard(shard)
    settings = ["render-pairs", config.subset("miniature"), shard]
    cached(settings, path.parent, lambda: render_pairs(config.miniature, shard, path), file=path.name)


def render_experts(part: str, config_files: ConfigFiles = DEFAULT) -> None:
    """Render the labelled scenes that the experts are trained on.

    Args:
        part: train or val.
    """
    from cliptex.data.miniature.sets import render_expert_set

    config, path = load_config(config_files), paths.EXPERT_RENDERS / f"{part}.h5"
    settings = ["render-experts", config.subset("miniature"), part]
    cached(settings, path.parent, lambda: render_expert_set(config.miniature, part, path), file=path.name)


def render_benchmark(name: str, config_files: ConfigFiles = DEFAULT, look: str = "") -> None:
    """Render a benchmark in its official layout.

    Args:
        name: voc, ade20k, coco, nyuv2, imagenet, places365, spair71k, davis2017 or scannet1500.
        look: dusk: only the evaluation scenes, in another light.
    """
    from cliptex.data.miniature.layouts import render_benchmark

    config, folder = load_config(config_files), paths.benchmark(f"{name}_{look}" if look else name)
    settings = ["render-benchmark", config.subset("miniature", naming=name), name, look]
    cached(settings, folder, lambda: render_benchmark(config.miniature, name, folder, look or "benchmark"))


def render_captions(name: str, config_files: ConfigFiles = DEFAULT) -> None:
    """Render held-out captioned images, on which retrieval is evaluated.

    Args:
        name: Name of an entry in `zeroshot.retrieval` that has `rendered`.
    """
    from cliptex.data.miniature.sets import render_captions

    config = load_config(config_files)
    caption_set = config.zeroshot.retrieval.get(name)
    if caption_set is None or caption_set.rendered is None:
        raise CliptexError(f"zeroshot.retrieval.{name}.rendered: missing; set the number of images to render")
    count, folder = caption_set.rendered, paths.benchmark(name)
    settings = ["render-captions", config.subset("miniature"), count]
    cached(settings, folder, lambda: render_captions(config.miniature, count, folder))


def fetch(
    benchmark: str,
    config_files: ConfigFiles = DEFAULT,
    evaluation_only: bool | None = None,
    part: str | None = None,
) -> None:
    """Download a benchmark's official data, or take them from your folder; verify and describe them.

    Args:
        benchmark: Name of a benchmark, such as voc.
        evaluation_only: Only the data of the evaluation split; the default if no probe of the configuration needs more.
        part: Only this optional part: panoptic, COCO's panoptic annotations. Default: all that the configuration needs.
    """
    from cliptex.data.official.fetch import fetch, fetch_part
    from cliptex.data.official.status import parts_in_use

    config, benchmark_dir = load_config_with_protocols(config_files), paths.benchmark(benchmark)
    if part is None:
        fetch(config, benchmark, benchmark_dir, evaluation_only)
    for name in parts_in_use(config, benchmark) if part is None else [part]:
        fetch_part(config, benchmark, benchmark_dir, name)


def download_pairs(batch: Index, config_files: ConfigFiles = DEFAULT, processes: Count = 1) -> None:
    """Download a batch of web images with img2dataset, in the environment named in download.python.

    Args:
        batch: Number of the batch of download.shards_per_job shards.
        processes: Processes of img2dataset.
    """
    from cliptex.data.download import run_img2dataset

    run_img2dataset(load_config(config_files), batch, processes)


def build_shards(
    batch: Index, config_files: ConfigFiles = DEFAULT, workers: Count = 1, min_yield: MinYield = None
) -> None:
    """Build a batch of shards from its download, or fetch and verify existing tars.

    Args:
        batch: Number of the batch of download.shards_per_job shards.
        workers: Images converted at the same time.
    """
    from cliptex.data.download import build_shards

    build_shards(load_config(config_files), batch, workers, min_yield)


def index_shards(config_files: ConfigFiles = DEFAULT, min_yield: MinYield = None) -> None:
    """Check that keys are unique and enough samples usable; write results/shards/index.json."""
    from cliptex.data.download import built_shards
    from cliptex.data.shard_index import index_shards, write_index
    from cliptex.data.shard_paths import data_sha256, num_downloads, shard_paths

    config = load_config(config_files)
    min_yield = config.dataset.min_yield if min_yield is None else min_yield
    options = (paths.SHARD_INDEX, min_yield, config.dataset.max_repeats, data_sha256(config))
    if config.dataset.source == "miniature":
        index_shards(shard_paths(config), *options)
    else:
        write_index(built_shards(num_downloads(config)), *options)
