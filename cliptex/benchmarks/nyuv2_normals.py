"""Published normals of NYU-v2: their encodings, their axes, and a pickle file that is read without executing it."""

import gzip
import pickle
import pickletools
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cliptex.core.errors import CliptexError
from cliptex.core.files import read_error, replacing, require_file
from cliptex.core.progress import track

FOCAL, CENTRE = (518.858, 519.470), (325.582, 253.736)
"""Intrinsics of the colour camera, pixels of a 640 x 480 image (camera_params.m of the official toolbox)."""
STEP = 4
"""Distance of the neighbours from which normals are computed, pixels of a 640 x 480 image."""
MIN_COSINE = 0.5
"""Mean cosine with normals computed from depth, below which published normals belong to other images."""
MAX_RATIO, MAX_PICKLE = 100, 20 << 30
"""Maximum bytes of the unpacked pickle, per byte of the file and in all; 1,449 images of 640 x 480 in float64 are
10.7 GB, from 0.8 GB."""
MAX_OPERATIONS = 1_000_000
"""Maximum number of a pickle's operations, each of which may create an object."""


def decode_normals(encoded: np.ndarray) -> np.ndarray:
    """8-bit [H, W, 3] to unit vectors float32 [H, W, 3]; (0, 0, 0) becomes NaN."""
    normals = encoded.astype(np.float32) / 255 * 2 - 1
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    normals[(encoded == 0).all(-1)] = np.nan
    return normals


# ---- axes


@dataclass(frozen=True)
class Axes:
    """Conversion of published normals to ours (x right, y down, z forward, away from the visible side): the published
    components that are our x, y, z, and their signs."""

    order: tuple[int, int, int] = (0, 1, 2)
    signs: tuple[int, int, int] = (1, 1, 1)

    def apply(self, normals: np.ndarray) -> np.ndarray:
        """Convert normals [..., 3] to our axes."""
        return normals[..., list(self.order)] * np.array(self.signs, normals.dtype)


def normals_of_depth(depth: np.ndarray) -> np.ndarray:
    """Normals float32 [H, W, 3] of a depth map [H, W] in metres for NYU's camera: cross products of the differences
    between neighbouring points; NaN at edges and for invalid depth."""
    height, width = depth.shape
    scale = width / 640
    step = max(1, round(STEP * scale))
    columns, rows = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    x = (columns - CENTRE[0] * scale) / (FOCAL[0] * scale)
    y = (rows - CENTRE[1] * scale) / (FOCAL[1] * scale)
    points = np.stack([x * depth, y[:, None] * depth, depth], axis=-1)
    out = np.full((height, width, 3), np.nan, np.float32)
    inner = (slice(step, -step), slice(step, -step))
    across = points[step:-step, 2 * step :] - points[step:-step, : -2 * step]
    down = points[2 * step :, step:-step] - points[: -2 * step, step:-step]
    normals = np.cross(across, down)
    jump = np.maximum(abs(across[..., 2]), abs(down[..., 2])) > 0.1 * depth[inner]
    normals[jump] = np.nan
    out[inner] = normals / np.linalg.norm(normals, axis=-1, keepdims=True)
    return out


