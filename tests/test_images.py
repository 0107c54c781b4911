import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from cliptex import images
from cliptex.images import BadImage, decode_image, encode_jpeg, encode_png


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "CMYK", "1", "LA"])
def test_every_mode_becomes_rgb(mode):
    image = Image.new("RGB", (20, 12), (200, 30, 30)).convert(mode)
    kind = "JPEG" if mode == "CMYK" else "PNG"
    pixels = decode_image(encoded(image, kind))
    assert pixels.shape == (12, 20, 3)
    assert pixels.dtype == np.uint8


def test_transparent_pixels_become_white():
    assert decode_image(encoded(Image.new("RGBA", (10, 10), (0, 0, 0, 0)), "PNG")).min() == 255


def test_exif_rotation_is_applied():
    image = Image.new("RGB", (20, 12))
    exif = image.getexif()
    exif[0x0112] = 6
    assert decode_image(encoded(image, "JPEG", exif=exif)).shape == (20, 12, 3)


def bomb() -> bytes:
    """A PNG whose header promises 20,000 x 20,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


GOOD = encode_jpeg(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an image"),
        (b"<html>404</html>", "not an image"),
        (GOOD[: len(GOOD) // 2], "truncated or corrupt"),
        (bomb(), "too large"),
        (encoded(Image.new("RGB", (1, 1)), "GIF"), "too small"),
    ],
    ids=["empty", "page", "cut", "bomb", "pixel"],
)
def test_bad_images_have_a_reason(data, reason):
    with pytest.raises(BadImage, match=reason):
        decode_image(data)


def test_the_size_is_judged_before_any_pixel_is_decoded(monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(BadImage, match="too large"):
        decode_image(bomb())


def test_png_is_lossless():
    pixels = np.random.default_rng(0).integers(0, 255, (9, 17, 3), dtype=np.uint8)
    assert np.array_equal(decode_image(encode_png(pixels)), pixels)
    assert images.MIN_SIDE_PX <= 9
