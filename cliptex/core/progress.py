"""Progress of long loops: a bar on a terminal, else log lines."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
LOG_EVERY_S = 10.0
bars = True
"""Whether bars are allowed; the command line disables them for jobs that share a terminal."""


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` and show the progress: a bar if stderr is a terminal, else a log line every 10 seconds.

    Both show the rate and, if the number of items is known, the remaining time.
    """
    total = total if total is not None else (len(items) if hasattr(items, "__len__") else None)
    if bars and sys.stderr.isatty():
        yield from tqdm(items, desc=description, total=total, leave=False)
        return
    log = logging.getLogger("cliptex")
    start = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - last >= LOG_EVERY_S:
            last = now
            log.info("%s: %d%s%s", description, done, f"/{total}" if total else "", _pace(done, now - start, total))
        yield item


def _pace(done: int, seconds: float, total: int | None) -> str:
    """Rate and remaining time after `done` items, such as ", 3.1 per second, 02:10 left"; "" before the first."""
    if not done:
        return ""
    rate = f"{done / seconds:.3g} per second" if done >= seconds else f"{seconds / done:.3g} s each"
    left = f", {tqdm.format_interval(seconds / done * (total - done))} left" if total else ""
    return f", {rate}{left}"
