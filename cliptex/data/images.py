"""Decode images from the web to RGB pixels, and encode JPEG and PNG. Bad input is an error with a short reason."""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, features

from cliptex.core.errors import CliptexError

MAX_PIXELS = 50_000_000
MIN_SIDE_PX = 8
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
CODECS = {"jpg": "JPEG", "zlib": "PNG", "webp": "WebP"}


class BadImage(ValueError):
    """The bytes are not a usable image. The message is a short reason, the same for all such images."""


def require_codecs() -> None:
    """Raise CliptexError if Pillow was built without a codec: good images would seem to be corrupt."""
    missing = [kind for feature, kind in CODECS.items() if not features.check(feature)]
    if missing:
        raise CliptexError(
            f"Pillow cannot decode {', '.join(missing)}; reinstall it: pip install --force-reinstall pillow"
        )


def decode_image(data: bytes) -> np.ndarray:
    """`open_image` as uint8 RGB [H, W, 3]."""
    return np.asarray(open_image(data))


def open_image(data: bytes) -> Image.Image:
    """Decode to mode RGB: palette, grey, CMYK and 16-bit images are converted, transparency becomes white, the EXIF
    orientation is applied, and of an animation the first frame is used.

    Raises BadImage with one of the reasons "no bytes", "not an image", "truncated or corrupt", "too large" and
    "too small". The size is checked in the header, before any pixel is decoded.
    """
    if not data:
        raise BadImage("no bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns from 89 million pixels; the check below is stricter
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImage("too large") from error
    except MemoryError:
        raise
    except Exception as error:
        raise BadImage("not an image") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage("too large")
    if min(width, height) < MIN_SIDE_PX:
        raise BadImage("too small")
    try:
        image.load()
        return _to_rgb(_upright(image))
    except MemoryError:  # not a property of the image
        raise
    except Exception as error:
        raise BadImage("truncated or corrupt") from error


def shrunk(image: Image.Image, width: int, height: int) -> Image.Image:
    """A smaller copy of an RGB image, by antialiased bicubic interpolation."""
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)


def has_orientation(image: Image.Image) -> bool:
    """Whether the EXIF orientation requires a rotation or flip; False for broken EXIF data."""
    try:
        return image.getexif().get(0x0112, 1) in range(2, 9)
    except Exception:
        return False


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
