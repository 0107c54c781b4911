"""Commands of the group `cliptex labels`: inspect, verify and export label stores."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cliptex.cli.common import DEFAULT, ConfigFiles, Count, Seed, echo, load_config, require_store
from cliptex.core import paths
from cliptex.core.errors import CliptexError

if TYPE_CHECKING:
    from cliptex.config import Config

Stores = Annotated[str, typer.Option(help="Names in `label_stores`, separated by commas; all if empty.")]


def export(
    out: Path,
    stores: Stores = "",
    file_format: Annotated[str, typer.Option("--format")] = "png",
    images: bool = True,
    shards: str = "",
    config_files: ConfigFiles = DEFAULT,
) -> None:
    """Write WebDataset tars of images, captions and labels, and labels.json, which describes their contents.

    Args:
        out: Folder for the tars.
        file_format: png (small) or npy (exact).
        images: Whether to include images and captions.
        shards: First and last shard, such as 0-9; all if empty.
    """
    from cliptex.labels.export import export_labels

    if file_format not in ("png", "npy"):
        raise CliptexError(f"--format: {file_format!r} is neither png nor npy")
    config = load_config(config_files)
    names, numbers = _stores(config, stores), _shard_range(shards)
    record = export_labels(config, names, paths.SHARD_INDEX, paths.LABELS, out, file_format, images, numbers)
    echo(f"{out}: {len(record['files'])} tars, {sum(file['samples'] for file in record['files'])} samples")


def publish(
    out: Path,
    store: Annotated[str, typer.Option(help="Name of an entry in `label_stores`.")],
    licence: str = "",
    images: bool = False,
    shards: str = "",
    config_files: ConfigFiles = DEFAULT,
) -> None:
    """Write a label store as a data set for the Hugging Face hub, which `label_stores.*.from` and `datasets` read.

    Args:
        out: New folder for the data set.
        licence: Of the labels, as the hub writes it; that of the expert's weights if empty.
        images: Whether to include images and captions.
        shards: First and last shard, such as 0-9; all if empty.
    """
    from cliptex.labels.publish import publish_labels

    config = load_config(config_files)
    numbers = _shard_range(shards)
    require_store(config, store)
    record = publish_labels(config, store, paths.SHARD_INDEX, paths.LABELS, out, licence or None, images, numbers)
    echo(f"{out}: {record['labelled']} labels of {record['rows']} images, licence {record['licence']}")


def inspect(
    out: Path = paths.RESULTS / "labels.png",
    stores: Stores = "",
    images: Count = 8,
    config_files: ConfigFiles = DEFAULT,
) -> None:
    """Draw images next to their labels, and print the statistics of each store.

    Args:
        out: File for the contact sheet.
        images: Rows of the sheet.
    """
    from cliptex.labels.inspect import contact_sheet, statistics

    config = load_config(config_files)
    names = _stores(config, stores)
    contact_sheet(config, names, paths.SHARD_INDEX, paths.LABELS, out, images)
    echo("\n".join([*(statistics(config, name, paths.LABELS) for name in names), f"contact sheet: {out}"]))


def audit(stores: Stores = "", samples: Count = 8, config_files: ConfigFiles = DEFAULT, seed: Seed = 0) -> None:
    """Label random images again with the experts, or take their labels again; exit code 1 if any differs.

    Args:
        samples: Images to label again in each store.
    """
    from cliptex.experts.training import load_expert
    from cliptex.labels.audit import advice, audit_labels, report
    from cliptex.labels.take import audit_taken

    config = load_config(config_files)
    differing = {}
    for name in _stores(config, stores):
        expert_name, out_dir = config.label_stores[name].expert, paths.labels(name)
        if expert_name is None:
            folder = paths.published_labels(name)
            findings = audit_taken(config, name, paths.SHARD_INDEX, folder, out_dir, samples, seed)
        else:
            expert = load_expert(expert_name, config.experts[expert_name], paths.expert(expert_name))
            findings = audit_labels(config, name, paths.SHARD_INDEX, expert, out_dir, samples, seed)
        echo(report(findings, name))
        if not all(finding.agrees for finding in findings):
            differing[paths.labels(name)] = findings
    if differing:
        raise CliptexError(advice(differing))


def agreement(images: Count = 100, out: Path | None = None, config_files: ConfigFiles = DEFAULT) -> None:
    """Compare the label stores of each task in pairs; write results/labels/agreement.json.

    Args:
        images: Images, spread evenly over the data set, whose labels are compared.
        out: File to write instead.
    """
    from cliptex.labels.agreement import measure_agreement

    record = measure_agreement(load_config(config_files), paths.SHARD_INDEX, paths.LABELS, images, out)
    for pair in record["pairs"]:
        values = pair["quality"] or {}
        if pair["agreement"] is not None:
            values = {"agreement": pair["agreement"]} | values
        text = ", ".join(f"{name} {value:.4g}" for name, value in values.items()) or "cannot be compared"
        echo(f"{' and '.join(pair['stores'])} ({pair['task']}, {pair['images']} images): {text}")


def _stores(config: "Config", names: str) -> list[str]:
    stores = [name for name in names.split(",") if name] or list(config.label_stores)
    if not stores:
        raise CliptexError(
            "label_stores: empty, so there is nothing to do; give the run's configuration: --config FILE"
        )
    return [require_store(config, name, "--stores") for name in stores]


def _shard_range(shards: str) -> range | None:
    """The numbers of `first-last`, or of a single shard; None for all."""
    if not shards:
        return None
    first, _, last = shards.partition("-")
    if not first.isdigit() or not (last or first).isdigit():
        raise CliptexError(f"--shards: {shards!r} is not a range such as 0-9")
    if int(last or first) < int(first):
        raise CliptexError(f"--shards: {shards!r} has no shards; write the smaller number first")
    return range(int(first), int(last or first) + 1)
