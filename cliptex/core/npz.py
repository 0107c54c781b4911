"""Read the arrays of an .npz file that comes from elsewhere: nothing in it runs, and its claims are checked first."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

UNPACKED, RATIO = 2**26, 100
"""Most bytes of a file's arrays: this number, and this many times the file's own."""


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; no code in it is executed. What the file claims is checked before it takes memory.
    NumPy and zipfile raise many kinds of errors for a damaged file, and for arrays of objects."""
    import numpy as np

    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with zipfile.ZipFile(path) as archive:
        size, limit = (
            sum(member.file_size for member in archive.infolist()),
            UNPACKED + RATIO * Path(path).stat().st_size,
        )
        if size > limit:
            raise ValueError(f"{size:,} bytes unpacked, more than {limit:,}")
        for member in archive.infolist():
            with archive.open(member) as file:
                read_header = headers[np.lib.format.read_magic(file)]
                shape, _, dtype = read_header(file)
                if file.tell() + math.prod(shape) * (dtype.itemsize or 1) != member.file_size:
                    raise ValueError(f"{member.filename}: its header does not fit its length")
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)
