"""Decode images from the web to RGB pixels, and encode JPEG and PNG. Bad input is an error with a short reason.

The cost of an image is bounded: pixels are counted in the header, scans of a JPEG and the tags of TIFF and EXIF data
before they are decoded, and Pillow bounds what a compressed text or colour profile may unpack to.
"""

import importlib
import io
import re
import struct
import warnings
from contextlib import suppress
from functools import cache
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, features

from cliptex.core.errors import CliptexError

MAX_PIXELS = 50_000_000
MIN_SIDE_PX = 8
MAX_SCANS = 100
MAX_SCANNED_PIXELS = 20 * MAX_PIXELS
"""Pixels times scans of a progressive JPEG: each scan costs about as much as a decoding. Encoders write 10 scans."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MORE_FORMATS = ("TIFF", "AVIF", "JPEG2000", "PPM", "HEIF", "JXL")
"""Formats that are decoded if Pillow, or a plugin, can."""
PLUGINS = {"pillow_heif": "register_heif_opener", "pillow_jxl": None}
"""Optional modules (extra `formats`) that add a format to Pillow, and the function that does it, if not the import."""
MAX_EXIF_TEXT = 1 << 17
"""Characters of EXIF data as hexadecimal text in a PNG, twice what a JPEG can hold."""
CODECS = {"jpg": "JPEG", "zlib": "PNG", "webp": "WebP"}
SIGNATURES = {
    "heic": rb"....ftyp(heic|heix|hevc|hevx|heim|heis|mif1|msf1)",
    "avif": rb"....ftypavi[fs]",
    "jpeg xl": rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n",
    "jpeg xr": rb"II\xbc",
    "openexr": rb"v/1\x01",
}
"""Signatures of image formats that Pillow may not know."""
JPEG_MARKER = re.compile(rb"\xff([^\0\x01\xd0-\xd8\xff])", re.DOTALL)
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""Of a TIFF file, and of EXIF data in any file; the last two with 64-bit offsets."""
TIFF_VALUE_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Of the types of values; of all others 1."""
MAX_DIRECTORY_BYTES, HEADER_COST = 1 << 25, 256
"""What the directories of a file may hold beyond four times its bytes; what finding one counts as, in bytes."""
TIFF_DIRECTORIES = (0x8769, 0x8825, 0xA005)
"""Tags that point to a further directory."""


Decoder = Literal["pillow", "torchvision"]


class BadImage(ValueError):
    """The bytes are not a usable image. The message is a short reason, the same for all such images."""


SEQUENTIAL, START_OF_SCAN = (0xC0, 0xC1), 0xDA
SKIPPED = {0xC4, 0xDB, 0xDD, 0xE0, *range(0xE2, 0xEE), 0xEF, 0xFE}
"""JPEG segments that change neither size nor colours nor orientation: tables, restart interval, JFIF and other
applications' data but EXIF (0xE1) and Adobe (0xEE), comments."""
RGB = 3
"""`torchvision.io.ImageReadMode.RGB`."""


def require_codecs() -> None:
    """Raise CliptexError if Pillow was built without a codec: good images would seem to be corrupt."""
    missing = [kind for feature, kind in CODECS.items() if not features.check(feature)]
    if missing:
        raise CliptexError(
            f"Pillow cannot decode {', '.join(missing)}; reinstall it: pip install --force-reinstall pillow"
        )


@cache
def decodable() -> tuple[str, ...]:
    """Pillow's names of the formats that are decoded here; registers the optional plugins."""
    for module, register in PLUGINS.items():
        with suppress(ImportError):
            plugin = importlib.import_module(module)
            if register:
                getattr(plugin, register)()
    Image.init()
    return tuple(name for name in FORMATS + MORE_FORMATS if name in Image.OPEN)


def require_decoder(decoder: Decoder) -> None:
    """Raise CliptexError if the decoder is not installed."""
    if decoder == "torchvision":
        import torch
        import torchvision  # noqa: F401  registers the function

        if not hasattr(torch.ops.image, "decode_jpeg"):
            raise CliptexError(
                "train.decoder: torchvision was built without JPEG; reinstall it (pip install --force-reinstall"
                " torchvision), or set train.decoder to pillow"
            )


