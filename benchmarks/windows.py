"""Wait of training's main process for the labels and locations of the next window of shards.

    python benchmarks/windows.py [--quick] [--pairs 10000] [--label-bytes 2700] [--ranks 8 64] [--window-s 8]

One process draws its samples as the last of 8 and of 64 would, from windows of 16 shards with three label stores, and
sleeps between steps for as long as a step takes: 8 s of compute a window at 8 processes and 1 s at 64 (`--window-s` is
that at 8). Images are tiny and not decoded, since other processes do that; payloads are random bytes in the label
store's form. Two windows are in an epoch; the second and the later ones are measured, over two epochs.

`ratio` is the time for which the process waits for samples over the compute time. `without` is the same with windows
loaded when they are needed, and with an index of an earlier version, for which the tars' headers are read in the first
epoch. The processor's load by others is part of both: `load` is the machine's, over a minute. `--quick` takes 2,000
pairs a shard, and a fifth of the compute. The last line is a JSON list.
"""

import argparse
import hashlib
import io
import json
import os
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
from machine import machine
from pyarrow import parquet

from cliptex.config import Train
from cliptex.core.files import write_json
from cliptex.core.plugins import find
from cliptex.data.images import encode_jpeg
from cliptex.data.shard_index import TABLE_SCHEMA, describe_shard, read_index, write_index
from cliptex.labels.files import ROWS_PER_GROUP
from cliptex.training import loader
from cliptex.training.loader import JointLoader

GOAL = 0.02
TASKS = ("segmentation", "depth", "normals")
WINDOW, SHARDS = 16, 32
BATCHES = 40
"""Steps a window."""


def write_tar(path: Path, keys: list[str], image: bytes) -> None:
    with tarfile.open(path, "w") as tar:
        for key in keys:
            for suffix, data in (("jpg", image), ("txt", b"a caption")):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def make_data(folder: Path, pairs: int, label_bytes: int) -> None:
    """Tars, label stores, index.json and earlier.json."""
    image, rng = encode_jpeg(np.zeros((8, 8, 3), np.uint8)), np.random.default_rng(0)
    shards, files = [], {task: [] for task in TASKS}
    for number in range(SHARDS):
        keys = [f"{number:05d}{row:04d}" for row in range(pairs)]
        path = folder / f"{number:05d}.tar"
        write_tar(path, keys, image)
        described, side = describe_shard(number, path), pa.array(np.full(pairs, 8, np.int32))
        empty = pa.nulls(pairs, pa.string())
        digests = pa.array([hashlib.sha256(key.encode()).hexdigest() for key in keys])
        columns = [pa.array(keys), pa.array(["ok"] * pairs), empty, empty, digests, side, side]
        shards.append((described, pa.table(columns, schema=TABLE_SCHEMA)))
        for task in TASKS:
            data = rng.bytes(label_bytes * pairs)
            payloads = [data[label_bytes * row : label_bytes * (row + 1)] for row in range(pairs)]
            about = {"schema_version": 1, "task": task, "codec": find("tasks", task)().codec()}
            columns = {"key": keys, "height": side, "width": side, "payload": pa.array(payloads, pa.binary())}
            table = pa.table(columns | {"error": empty}).replace_schema_metadata({"cliptex": json.dumps(about)})
            store = folder / task / f"{number:05d}.parquet"
            store.parent.mkdir(exist_ok=True)
            options = {"use_dictionary": False, "write_page_checksum": True, "row_group_size": ROWS_PER_GROUP}
            parquet.write_table(table, store, compression="none", **options)
            record = {"shard": f"{number:05d}", "file": store.name, "bytes": store.stat().st_size}
            digest = hashlib.sha256(store.read_bytes()).hexdigest()
            files[task].append(record | {"sha256": digest, "shard_sha256": described["sha256"]})
    index = write_index(iter(shards), folder / "index.json", 1.0)
    entries = [{**entry, "keys": list(entry["keys"]), "dropped": {}} for entry in index["shards"]]
    write_json(folder / "earlier.json", {"shards": entries})
    for task in TASKS:
        write_json(folder / task / "index.json", {"files": files[task]})


def loaded_when_needed(load, windows) -> Iterator:
    for window in windows:
        yield load(*window)


def waits(folder: Path, name: str, processes: int, step_s: float) -> tuple[list[float], float]:
    """Seconds of waiting in each measured window, and of compute in one."""
    stores = {task: (find("tasks", task)(), folder / task / "index.json") for task in TASKS}
    num_pairs = read_index(folder / name)["shards"][0]["keys"]
    rows = len(num_pairs) * WINDOW // BATCHES // processes * processes
    train = Train(batch_size=rows, shuffle_shards=WINDOW)
    joint = JointLoader(folder / name, stores, train, 224, 0, rank=processes - 1, processes=processes)
    windows: list[float] = []
    with closing(joint._samples(joint.steps(), processes - 1, processes)) as samples:
        for window in range(4):
            waited = 0.0
            for _ in range(BATCHES):
                start = time.perf_counter()
                next(samples)
                waited += time.perf_counter() - start
                time.sleep(step_s)
            windows += [waited] if window else []
    return windows, BATCHES * step_s


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,000 pairs a shard, a fifth of the compute")
    parser.add_argument("--pairs", type=int, help="pairs a shard")
    parser.add_argument("--label-bytes", type=int, default=2700, help="bytes of a label")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--window-s", type=float, help="seconds of compute a window at 8 processes")
    options = parser.parse_args(argv)
    pairs = options.pairs or (2000 if options.quick else 10_000)
    window_s = options.window_s or (1.6 if options.quick else 8.0)
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_data(folder, pairs, options.label_bytes)
        for processes in options.ranks:
            step_s = window_s * 8 / processes / BATCHES
            with mock.patch.object(loader, "load_ahead", loaded_when_needed):
                before, compute = waits(folder, "earlier.json", processes, step_s)
            after, _ = waits(folder, "index.json", processes, step_s)
            shares = [[seconds / compute for seconds in side] for side in (after, before)]
            share = float(np.mean(shares[0]))
            results.append(
                {
                    "benchmark": f"windows/{processes}",
                    "ratio": round(share, 4),
                    "spread": [round(min(shares[0]), 4), round(max(shares[0]), 4)],
                    "goal": f"<= {GOAL}",
                    "holds": share <= GOAL,
                    "what": f"wait for samples over compute in windows of 16 shards, one of {processes} processes",
                    "without": [round(each, 3) for each in shares[1]],
                    "compute_s": round(compute, 3),
                    "pairs_per_shard": pairs,
                    "label_bytes": options.label_bytes * len(TASKS),
                    "load": round(os.getloadavg()[0], 1),
                    "machine": machine(),
                }
            )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
