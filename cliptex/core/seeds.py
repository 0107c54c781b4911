"""Seeds derived from numbers and names."""

import zlib


def seed_of(*parts: int | str) -> int:
    """A seed derived from numbers and names; the same on every machine."""
    import numpy as np  # here, since cliptex.core must be fast to import

    words = [part if isinstance(part, int) else zlib.crc32(part.encode()) for part in parts]
    return int(np.random.default_rng(words).integers(2**31))
