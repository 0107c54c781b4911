"""Image bytes to RGB pixels, with web input in mind: anything odd is an error with a short reason."""

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
    """The bytes are not a usable image; the message is the reason, fit for counting."""


def require_codecs() -> None:
    """Raise CliptexError where Pillow was built without a codec, which would make good images look corrupt."""
    missing = [kind for feature, kind in CODECS.items() if not features.check(feature)]
    if missing:
        raise CliptexError(f"Pillow cannot decode {', '.join(missing)}; install it anew: pip install -U pillow")


def decode_image(data: bytes) -> np.ndarray:
    """Decode to uint8 RGB [H, W, 3]: palette, grey, CMYK and 16 bits are converted, transparency becomes white, a
    photograph is turned as its EXIF data says, and an animation gives its first picture.

    Raises BadImage with one of the reasons: "no bytes", "not an image", "truncated or corrupt", "too large",
    "too small". Size is checked from the header, before any pixel is decoded.
    """
    return np.asarray(open_image(data))


def open_image(data: bytes) -> Image.Image:
    """`decode_image` as a Pillow image of mode RGB."""
    if not data:
        raise BadImage("no bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of bombs from 89 million pixels on; ours are refused below
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
    except MemoryError:  # ours, not the image's
        raise
    except Exception as error:
        raise BadImage("truncated or corrupt") from error


def shrunk(image: Image.Image, width: int, height: int) -> Image.Image:
    """A smaller copy of an RGB image, bicubic over the area of each new pixel."""
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)


def is_turned(image: Image.Image) -> bool:
    """Whether the EXIF data ask for a rotation or a flip. Broken EXIF data ask for nothing."""
    try:
        return image.getexif().get(0x0112, 1) in range(2, 9)
    except Exception:
        return False


def _upright(image: Image.Image) -> Image.Image:
    if not is_turned(image):
        return image
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # other parts of the EXIF data may be broken, the pixels are not
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey; Pillow's own conversion cuts everything above 255 to white
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