def decode_image(data: bytes, decoder: Decoder = "pillow") -> np.ndarray:
    """`open_image` as uint8 RGB [H, W, 3]. With `torchvision` the pixels are the same, in two thirds of the time for
    most JPEG files; Pillow decodes the others."""
    if decoder == "torchvision" and (pixels := _decoded_by_torchvision(data)) is not None:
        return pixels
    return np.asarray(open_image(data))


def _decoded_by_torchvision(data: bytes) -> np.ndarray | None:
    """None for what is not a complete grey or RGB JPEG without rotation: there Pillow decides."""
    if not data.endswith(b"\xff\xd9"):
        return None
    width, height = _simple_jpeg_size(data)
    if not (min(width, height) >= MIN_SIDE_PX and width * height <= MAX_PIXELS):
        try:
            image = _with_checked_header(data)
        except BadImage:
            return None
        if image.format not in ("JPEG", "MPO") or image.mode not in ("L", "RGB") or has_orientation(image):
            return None
    import torch
    import torchvision  # noqa: F401  registers the function

    try:
        # torchvision.io.decode_jpeg without its warning for each image
        planes = torch.ops.image.decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), RGB)
    except RuntimeError:  # damaged
        return None
    return planes.permute(1, 2, 0).numpy()


def _simple_jpeg_size(data: bytes) -> tuple[int, int]:
    """Width and height of a JPEG with one scan and without EXIF and Adobe segments, which may rotate it or say other
    colours; (0, 0) for others. Takes a tenth of the time of Pillow's look at the header.

    Markers as in ITU-T T.81, table B.1. libjpeg refuses a second scan where the first one has all components.
    """
    at, size, components = 2, (0, 0), -1
    while at + 4 < len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in SEQUENTIAL and data[at + 4] == 8 and at + 10 <= len(data):
            size = int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
            components = data[at + 9]
        elif marker == START_OF_SCAN:
            return size if components == data[at + 4] and components in (1, 3) else (0, 0)
        elif marker not in SKIPPED:
            break
        at += 2 + length
    return 0, 0


def open_image(data: bytes) -> Image.Image:
    """Decode to mode RGB: palette, grey, CMYK and 16-bit images are converted, transparency becomes white, the EXIF
    orientation is applied, and of an animation the first frame is used.

    Raises BadImage with one of the reasons "no bytes", "not an image", "format not supported: ...", "truncated or
    corrupt", "too large", "too small" and "too many scans". The size is checked in the header, before any pixel is
    decoded.
    """
    if not data:
        raise BadImage("no bytes")
    try:
        return _opened(data)
    except BadImage as error:
        if "MAX_TEXT" not in str(error.__cause__):
            raise
        # Pillow refuses a PNG with a large text or colour profile, on which the pixels do not depend
        return _opened(_without_texts(data))


def _opened(data: bytes) -> Image.Image:
    image = _with_checked_header(data)
    try:
        image.load()
        return upright_rgb(image)
    except MemoryError:  # not a property of the image
        raise
    except Exception as error:
        missing = "not available" in str(error)  # a decoder that Pillow was built without
        raise BadImage(_unsupported(image.format) if missing else "truncated or corrupt") from error


