"""Open arrays of an HDF5 file that nobody vouches for. The library follows what a file names: virtual arrays (one of
itself ends the process), other files, filters loaded from the system's folders; and it reads what was never written as
zeros."""

from math import prod
from typing import Any

FILTERS = {1, 2, 3, 32000}
"""Filters that are built in: deflate, shuffle, fletcher32, and h5py's LZF."""
MAX_CHUNK_BYTES = 256 << 20
"""Maximum bytes of a chunk, which is unpacked at once."""


def open_array(file: Any, name: str, dimensions: int, kinds: str) -> Any:
    """The h5py.Dataset `name` of an open h5py.File. kinds: letters of NumPy's kinds of numbers that it may have.

    Raises ValueError if it is not an array of these, is not completely in the file, or needs a filter.
    """
    import h5py

    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"has no {name!r} of its own")
    array = file[name]
    # the shape of a virtual array is not asked for, since the answer opens its sources
    if not isinstance(array, h5py.Dataset) or array.is_virtual or array.external:
        raise ValueError(f"{name!r} is not an array that is stored in the file")
    if array.ndim != dimensions or array.dtype.kind not in kinds or not array.size:
        raise ValueError(f"{name!r} is {array.dtype} {array.shape}, not {dimensions}-dimensional of kind {kinds!r}")
    properties = array.id.get_create_plist()
    filters = {properties.get_filter(index)[0] for index in range(properties.get_nfilters())}
    if unknown := filters - FILTERS:
        raise ValueError(f"{name!r} needs the HDF5 filter {min(unknown)}")
    if array.chunks:
        if prod(array.chunks) * array.dtype.itemsize > MAX_CHUNK_BYTES:
            raise ValueError(f"{name!r} has chunks of {array.chunks}, over {MAX_CHUNK_BYTES >> 20} MB")
        expected = prod(-(-length // chunk) for length, chunk in zip(array.shape, array.chunks, strict=True))
        stored = array.id.get_num_chunks()
    else:
        expected, stored = array.nbytes, array.id.get_storage_size()
    if stored != expected:
        raise ValueError(f"{name!r} is incomplete: {stored:,} of {expected:,} {'chunks' if array.chunks else 'bytes'}")
    return array
