"""Progress of long work: a bar on a terminal, a line now and then in a log."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
LOG_EVERY_S = 10.0
bars = True
"""Whether a bar may be drawn; the command line clears it for jobs that share a terminal."""


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield `items`, showing how far it is: a bar if stderr is a terminal, else a log line every 10 seconds.

    Either has the rate and, where the number of items is known, the time left.
    """
    total = total if total is not None else (len(items) if hasattr(items, "__len__") else None)
    if bars and sys.stderr.isatty():
        yield from tqdm(items, desc=what, total=total, leave=False)
        return
    log = logging.getLogger("cliptex")
    start = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - last >= LOG_EVERY_S:
            last = now
            log.info("%s: %d%s%s", what, done, f"/{total}" if total else "", _pace(done, now - start, total))
        yield item


def _pace(done: int, seconds: float, total: int | None) -> str:
    """ ", 3.1 a second, 02:10 left" after `done` items; "" before the first."""
    if not done:
        return ""
    rate = f"{done / seconds:.3g} a second" if done >= seconds else f"{seconds / done:.3g} s each"
    left = f", {tqdm.format_interval(seconds / done * (total - done))} left" if total else ""
    return f", {rate}{left}"
