"""The recipe of a label store: everything that its labels depend on except the images."""

from pathlib import Path
from typing import Any

from cliptex import versions
from cliptex.config import Config
from cliptex.core.files import read_json, sha256_json
from cliptex.labels.store import SCHEMA_VERSION
from cliptex.tasks.base import Task


def label_recipe(
    config: Config, store: str, task: Task, weights_sha256: str | None, labels_dir: Path
) -> dict[str, Any]:
    """The metadata shared by all label files of a store. `recipe_sha256` covers everything that changes the labels.

    labels_dir: folder of all stores; the index of a store named by `label_stores.*.of` is read from it.
    """
    name = config.label_stores[store].expert
    expert = config.experts[name]
    recipe = {
        "schema_version": SCHEMA_VERSION,
        "task": task.name,
        "expert": name,
        "plugin": expert.plugin or name,
        "weights_sha256": weights_sha256,
        "network": expert.network,
        "batch_size": expert.batch_size,
        "precision": expert.precision,
        "max_side_px": config.labels.max_side_px,
        "max_image_side_px": config.labels.max_image_side_px,
        "codec": task.codec(),
        "frame": "the stored image's frame; longer side of the label grid at most max_side_px",
        "versions": {"label": versions.LABEL},
    }
    weights = expert.weights
    if (source := config.label_stores[store].of) is not None:
        index = read_json(labels_dir / source / "index.json")
        recipe["of"] = {"store": source, "index_sha256": sha256_json(index)}
        # labels derived from those of a random network are as meaningless as these
        weights = "random" if index["weights"] == "random" else weights
    return {**recipe, "recipe_sha256": sha256_json(recipe), "licence": expert.licence_name, "weights": weights}
