"""A plan of `cliptex.cluster.plan` as text."""

from typing import Any

from cliptex.cluster.dry_run import described

ACTIONS = {"download": "to download", "missing": "to download manually", "": "to use in place"}
"""What will be done with a benchmark's file, by `cliptex.data.official.archives.ArchiveLocation.how`."""


def shown(plan: dict[str, Any]) -> str:
    """The plan as text."""
    images = plan["images"]
    number = "?" if images["number"] is None else f"{images['number']:,}"
    lines = [
        *([described(plan["jobs"])] if "jobs" in plan else []),
        f"images  {images['shards']:,} shards; {number} images ({images['number_from']});"
        f" {in_bytes(images['bytes'])} ({images['bytes_from']})",
    ]
    for name, store in plan["stores"].items():
        rate = "?" if store["images_a_second"] is None else f"{store['images_a_second']:.3g}"
        size, per_image = in_bytes(store["bytes"]), in_bytes(store["bytes_an_image"])
        lines += [
            f"{name}  {store['task']} by {store['expert']}: {store['jobs']:,} jobs",
            f"    labels  {size}, {per_image} per image ({store['bytes_from']})",
            f"    expert  {_hours(store['seconds'])} one job at a time, {rate} images per second"
            f" ({store['seconds_from']})",
        ]
    totals = {key: [store[key] for store in plan["stores"].values()] for key in ("jobs", "bytes", "seconds")}
    jobs, size, seconds = (None if None in values else sum(values) for values in totals.values())
    lines.append(f"total  {jobs:,} labelling jobs, labels {in_bytes(size)}, experts {_hours(seconds)}")
    lines += [f"{name}  {_training_line(model, images)}" for name, model in plan["models"].items()]
    if plan["weights"]:
        lines.append(f"weights  {', '.join(plan['weights'])} to download")
    lines += [*_benchmark_lines(plan["benchmarks"]), *_feature_lines(plan["features"])]
    return "\n".join([*lines, *(f"missing  {line}" for line in plan["missing"])])


def _training_line(model: dict[str, Any], images: dict[str, Any]) -> str:
    steps, pairs = ("?" if model[key] is None else f"{model[key]:,}" for key in ("steps", "pairs"))
    line = f"{steps} steps of {model['batch_size']:,} pairs"
    if model["epochs"] is None:
        return line
    return f"{line}: {model['epochs']:g} epochs of {pairs} pairs ({images['number_from']})"


STORAGE = {
    "disk": "kept on disk",
    "memory": "more than probes.cache_gb; held in memory, recomputed by the next run",
    "nowhere": "more than probes.cache_gb and probes.memory_gb; the encoder runs in every step",
    None: "unknown until the encoder is built",
}


READ_BYTES_S = 1e9
"""Assumed rate at which stored features are read from disk."""


def _feature_lines(features: dict[str, dict[str, Any]]) -> list[str]:
    """The sizes of the features on which each benchmark's probes are trained, and what is read of those that do not fit
    in memory."""
    lines = []
    for name, plan in features.items():
        if (views := plan["views"]) is None:
            lines.append(f"{name}  features ? bytes: unknown number of images")
            continue
        size = f"{in_bytes(plan['bytes_a_model'])} ({views['train']:,} + {views['eval']:,} views)"
        memory = in_bytes(plan["memory"])
        truths = f", training truths {in_bytes(plan['truths'])}" if plan["truths"] else ""
        lines.append(f"{name}  features per model {size}, as float32 {memory}{truths}; {STORAGE[plan['place']]}")
        if plan["place"] == "disk" and plan["bytes_read"]:
            hours = _hours(plan["bytes_read"] / READ_BYTES_S)
            read = f"{plan['views_read']:,} views, {in_bytes(plan['bytes_read'])}: {hours} at 1 GB/s (assumed)"
            lines.append(f"{name}  heads of a model read {read}, in the background")
    return lines


def _benchmark_lines(benchmarks: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The files of each benchmark: to download, to download manually, or to use in place."""
    lines, total = [], 0
    for name, files in benchmarks.items():
        parts = []
        for how, action in ACTIONS.items():
            chosen = [file for file in files if ACTIONS.get(file["how"], ACTIONS[""]) == action]
            if chosen:
                size = sum(file["bytes"] or 0 for file in chosen)
                total += size if how == "download" else 0
                parts.append(f"{', '.join(file['file'] for file in chosen)} {action} ({in_bytes(size or None)})")
        lines.append(f"{name}  {'; '.join(parts) or 'all in place, not checked yet'}")
    return [*lines, f"total  {in_bytes(total)} of benchmarks to download"] if lines else []


def in_bytes(count: float | None) -> str:
    """A number of bytes with its unit; "?" if it is not known."""
    if count is None:
        return "? bytes"
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"


def _hours(seconds: float | None) -> str:
    if seconds is None:
        return "? hours"
    return f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{seconds:,.0f} s"
