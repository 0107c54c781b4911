"""Wait of training's main process for its batches while it goes from one window of shards to the next.

    python benchmarks/windows.py [--quick] [--pairs 10000] [--label-bytes 2700] [--ranks 8 64] [--window-s 8]

The real loader, with two processes that decode, is the last of 8 and of 64 processes. A thread takes its batches, as
torch's pin_memory thread does where there is a GPU. Windows have 16 shards with three
label stores. The main process sleeps between steps for as long as a step takes: 8 s of compute a window at 8 processes
and 1 s at 64 (`--window-s` is that at 8). Images are tiny and payloads are random bytes in the label store's form, read
but not decoded, since decoding is spread over as many processes as it needs (benchmarks/loader.py). Two windows are in
an epoch; the second and the later ones are measured, over two epochs.

`ratio` is the time for which the main process waits over the compute time, `main` the seconds of its processor over the
compute time. `earlier` is the ratio with an index and label stores of an earlier version, for which the tars' headers
and whole label files are read. The load by others is part of it: `load` is the machine's, over a minute. `--quick`
measures one of 64 processes alone, without `earlier`. The last line is a JSON list.
"""

import argparse
import hashlib
import io
import itertools
import json
import os
import queue
import shutil
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

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
from cliptex.labels.payloads import FILE, payloads_writer
from cliptex.labels.store import LabelFile
from cliptex.tasks.base import View
from cliptex.training.batch import Batch
from cliptex.training.loader import JointLoader

GOAL = 0.02
TASKS = ("segmentation", "depth", "normals")
WINDOW, SHARDS, WINDOWS = 16, 32, 4
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
            store = folder / "labels" / task / f"{number:05d}.parquet"
            store.parent.mkdir(parents=True, exist_ok=True)
            options = {"use_dictionary": False, "write_page_checksum": True, "row_group_size": ROWS_PER_GROUP}
            parquet.write_table(table, store, compression="none", **options)
            record = {"shard": f"{number:05d}", "file": store.name, "bytes": store.stat().st_size}
            digest = hashlib.sha256(store.read_bytes()).hexdigest()
            files[task].append(record | {"sha256": digest, "shard_sha256": described["sha256"]})
    index = write_index(iter(shards), folder / "index.json", 1.0)
    entries = [{**entry, "keys": list(entry["keys"]), "dropped": {}} for entry in index["shards"]]
    write_json(folder / "earlier.json", {"shards": entries})
    for task in TASKS:
        store = folder / "labels" / task
        write_json(store / "index.json", {"files": files[task]})
        shutil.copytree(store, folder / "earlier" / task, copy_function=os.link)
        with payloads_writer(store / FILE) as add:
            for entry, record in zip(index["shards"], files[task], strict=True):
                add(LabelFile(store / record["file"]), record["sha256"], entry["sha256"])


class ReadOnly:
    """A task whose payloads are read, but not decoded."""

    def __init__(self, name: str):
        self.name, self._codec = name, find("tasks", name)().codec()

    def codec(self) -> dict:
        return self._codec

    def target(self, payload: bytes, height: int, width: int, view: View, size: int) -> np.ndarray:
        return np.zeros(1, np.uint8)


def taken_ahead(batches: Iterator[Batch], count: int) -> Iterator[Batch]:
    """The first batches, taken by a thread that is two ahead."""
    ready: queue.Queue[Batch] = queue.Queue(2)

    def take() -> None:
        for batch in itertools.islice(batches, count):
            ready.put(batch)

    thread = threading.Thread(target=take)
    thread.start()
    for _ in range(count):
        yield ready.get()
    thread.join()


def waits(folder: Path, index: str, labels: str, processes: int, step_s: float) -> tuple[list[float], list[float]]:
    """Seconds of waiting, and of the main process' processor, in each measured window."""
    stores = {task: (ReadOnly(task), folder / labels / task / "index.json") for task in TASKS}
    num_pairs = len(read_index(folder / index)["shards"][0]["keys"])
    rows = num_pairs * WINDOW // BATCHES // processes * processes
    train = Train(batch_size=rows, shuffle_shards=WINDOW)
    joint = JointLoader(folder / index, stores, train, 8, 0, rank=processes - 1, processes=processes, workers=2)
    batches, waited, used = taken_ahead(joint.batches(0), WINDOWS * BATCHES), [], []
    for _ in range(WINDOWS):
        seconds, processor = 0.0, time.process_time()
        for _ in range(BATCHES):
            start = time.perf_counter()
            next(batches)
            seconds += time.perf_counter() - start
            time.sleep(step_s)
        waited.append(seconds)
        used.append(time.process_time() - processor)
    return waited[1:], used[1:]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one of 64 processes, without an earlier index")
    parser.add_argument("--pairs", type=int, default=10_000, help="pairs a shard")
    parser.add_argument("--label-bytes", type=int, default=2700, help="bytes of a label")
    parser.add_argument("--ranks", type=int, nargs="+", help="8 and 64")
    parser.add_argument("--window-s", type=float, default=8.0, help="seconds of compute a window at 8 processes")
    options = parser.parse_args(argv)
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_data(folder, options.pairs, options.label_bytes)
        for processes in options.ranks or ([64] if options.quick else [8, 64]):
            step_s = options.window_s * 8 / processes / BATCHES
            compute = BATCHES * step_s
            earlier = [] if options.quick else waits(folder, "earlier.json", "earlier", processes, step_s)[0]
            waited, used = waits(folder, "index.json", "labels", processes, step_s)
            shares, before = ([seconds / compute for seconds in side] for side in (waited, earlier))
            share = float(np.mean(shares))
            results.append(
                {
                    "benchmark": f"windows/{processes}",
                    "ratio": round(share, 4),
                    "spread": [round(min(shares), 4), round(max(shares), 4)],
                    "goal": f"<= {GOAL}",
                    "holds": share <= GOAL,
                    "what": f"wait for batches over compute in windows of 16 shards, one of {processes} processes",
                    "main": round(float(np.mean(used)) / compute, 4),
                    "earlier": round(float(np.mean(before)), 3) if before else None,
                    "compute_s": round(compute, 3),
                    "pairs_per_shard": options.pairs,
                    "label_bytes": options.label_bytes * len(TASKS),
                    "load": round(os.getloadavg()[0], 1),
                    "machine": machine(),
                }
            )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
