"""Start of a training process, and writing and size of the shard index, for up to a billion pairs.

    python benchmarks/index.py [--quick] [--shards 1300 13000] [--pairs 10000] [--folder /tmp]

Indexes of `--shards` shards of `--pairs` pairs each are written with the product's writer from tables as a shard's job
leaves them, with keys of nine digits. Each tar has only its first pair, so little but the index grows. Disk: 40 bytes a
pair, and 74 more while it is written. `--quick` writes 130 and 1,300 shards.

Each start is a process of its own, at two sizes: CPU seconds from the index's path to the first step's samples,
without the import of torch; memory is the growth of that process' own memory (`RssAnon`, without pages of files) from
after the imports, at its peak (sampled every 10 ms) and at the end. `ratio` is the start's time at the largest size;
`exponent` is that of the time by the number of shards, and `billion` what it gives at 130,000 shards, which are 1.3
billion pairs.
Writing is given in CPU seconds and in bytes of memory a pair, at its peak beyond the first shard's. The last line is a
JSON list.
"""

import argparse
import hashlib
import io
import json
import math
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from machine import machine

from cliptex.data.samples_file import LOCATION
from cliptex.data.shard_index import TABLE_SCHEMA, write_index

GOAL_S, GOAL_MB, BILLION_SHARDS = 5.0, 200.0, 130_000
START = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from index import Memory, time
from cliptex.config import Train
from cliptex.training.loader import JointLoader
memory = Memory()
start = time.process_time()
options = Train(batch_size=int(sys.argv[2]), held_out=4096)
with memory:
    loader = JointLoader(Path(sys.argv[1]), {}, options, 224, 0, rank=0, processes=64)
    loaded = time.process_time() - start
    drawn = next(loader._drawn(loader.steps(), 0, 64))
    places = [loader._stored.location(sample) for sample in drawn.sample_ids.tolist()]
seconds = time.process_time() - start
print(json.dumps({"seconds": seconds, "loader_seconds": loaded, "peak_mb": memory.peak, "kept_mb": memory.kept}))
"""


def anonymous_mb() -> float:
    """This process' own memory, MiB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


class Memory:
    """Growth of this process' own memory in a `with` block, MiB."""

    def __enter__(self) -> None:
        self._before = self.peak = anonymous_mb()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(0.01):
            self.peak = max(self.peak, anonymous_mb())

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        now = anonymous_mb()
        self.peak, self.kept = round(max(self.peak, now) - self._before, 1), round(now - self._before, 1)


def write_first(path: Path, key: str) -> None:
    """A tar with one pair."""
    with tarfile.open(path, "w") as tar:
        for suffix in ("jpg", "txt"):
            info = tarfile.TarInfo(f"{key}.{suffix}")
            info.size = 100
            tar.addfile(info, io.BytesIO(bytes(100)))


def tables(folder: Path, shards: int, pairs: int) -> Iterator[tuple[dict, pa.Table]]:
    """Descriptions and tables of shards, with drawn digests."""
    rng, empty = np.random.default_rng(0), pa.nulls(pairs, pa.string())
    side, status = pa.array(np.full(pairs, 256, np.int32)), pa.array(["ok"] * pairs)
    places = dict.fromkeys(LOCATION, pa.array(np.full(pairs, 1536)))
    for shard in range(shards):
        keys = pa.array([f"{number:09d}" for number in range(shard * pairs, (shard + 1) * pairs)])
        digests = rng.bytes(32 * pairs).hex()
        digests = pa.array([digests[64 * row : 64 * row + 64] for row in range(pairs)])
        rows = pa.table([keys, status, empty, empty, digests, side, side], schema=TABLE_SCHEMA)
        for name, values in places.items():
            rows = rows.append_column(name, values)
        digest = hashlib.sha256(str(shard).encode()).hexdigest()
        yield (
            {"shard": f"{shard:05d}", "path": str(folder / f"{shard:05d}.tar"), "sha256": digest, "bytes": 10240},
            rows,
        )


def measure(folder: Path, shards: int, pairs: int) -> dict:
    """Write an index and start from it."""
    for shard in range(shards):
        write_first(folder / f"{shard:05d}.tar", f"{shard * pairs:09d}")
    index, memory, made = folder / f"{shards}" / "index.json", Memory(), time.process_time()
    for _ in tables(folder, min(shards, 100), pairs):
        pass
    start = time.process_time()
    made = (start - made) * shards / min(shards, 100)
    with memory:
        write_index(tables(folder, shards, pairs), index, 1.0)
    written = time.process_time() - start - made
    samples = index.with_name("samples.arrow").stat().st_size
    command = [sys.executable, "-c", START, str(index), str(64 * 64), str(Path(__file__).parent)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    starts = [
        json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)
        for _ in range(3)
    ]
    begun = sorted(starts, key=lambda one: one["seconds"])
    result = {
        "shards": shards,
        "pairs": shards * pairs,
        **begun[1],
        "spread_s": [begun[0]["seconds"], begun[-1]["seconds"]],
        "written_us_a_pair": round(1e6 * written / (shards * pairs), 2),
        "writing_bytes_a_pair": round(memory.peak * 2**20 / (shards * pairs), 1),
        "samples_bytes_a_pair": round(samples / (shards * pairs), 1),
        "index_json_bytes_a_shard": round(index.stat().st_size / shards),
    }
    index.with_name("samples.arrow").unlink()
    return result


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="130 and 1,300 shards")
    parser.add_argument("--shards", type=int, nargs=2, default=None, help="two sizes, ascending")
    parser.add_argument("--pairs", type=int, default=10_000, help="pairs a shard")
    parser.add_argument("--folder", type=Path, help="place for the index, by default TMPDIR")
    options = parser.parse_args(argv)
    small, large = options.shards or ((130, 1300) if options.quick else (1300, 13_000))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        sizes = [measure(Path(folder), shards, options.pairs) for shards in (small, large)]
    exponent = math.log(sizes[1]["seconds"] / sizes[0]["seconds"]) / math.log(large / small)
    steeper = max(exponent, 0.0)
    factor = BILLION_SHARDS / large
    billion = {
        "seconds": round(sizes[1]["seconds"] * factor**steeper, 2),
        "peak_mb": round(
            sizes[1]["peak_mb"] + (sizes[1]["peak_mb"] - sizes[0]["peak_mb"]) / (large - small) * (factor - 1) * large
        ),
    }
    result = {
        "benchmark": "index",
        "ratio": round(sizes[1]["seconds"], 3),
        "spread": [round(seconds, 3) for seconds in sizes[1]["spread_s"]],
        "goal": f"<= {GOAL_S} s and {GOAL_MB:.0f} MB at 1.3 billion pairs",
        # of few shards, memory grows with those that are checked at the start, of which there are at most 64
        "holds": None if options.quick else billion["seconds"] <= GOAL_S and billion["peak_mb"] <= GOAL_MB,
        "what": "CPU seconds from the index to the first step's samples of one of 64 processes, without label stores",
        "exponent": round(exponent, 2),
        "billion": billion,
        "sizes": sizes,
        "machine": machine(),
    }
    print(json.dumps([result]))


if __name__ == "__main__":
    main()
