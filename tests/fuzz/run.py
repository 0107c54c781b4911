"""Give one reader damaged files for a while: `python tests/fuzz/run.py READER --seconds 60 --folder F`.

An input is determined by the seed and its number, so that `--first N --count 1` repeats it. Prints a JSON line: the
number of inputs, and the faults, each with the input's number and the place where its file is kept.
"""

import argparse
import contextlib
import faulthandler
import json
import logging
import os
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
import zlib
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "fuzz")]

import numpy as np  # noqa: E402
from mutations import damaged  # noqa: E402
from readers import READERS  # noqa: E402

from cliptex.core.errors import CliptexError, ConfigError  # noqa: E402

LIMIT_S = 20
"""Longest time for one input."""
MEMORY = 3 << 30
"""Bytes that a reader may take beyond what the libraries have."""
MANY = 12


class TooSlow(BaseException):
    """Not an Exception, so that no reader takes it for a damaged file."""


def stop(*_):
    raise TooSlow


def fault(reader, number: int) -> str | None:
    """What is wrong with how the files are read; None if it ends well."""
    signal.alarm(LIMIT_S)
    faulthandler.dump_traceback_later(3 * LIMIT_S, exit=True)
    try:
        reader.read()
        return None
    except reader.also:
        return None
    except CliptexError as error:
        text = str(error)
        if "not enough memory" in text:
            return f"takes too much memory: {text[:300]}"
        lines = error.lines if isinstance(error, ConfigError) else [text]
        if not text or any("\n" in line or len(line) > 4000 for line in lines) or len(lines) > 200:
            return f"not a line: {text[:300]!r}"
        return None
    except TooSlow:
        return f"takes more than {LIMIT_S} s at " + _place(sys.exc_info()[2])
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {str(error)[:200]!r} at {_place(error.__traceback__)}"
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()


def _place(trace) -> str:
    frames = traceback.extract_tb(trace)
    own = [frame for frame in frames if "/cliptex/" in frame.filename] or frames[-1:]
    return f"{own[-1].filename.partition('/cliptex/')[2] or own[-1].filename}:{own[-1].lineno} {own[-1].name}"


def replaced(path: Path, rng) -> bool:
    """Now and then something else stands under the name: nothing, a folder, a pipe, a link to itself."""
    what = rng.integers(200)
    if what > 3:
        return False
    path.unlink()
    if what == 1:
        path.mkdir()
    elif what == 2:
        os.mkfifo(path)
    elif what == 3:
        path.symlink_to(path.name)
    return True


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int)
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    work, faults = given.folder / "work", given.folder / "faults"
    work.mkdir(parents=True)
    os.chdir(work)
    reader = READERS[given.reader](work)
    whole = {path: path.read_bytes() for path in reader.files}
    with contextlib.suppress(*reader.also):
        reader.read()  # the files are valid, and libraries are imported before memory is limited
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, resource.RLIM_INFINITY))
    signal.signal(signal.SIGALRM, stop)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    found: dict[str, list] = {}
    number, end = given.first, time.monotonic() + given.seconds
    progress = given.folder / "number"
    while (given.count is None or number < given.first + given.count) and time.monotonic() < end:
        progress.write_text(str(number))
        rng = np.random.default_rng([given.seed, zlib.crc32(given.reader.encode()), number])
        path = reader.files[rng.integers(len(reader.files))]
        if not replaced(path, rng):
            path.write_bytes(damaged(whole[path], rng, [data for other, data in whole.items() if other != path][:20]))
        if problem := fault(reader, number):
            if problem not in found:
                kept = faults / f"{number}-{path.name}"
                kept.parent.mkdir(exist_ok=True)
                if path.is_file():
                    shutil.copyfile(path, kept)
                found[problem] = [number, str(path.relative_to(work)), str(kept)]
            if len(found) >= MANY:
                break
        for other, data in whole.items():  # readers delete some, too
            if other == path or not other.exists():
                remove(other)
                other.parent.mkdir(parents=True, exist_ok=True)
                other.write_bytes(data)
        number += 1
    print(json.dumps({"inputs": number - given.first, "faults": found}))


if __name__ == "__main__":
    main()