def _with_checked_header(data: bytes) -> Image.Image:
    """The image before its pixels are decoded, if that takes bounded memory and time."""
    if not _directories_fit(data):
        raise BadImage("truncated or corrupt")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns from 89 million pixels; the check below is stricter
            image = Image.open(io.BytesIO(data), formats=decodable())
    except Image.DecompressionBombError as error:
        raise BadImage("too large") from error
    except MemoryError:
        raise
    except Exception as error:
        raise BadImage(_unreadable(data)) from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage("too large")
    if min(width, height) < MIN_SIDE_PX:
        raise BadImage("too small")
    if image.mode == "F":
        raise BadImage("format not supported: floating-point pixels")
    if data.startswith((b"P1", b"P2", b"P3")):  # Pillow reads these in Python, a second per megabyte
        raise BadImage("format not supported: pixels as text")
    if image.format in ("JPEG", "MPO") and _num_scans(data) > min(MAX_SCANS, MAX_SCANNED_PIXELS // (width * height)):
        raise BadImage("too many scans")
    return image


def _unsupported(name: str) -> str:
    return f"format not supported: {name.lower()}"


def _unreadable(data: bytes) -> str:
    """Why a file cannot be opened, by its signature."""
    name = next((name for name, start in SIGNATURES.items() if re.match(start, data, re.DOTALL)), None)
    if name is None:
        padded = data[:16].ljust(16, b"\0")
        name = next((name for name, (_, known) in Image.OPEN.items() if known and known(padded) is True), None)
    if name is None or name in FORMATS:
        return "not an image"
    can = {"heic": "HEIF", "jpeg xl": "JXL"}.get(name, name.upper()) in decodable()
    return "truncated or corrupt" if can else _unsupported(name)


def _num_scans(data: bytes) -> int:
    """Number of scans of a JPEG; of few, an upper bound."""
    octets = np.frombuffer(data, np.uint8)  # a third of the time of data.count(b"\xff\xda")
    count = int(np.count_nonzero((octets[:-1] == 0xFF) & (octets[1:] == 0xDA)))  # also in thumbnails
    if count <= MAX_SCANNED_PIXELS // MAX_PIXELS:
        return count
    count, at = 0, 2
    while (marker := JPEG_MARKER.search(data, at)) and marker[1] != b"\xd9":
        count += marker[1] == b"\xda"
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return count


def _without_texts(png: bytes) -> bytes:
    kept, at = [png[:8]], 8
    while at + 8 <= len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        if png[at + 4 : at + 8] not in (b"iCCP", b"tEXt", b"zTXt", b"iTXt"):
            kept.append(png[at:end])
        at = end
    return b"".join(kept)


def _directories_fit(data: bytes) -> bool:
    """Whether the values of TIFF and EXIF directories, which Pillow copies one by one, do not far exceed the file."""
    if data.startswith(b"\xff\xd8") and data.count(b"Exif\0\0") < 2:
        return True  # at most 64 kB
    left = 4 * len(data) + MAX_DIRECTORY_BYTES
    for start in TIFF_STARTS:
        at = data.find(start)
        while at >= 0 and left >= 0:
            left -= _directory_bytes(memoryview(data)[at:], left)
            at = data.find(start, at + 1)
    return left >= 0


def _directory_bytes(data: memoryview, limit: int) -> int:
    """Bytes of the values and rows of a TIFF directory and those that it points to, as far as they lie in `data`; of
    more than `limit`, any number above it."""
    order, big = "<" if data[0] == ord("I") else ">", 43 in data[2:4].tobytes()
    first, number, row, inline = (8, "Q", "HHQQ", 8) if big else (4, "H", "HHII", 4)
    row_bytes, total, seen = struct.calcsize(order + row), HEADER_COST, set()
    todo = list(struct.unpack_from(order + row[-1], data, first)) if len(data) >= 16 else []
    while todo:
        offset = todo.pop()
        if offset in seen or offset + 8 > len(data):
            continue
        seen.add(offset)
        (count,) = struct.unpack_from(order + number, data, offset)
        start = offset + struct.calcsize(order + number)
        end = start + min(count, (len(data) - start) // row_bytes) * row_bytes
        for tag, kind, values, value in struct.iter_unpack(order + row, data[start:end]):
            size = values * TIFF_VALUE_BYTES.get(kind, 1)
            total += row_bytes + (max(0, min(size, len(data) - value)) if size > inline else 0)
            if total > limit:
                return total
            if tag in TIFF_DIRECTORIES:
                todo.append(value)
    return total


def shrunk(image: Image.Image, width: int, height: int) -> Image.Image:
    """A smaller copy of an RGB image, by antialiased bicubic interpolation."""
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)


def has_orientation(image: Image.Image) -> bool:
    """Whether the EXIF orientation requires a rotation or flip; False for broken EXIF data."""
    if len(image.info.get("Raw profile type exif", "")) > MAX_EXIF_TEXT:
        return False
    try:
        return image.getexif().get(0x0112, 1) in range(2, 9)
    except Exception:
        return False


def upright_rgb(image: Image.Image) -> Image.Image:
    """The pixels of an opened image as `open_image` gives them."""
    return _to_rgb(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    if not has_orientation(image):
        return image
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # other EXIF data may be broken although the pixels are not
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey; Pillow's conversion clips at 255
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def encode_jpeg(pixels_HWC: np.ndarray, quality: int = 92) -> bytes:
    """uint8 RGB [H, W, 3] to JPEG bytes."""
    out = io.BytesIO()
    Image.fromarray(pixels_HWC).save(out, "JPEG", quality=quality)
    return out.getvalue()


def encode_png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W] or [H, W, 3], or uint16 [H, W], to PNG bytes."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()