def axes_by_depth(pairs: Iterable[tuple[np.ndarray, np.ndarray]], subject: str) -> tuple[Axes, float]:
    """The axes for which published normals agree best with normals computed from depth, and their mean cosine.

    pairs: published normals [H, W, 3], depth [H, W] in metres. Publications do not state the direction of their axes.
    Raises CliptexError, beginning with `subject`, if no axes agree, since the normals then belong to other images.
    """
    total, count = np.zeros((3, 3)), 0
    for published, depth in pairs:
        computed = normals_of_depth(depth)
        valid = np.isfinite(published).all(-1) & np.isfinite(computed).all(-1)
        total += published[valid].astype(np.float64).T @ computed[valid].astype(np.float64)
        count += int(valid.sum())
    if not count:
        raise CliptexError(f"{subject}: no pixel has both a normal and a depth; install the official files")
    mean = total / count
    candidates = [Axes(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]
    scores = [sum(axes.signs[ours] * mean[axes.order[ours], ours] for ours in range(3)) for axes in candidates]
    best = int(np.argmax(scores))
    if scores[best] < MIN_COSINE:
        problem = f"do not match the depth of their images for any axes (mean cosine {scores[best]:.2f})"
        raise CliptexError(f"{subject}: {problem}; they belong to other images, or are in another order")
    return candidates[best], float(scores[best])


# ---- the pickle


def store_ladicky(source: Path, target: Path) -> None:
    """Convert FAIR's all_normals.pklz to an HDF5 file: `normals` float16 [N, H, W, 3], NaN = invalid. Image n of the
    labelled set is entry n - 1. Raises CliptexError if the file contains anything but arrays."""
    import h5py

    content = read_arrays(source)
    try:
        normals, names = content["all_normals"], content["all_filenames"]
        masks = content.get("all_valid_depth_masks")
        indices = [int(name) - 1 for name in np.asarray(names).ravel().tolist()]
        count, height, width, _ = normals.shape
        if sorted(indices) != list(range(count)) or normals.shape[-1] != 3 or normals.dtype.kind != "f":
            raise ValueError(f"{count} images with numbers {min(indices) + 1} to {max(indices) + 1}, {normals.dtype}")
        if masks is not None and np.shape(masks) != normals.shape[:3]:
            raise ValueError(f"masks {np.shape(masks)} for normals {normals.shape}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CliptexError(f"{source}: does not contain the published normals ({error}); download it again") from error
    with replacing(target) as scratch, h5py.File(scratch, "w") as file:
        options = {"chunks": (1, height, width, 3), "compression": "gzip", "compression_opts": 1}
        out = file.create_dataset("normals", normals.shape, np.float16, **options)
        for position, index in enumerate(track(indices, "store normals")):
            vectors = normals[position].astype(np.float32)
            length = np.linalg.norm(vectors, axis=-1)
            vectors[length < 0.5] = np.nan
            if masks is not None:
                vectors[~np.asarray(masks[position], bool)] = np.nan
            out[index] = vectors / length[..., None]


def read_arrays(path: Path) -> dict[str, Any]:
    """Read a gzipped pickle of a dictionary of arrays, strings and numbers, without importing or calling what it names.
    Raises CliptexError if it names anything but NumPy's arrays. It is unpacked twice: objects are counted first."""
    require_file(path, "download it (docs/data.md)")
    try:
        limit = min(MAX_PICKLE, MAX_RATIO * path.stat().st_size + (1 << 20))
        with gzip.open(path) as file:
            for number, (operation, argument, _) in enumerate(pickletools.genops(_Bounded(file, limit))):
                # the C reader keeps a list up to the largest number of a PUT
                if number > MAX_OPERATIONS or ("PUT" in operation.name and not 0 <= int(argument) <= MAX_OPERATIONS):
                    raise pickle.UnpicklingError(f"it has over {MAX_OPERATIONS:,} operations")
        with gzip.open(path) as file:
            content = _Arrays(_Bounded(file, limit), encoding="latin1").load()
    except Exception as error:  # damaged pickles raise many kinds of errors
        remedy = "nothing in it was executed; download it again"
        raise read_error(error, path, "a pickle of plain arrays", remedy) from error
    if not isinstance(content, dict):
        raise CliptexError(f"{path}: not a dictionary of arrays; download it again")
    return {str(name): value.array if isinstance(value, _Array) else value for name, value in content.items()}


class _Bounded:
    def __init__(self, file: Any, limit: int):
        self._file, self._left = file, limit

    def read(self, size: int = -1) -> bytes:
        return self._counted(self._file.read(self._left + 1 if size < 0 else min(size, self._left + 1)))

    def readline(self) -> bytes:
        return self._counted(self._file.readline(self._left + 1))

    def _counted(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise pickle.UnpicklingError("it is far too large")
        return data


class _Dtype:
    """Replacement for numpy.dtype."""

    __slots__ = ("dtype",)

    def __init__(self, text: str = "", *_: Any):
        if text[:1] not in "fiubSUO" or not text[1:].isdigit():
            raise pickle.UnpicklingError(f"an array of {text!r}")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Replacement for numpy.ndarray."""

    __slots__ = ("array",)

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, data = state
        if isinstance(data, list):  # an array of objects, which were read by this class as well
            if not all(isinstance(item, str | int | float | bytes) for item in data):
                raise pickle.UnpicklingError("an array of objects")
            self.array = np.array(data).reshape(shape)
            return
        if kind.dtype.hasobject:
            raise pickle.UnpicklingError("an array of objects")
        data = data.encode("latin1") if isinstance(data, str) else data
        self.array = np.frombuffer(data, kind.dtype).reshape(shape, order="F" if fortran else "C")


class _Function:
    """Replacement for a function that rebuilds arrays. It has no attributes, so that a pickle cannot set any."""

    __slots__ = ("_function",)

    def __init__(self, function: Any):
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function with a state")


def _empty(kind: Any, *_: Any) -> _Array:
    if kind is not _Array:
        raise pickle.UnpicklingError("an unknown array class")
    return _Array()


def _from_buffer(data: bytes, kind: _Dtype, shape: tuple, order: str) -> _Array:
    out = _Array()
    out.__setstate__((1, shape, kind, order == "F", bytes(data)))
    return out


class _Arrays(pickle.Unpickler):
    """An unpickler that only knows replacements for the few names that rebuild arrays."""

    KNOWN: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("numpy.core.multiarray", "_reconstruct"): _Function(_empty),
        ("numpy.core.numeric", "_frombuffer"): _Function(_from_buffer),
        ("_codecs", "encode"): _Function(lambda text, *_: text.encode("latin1")),
    }

    def find_class(self, module: str, name: str) -> Any:
        replacement = self.KNOWN.get((module.replace("numpy._core", "numpy.core"), name))
        if replacement is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return replacement
