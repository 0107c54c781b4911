"""The fingerprint of a run: everything that determines its weights, by which checkpoints are accepted or refused."""

from typing import Any

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.files import read_json, sha256_json
from cliptex.labels.store import read_label_index
from cliptex.versions import TRAIN

EXCLUDED = {"log_every", "checkpoint_every", "trackers", "watch", "compile"}
"""Keys of `train` that may change when a run is resumed."""


def fingerprint(config: Config, name: str, seed: int, precision: str) -> dict[str, Any]:
    """The configuration of a run, and digests of its data and of the model that it starts from, as JSON values.

    Raises CliptexError if a label store was not made with this configuration.
    """
    model = config.models[name]
    shards = [entry["sha256"] for entry in read_json(paths.SHARD_INDEX)["shards"]]
    init = paths.model(model.init, seed) / "train.json" if model.init else None
    return {
        "version": TRAIN,
        "seed": seed,
        "precision": precision,
        "models": {name: model.model_dump(mode="json")},
        "train": config.train.model_dump(mode="json", exclude=EXCLUDED),
        "student": config.student.model_dump(mode="json"),
        "label_stores": {
            store: {"index_sha256": sha256_json(read_label_index(config, store, paths.labels(store) / "index.json"))}
            for store in model.tasks
        },
        "shards": {"number": len(shards), "sha256": sha256_json(shards)},
        "init": {"model_sha256": read_json(init).get("model_sha256")} if init is not None and init.exists() else {},
    }
