"""Decode images and encode labels in parallel with the expert's forward passes.

For an expert on the CPU, threads are enough: decoders and codecs are C code that releases the GIL. A GPU consumes
images faster than one Python process can decode them, so worker processes are used. The output does not depend on
either. Imports nothing heavy, since every worker imports this module.
"""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from itertools import chain, islice
from multiprocessing.connection import wait
from typing import Any, Self

import numpy as np

from cliptex.core.errors import working_on
from cliptex.data.images import BadImage, open_image, shrunk
from cliptex.data.shards import Pair
from cliptex.tasks.base import Task

THREADS = 2
AHEAD = 2
"""Batches decoded in advance, and batches waiting to be encoded; more would only cost memory."""
MAX_GATHERED_BYTES = 256 << 20
"""Of decoded images that wait for others of their size."""

Predicted = tuple[np.ndarray, dict[str, Any]] | str
"""A label and its extra columns, or the reason why there is no label."""
Submitted = tuple[dict[str, Any], Future] | str
"""The extra columns and the future of `encode`, or the reason."""


class Pipeline:
    """Workers that decode images and encode labels. A context manager: they end with it.

    max_side_px: larger labels are shrunk to it. max_image_side_px: likewise for images, before the expert sees them.
    workers: number of processes; 0 uses threads of this process.
    """

    def __init__(self, task: Task, max_side_px: int, max_image_side_px: int, workers: int = 0):
        self.task, self.max_side_px, self.max_image_side_px = task, max_side_px, max_image_side_px
        spawn = multiprocessing.get_context("spawn")  # forking a process that uses CUDA or has threads is unsafe
        self._pool: Executor = (
            ProcessPoolExecutor(workers, spawn, _end_with_parent) if workers else ThreadPoolExecutor(THREADS, "label")
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def rows(
        self,
        shard: str,
        windows: list[list[Pair]],
        predict: Callable[[dict[str, np.ndarray]], dict[str, Predicted]],
        batch_size: int,
        key: Callable[[int, int], Hashable] | None = None,
    ) -> Iterator[list[dict[str, Any]]]:
        """Yield the rows of each window, in order: `key`, and either `error` or `height width payload`, the task's
        scalars and the expert's extra columns.

        shard: for errors. predict: called in the calling thread with images that could be decoded, by key: all of a
        window, or with `key` those of `batches`. batch_size also bounds how many are decoded or encoded at a time.
        """
        upcoming = chain.from_iterable(windows)
        decoding: deque[Future] = deque()
        encoding: deque[Future] = deque()
        finished: deque[list[tuple[str, Submitted]]] = deque()

        def decode_more(count: int) -> None:
            for pair in islice(upcoming, count):
                decoding.append(self._pool.submit(decode, pair.image, self.max_image_side_px))

        def decoded(pairs: list[Pair]) -> Iterator[tuple[str, np.ndarray | str]]:
            for pair in pairs:
                image = _result(decoding.popleft(), shard, pair.key)
                decode_more(1)
                yield pair.key, image

        decode_more(AHEAD * batch_size)
        for window in windows:
            submitted: dict[str, Submitted] = {}
            for batch in batches(decoded(window), batch_size, key):
                images = {name: image for name, image in batch.items() if not isinstance(image, str)}
                predicted = predict(images) if images else {}
                new = {name: self._submit(name, image, predicted) for name, image in batch.items()}
                encoding += [one[1] for one in new.values() if not isinstance(one, str)]
                while len(encoding) > (AHEAD + 1) * batch_size:
                    encoding.popleft().exception()  # waits; what it raised is raised with its row
                submitted |= new
            finished.append([(pair.key, submitted[pair.key]) for pair in window])
            if len(finished) > AHEAD:
                yield _finished(finished.popleft(), shard)
        while finished:
            yield _finished(finished.popleft(), shard)

    def _submit(self, key: str, image: np.ndarray | str, predicted: dict[str, Predicted]) -> Submitted:
        outcome = image if isinstance(image, str) else predicted[key]
        if isinstance(outcome, str):
            return outcome
        label, extras = outcome
        if self.task.aligned and label.shape[:2] != image.shape[:2]:
            raise TypeError(f"the expert gave a {label.shape} label of a {image.shape} image {key}")
        return extras, self._pool.submit(encode, self.task, label, self.max_side_px)


def batches(
    images: Iterable[tuple[str, np.ndarray | str]], batch_size: int, key: Callable[[int, int], Hashable] | None
) -> Iterator[dict[str, np.ndarray | str]]:
    """Group the images of a window, given by name. key: of a height and width; without it all are one batch. With it, a
    batch has at most `batch_size` images of one key; it is complete when it has so many, when the images that wait take
    256 MB, or at the end of the window. So it depends on the images of its window alone."""
    if key is None:
        yield dict(images)
        return
    waiting: dict[Hashable, dict[str, np.ndarray | str]] = {}
    gathered = 0
    for name, image in images:
        size = () if isinstance(image, str) else key(*image.shape[:2])
        batch = waiting.setdefault(size, {})
        batch[name] = image
        gathered += 0 if isinstance(image, str) else image.nbytes
        if len(batch) == batch_size:
            gathered -= sum(image.nbytes for image in batch.values() if not isinstance(image, str))
            yield waiting.pop(size)
        elif gathered > MAX_GATHERED_BYTES:
            yield from waiting.values()
            waiting, gathered = {}, 0
    yield from waiting.values()


def _result(future: Future, shard: str, key: str) -> Any:
    with working_on(f"{shard}, key {key!r}"):
        return future.result()


def _finished(batch: list[tuple[str, Submitted]], shard: str) -> list[dict[str, Any]]:
    rows = []
    for key, submitted in batch:
        if isinstance(submitted, str):
            rows.append({"key": key, "error": submitted})
        else:
            extras, future = submitted
            encoded = _result(future, shard, key)
            rows.append({"key": key, **({} if "error" in encoded else extras), **encoded})
    return rows


def decode(data: bytes, max_side_px: int) -> np.ndarray | str:
    """The image, uint8 [H, W, 3], longer side at most `max_side_px`; or the reason why it cannot be used."""
    try:
        image = open_image(data)
    except BadImage as error:
        return f"bad image: {error}"
    scale = max_side_px / max(image.size)
    if scale < 1:
        image = shrunk(image, *(max(1, round(side * scale)) for side in image.size))
    return np.asarray(image)


def encode(task: Task, label: np.ndarray, max_side_px: int) -> dict[str, Any]:
    """`height width payload` and the task's scalars of the label, longer side at most `max_side_px`; or `error`."""
    height, width = label.shape[:2]
    scale = max_side_px / max(height, width)
    if scale < 1:
        label = task.resize(label, max(1, round(height * scale)), max(1, round(width * scale)))
    try:
        payload = task.encode(label)
    except ValueError as error:
        return {"error": f"unusable label: {error}"}
    return {"height": label.shape[0], "width": label.shape[1], "payload": payload, **task.scalars(label)}


def _end_with_parent() -> None:
    """Worker initialiser: exit when the parent does, even if it is killed; otherwise workers would be orphaned."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
