"""Image bytes to RGB pixels, with web input in mind: anything odd is an error with a short reason."""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 50_000_000
MIN_SIDE_PX = 8
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")


class BadImage(ValueError):
    """The bytes are not a usable image; the message is the reason, fit for counting."""


def decode_image(data: bytes) -> np.ndarray:
    """Decode to uint8 RGB [H, W, 3]; palette, grey, CMYK and alpha are converted, EXIF rotation is applied.

    Raises BadImage with one of the reasons: "not an image", "truncated or corrupt", "too large", "too small".
    Size is checked from the header, before any pixel is decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of bombs from 89 million pixels on; ours are refused below
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImage("too large") from error
    except Exception as error:
        raise BadImage("not an image") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage("too large")
    if min(width, height) < MIN_SIDE_PX:
        raise BadImage("too small")
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        return np.asarray(image.convert("RGB"))
    except Exception as error:
        raise BadImage("truncated or corrupt") from error


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
