"""NYU Depth v2, the labelled set: nyu_depth_v2_labeled.mat, splits.mat, and normals as 8-bit PNG files.

The normals are those of `nyu_dataset/{train,test}/norm/{index:06d}.png` (Ladicky et al., in the form that Bae et al.
publish): n = rgb / 255 * 2 - 1, where (0, 0, 0) is "no normal".
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cliptex.benchmarks.base import Benchmark
from cliptex.benchmarks.reading import Lazy, existing, read_rgb
from cliptex.errors import CliptexError

DOWNLOAD = "put the official file here (see docs)"


class Nyuv2(Benchmark):
    """The official 795 training and 654 test images; depth in metres is the in-painted one of the file."""

    name = "nyuv2"
    tasks = ("depth", "normals")
    eval_split = "test"

    def __init__(self, root: Path):
        super().__init__(root)
        self._file = None

    @property
    def class_names(self) -> list[str]:
        return []

    def _open(self) -> Any:
        """The HDF5 file (MATLAB v7.3), opened once."""
        import h5py

        if self._file is None:
            path = existing(self.root / "nyu_depth_v2_labeled.mat", DOWNLOAD)
            try:
                file = h5py.File(path, "r")
            except OSError as error:
                raise CliptexError(f"{path}: not an HDF5 (MATLAB v7.3) file ({error}); {DOWNLOAD}") from error
            for field, dimensions in (("images", 4), ("depths", 3)):
                if field not in file or file[field].ndim != dimensions:
                    raise CliptexError(f"{path}: has no {dimensions}-dimensional {field!r}; {DOWNLOAD}")
            # MATLAB's H x W x 3 x N is N x 3 x W x H in HDF5: the order of the axes is reversed
            count, channels, width, height = file["images"].shape
            if channels != 3 or file["depths"].shape != (count, width, height):
                raise CliptexError(f"{path}: images {file['images'].shape} and depths {file['depths'].shape} disagree")
            self._file = file
        return self._file

    def samples(self, part: str) -> Sequence[dict[str, Any]]:
        from scipy.io import loadmat

        count = self._open()["images"].shape[0]
        path = existing(self.root / "splits.mat", DOWNLOAD)
        field = "trainNdxs" if part == "train" else "testNdxs"
        splits = loadmat(path)
        if field not in splits:
            raise CliptexError(f"{path}: has no {field!r}; {DOWNLOAD}")
        numbers = splits[field].ravel().astype(int).tolist()
        if not numbers or min(numbers) < 1 or max(numbers) > count:
            raise CliptexError(f"{path}: {field} must hold 1-based indices up to {count}; {DOWNLOAD}")
        return Lazy(numbers, lambda number: self._read(number, "train" if part == "train" else "test"))

    def _read(self, number: int, split: str) -> dict[str, Any]:
        file = self._open()
        image = np.ascontiguousarray(file["images"][number - 1].transpose(2, 1, 0))
        depth = np.ascontiguousarray(file["depths"][number - 1].T).astype(np.float32)
        depth[~(np.isfinite(depth) & (depth > 0))] = np.nan
        path = self.root / "nyu_dataset" / split / "norm" / f"{number:06d}.png"
        encoded = read_rgb(path)
        if encoded.shape != image.shape:
            raise CliptexError(f"{path}: {encoded.shape[:2]} differs from the image's {image.shape[:2]}; {DOWNLOAD}")
        return {"id": f"{number:06d}", "image": image, "depth": depth, "normals": decode_normals(encoded)}


def decode_normals(encoded: np.ndarray) -> np.ndarray:
    """8-bit [H, W, 3] to unit vectors float32 [H, W, 3]; (0, 0, 0) gives NaN."""
    normals = encoded.astype(np.float32) / 255 * 2 - 1
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    normals[(encoded == 0).all(-1)] = np.nan
    return normals


PLUGIN = Nyuv2
