"""One file of each kind found on the web: decoded to the right pixels, or refused for the right reason."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from cliptex.core.errors import CliptexError
from cliptex.data import images
from cliptex.data.images import (
    BadImage,
    decode_image,
    encode_jpeg,
    encode_png,
    open_image,
    require_codecs,
    require_decoder,
)

RED, GREEN, BLUE, WHITE = (220, 20, 30), (10, 200, 40), (20, 30, 210), (255, 255, 255)


def quarters(width: int = 48, height: int = 32) -> Image.Image:
    """Red, green, blue and white quarters, so that rotations and flips are visible."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2], pixels[: height // 2, width // 2 :] = RED, GREEN
    pixels[height // 2 :, : width // 2], pixels[height // 2 :, width // 2 :] = BLUE, WHITE
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG written byte by byte: Pillow writes neither 16-bit colour nor wrong headers."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def assert_quarters(pixels: np.ndarray, tolerance: int, width: int = 48, height: int = 32) -> None:
    assert pixels.dtype == np.uint8
    assert pixels.shape == (height, width, 3)
    # JPEG mixes colours at the edges
    for row, column, colour in ((0, 0, RED), (0, 1, GREEN), (1, 0, BLUE), (1, 1, WHITE)):
        part = pixels[row * height // 2 :, column * width // 2 :][4 : height // 2 - 4, 4 : width // 2 - 4]
        assert np.abs(part.astype(int) - colour).max() <= tolerance, (row, column)


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("GIF", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("JPEG", {"quality": 95}, 6),
        ("JPEG", {"quality": 95, "progressive": True}, 6),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("JPEG2000", {}, 0),
        ("PPM", {}, 0),
        ("AVIF", {"quality": 95}, 12),
    ],
)
def test_plain_files(kind, options, tolerance):
    assert_quarters(decode_image(encoded(quarters(), kind, **options)), tolerance)


def test_the_name_of_a_file_does_not_matter():
    """All images in a shard are named .jpg; only the bytes count."""
    assert_quarters(decode_image(encoded(quarters(), "PNG")), 0)


def test_cmyk_jpeg():
    data = encoded(quarters().convert("CMYK"), "JPEG", quality=95)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert_quarters(decode_image(data), 8)


def test_palette_png_with_transparency_becomes_white_there():
    image = quarters().quantize(4)
    green = image.getpixel((40, 4))
    data = encoded(image, "PNG", transparency=green)
    assert Image.open(io.BytesIO(data)).mode == "P"
    pixels = decode_image(data)
    assert (pixels[:16, 24:] == 255).all()
    assert (pixels[:16, :24] == RED).all()


def test_half_transparent_pixels_are_laid_on_white():
    data = encoded(Image.new("RGBA", (10, 10), (0, 100, 200, 51)), "PNG")
    assert np.abs(decode_image(data).astype(int) - (204, 224, 244)).max() <= 1
    assert decode_image(encoded(Image.new("LA", (10, 10), (0, 0)), "PNG")).min() == 255


def test_a_transparent_colour_of_an_rgb_png_becomes_white():
    pixels = decode_image(encoded(quarters(), "PNG", transparency=RED))
    assert (pixels[:16, :24] == 255).all()
    assert (pixels[:16, 24:] == GREEN).all()


def test_16_bit_grey_png_keeps_its_shades():
    values = np.linspace(0, 65535, 40 * 30).astype(np.uint16).reshape(30, 40)
    pixels = decode_image(encode_png(values))
    assert np.array_equal(pixels, np.repeat((values >> 8)[..., None], 3, axis=2))
    assert len(np.unique(pixels)) == 256


def test_16_bit_colour_png():
    values = np.random.default_rng(0).integers(0, 65536, (20, 30, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    assert np.abs(decode_image(png(30, 20, 16, 2, rows)).astype(int) - (values >> 8)).max() <= 1


@pytest.mark.parametrize(("kind", "tolerance"), [("JPEG", 3), ("PNG", 0), ("WEBP", 4)])
def test_grey(kind, tolerance):
    values = np.repeat(np.arange(0, 240, 5, dtype=np.uint8)[None], 24, axis=0)
    pixels = decode_image(encoded(Image.fromarray(values), kind, quality=95))
    assert np.abs(pixels.astype(int) - values[..., None]).max() <= tolerance


def test_one_bit():
    pixels = decode_image(encoded(Image.new("1", (9, 9), 1), "PNG"))
    assert (pixels == 255).all()


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", [1, *TURNS])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_a_turned_photograph_is_upright(kind, orientation):
    """Cameras store the sensor's image, and its orientation as EXIF data."""
    image = quarters()
    stored = image.transpose(TURNS[orientation]) if orientation != 1 else image
    exif = image.getexif()
    exif[0x0112] = orientation
    data = encoded(stored, kind, exif=exif, quality=95, subsampling=0)
    assert_quarters(decode_image(data), 6)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0MM\0*"])
def test_broken_exif_data_spoil_no_picture(exif):
    assert_quarters(decode_image(encoded(quarters(), "JPEG", quality=95, exif=exif)), 6)


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("WEBP", {"lossless": True})])
def test_an_animation_gives_its_first_picture(kind, options):
    others = [Image.new("RGB", (48, 32), "black") for _ in range(3)]
    data = encoded(quarters(), kind, save_all=True, append_images=others, duration=50, **options)
    assert Image.open(io.BytesIO(data)).n_frames > 1
    assert_quarters(decode_image(data), 0)


def test_a_long_strip_is_decoded():
    pixels = decode_image(encoded(quarters(12000, 100), "PNG"))
    assert pixels.shape == (100, 12000, 3)
    assert tuple(pixels[99, 0]) == BLUE


GOOD = encode_jpeg(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
BOMB = png(20000, 20000, 8, 2, b"")
PROGRESSIVE = encoded(quarters(), "JPEG", progressive=True)
LAST_SCAN = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]
BAD = {
    "zero bytes": (b"", "no bytes"),
    "page": (b"<!DOCTYPE html><html><body>404</body></html>", "not an image"),
    "text": (b"not found", "not an image"),
    "vector": (b'<svg xmlns="http://www.w3.org/2000/svg" width="40" height="40"/>', "not an image"),
    "header only": (GOOD[:20], "not an image"),
    "truncated JPEG": (GOOD[: len(GOOD) // 2], "truncated or corrupt"),
    "almost whole JPEG": (GOOD[:-60], "truncated or corrupt"),
    "truncated PNG": (encode_png(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))[:3000], "truncated"),
    "truncated GIF": (encoded(quarters(200, 200).rotate(33), "GIF")[:900], "truncated or corrupt"),
    "truncated WebP": (encoded(quarters(200, 200).rotate(33), "WEBP")[:300], "not an image|truncated or corrupt"),
    "truncated TIFF": (encoded(quarters(), "TIFF")[:2000], "truncated or corrupt"),
    "truncated AVIF": (encoded(quarters(), "AVIF")[:300], "truncated or corrupt"),
    "HEIC": (b"\0\0\0\x1cftypheic\0\0\0\0mif1heic" + bytes(200), "format not supported: heic|truncated or corrupt"),
    "JPEG XL": (b"\xff\n\xd8\xc1" + bytes(200), "format not supported: jpeg xl|truncated or corrupt"),
    "video": (b"\0\0\0\x18ftypisom" + bytes(200), "not an image"),
    "Photoshop": (b"8BPS\0\1" + bytes(200), "format not supported: psd"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "format not supported: eps"),
    "floating point": (encoded(Image.new("F", (20, 20)), "TIFF"), "format not supported: floating-point pixels"),
    "text pixels": (b"P2\n9 9\n255\n" + b"1 " * 81, "format not supported: pixels as text"),
    "scans without end": (PROGRESSIVE[:-2] + LAST_SCAN * 200 + PROGRESSIVE[-2:], "too many scans"),
    "bomb": (BOMB, "too large"),
    "1x1": (encoded(Image.new("RGB", (1, 1)), "GIF"), "too small"),
    "line": (encoded(Image.new("RGB", (500, 2)), "PNG"), "too small"),
}


@pytest.mark.parametrize("chunk", [b"iCCP", b"zTXt"])
@pytest.mark.parametrize("size", [900_000, 3_000_000])
def test_a_large_profile_or_text_spoils_no_png(chunk, size):
    """Pillow refuses those above a megabyte."""
    values = np.zeros((32, 48, 3), np.uint8)
    values[:16, :24] = RED
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    data = png(48, 32, 8, 2, rows, (chunk, b"Comment\0\0" + zlib.compress(bytes(size))))
    assert np.array_equal(decode_image(data), values)


def test_thumbnails_are_no_scans():
    """Many scans in the metadata, as of thumbnails, do not count."""
    thumbnails = b"\xff\xed" + (2002).to_bytes(2, "big") + b"\xff\xda" * 1000
    data = PROGRESSIVE[:2] + thumbnails + PROGRESSIVE[2:]
    assert np.array_equal(decode_image(data), decode_image(PROGRESSIVE))


@pytest.mark.parametrize("name", BAD)
def test_bad_images_have_a_reason(name):
    data, reason = BAD[name]
    with pytest.raises(BadImage, match=f"^({reason})"):
        decode_image(data)


def test_the_size_is_judged_before_any_pixel_is_decoded(monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(BadImage, match="too large"):
        decode_image(BOMB)


def test_png_is_lossless():
    pixels = np.random.default_rng(0).integers(0, 255, (9, 17, 3), dtype=np.uint8)
    assert np.array_equal(decode_image(encode_png(pixels)), pixels)
    assert images.MIN_SIDE_PX <= 9


def test_a_missing_codec_is_no_bad_image(monkeypatch):
    require_codecs()
    monkeypatch.setattr(features, "check", lambda name: name != "webp")
    with pytest.raises(CliptexError, match="Pillow cannot decode WebP"):
        require_codecs()


def test_too_little_memory_is_no_bad_image(monkeypatch):
    def load(self):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "load", load)
    with pytest.raises(MemoryError):
        open_image(encoded(quarters(), "BMP"))


def files_of_many_kinds() -> dict[str, bytes]:
    photo = quarters()
    rotated = Image.Exif()
    rotated[0x0112] = 6
    return {
        "baseline": encoded(photo, "JPEG", quality=95),
        "progressive": encoded(photo, "JPEG", progressive=True),
        "no chroma subsampling": encoded(photo, "JPEG", subsampling=0),
        "RGB, not YCbCr": encoded(photo, "JPEG", keep_rgb=True),
        "grey": encoded(photo.convert("L"), "JPEG"),
        "CMYK": encoded(photo.convert("CMYK"), "JPEG"),
        "rotated": encoded(photo, "JPEG", exif=rotated),
        "bytes after the end": encoded(photo, "JPEG") + b"more",
        "truncated": encoded(photo, "JPEG")[:-40],
        "truncated, with an end": encoded(photo, "JPEG")[:-60] + b"\xff\xd9",
        "palette": encoded(photo.quantize(8), "PNG"),
        "transparent": encoded(photo.convert("RGBA"), "PNG"),
        "16 bits": encode_png(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50),
        "WebP": encoded(photo, "WEBP"),
        "GIF": encoded(photo, "GIF"),
        "too small": encoded(quarters(6, 6), "JPEG"),
        "no image": b"<html>\xff\xd9",
        "nothing": b"",
    }


def outcome(data: bytes, decoder: str) -> np.ndarray | str:
    try:
        return decode_image(data, decoder)
    except BadImage as error:
        return str(error)


@pytest.mark.parametrize("kind", files_of_many_kinds())
def test_every_decoder_gives_the_same_pixels_or_reason(kind):
    data = files_of_many_kinds()[kind]
    np.testing.assert_array_equal(outcome(data, "torchvision"), outcome(data, "pillow"))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_every_decoder_treats_a_damaged_jpeg_alike(seed):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (int(rng.integers(8, 70)), int(rng.integers(8, 70)), 3), np.uint8)
    data = bytearray(encoded(Image.fromarray(pixels), "JPEG", progressive=bool(rng.integers(2))))
    for at in rng.integers(2, len(data) - 2, rng.integers(0, 4)):
        data[at] = rng.integers(256)
    np.testing.assert_array_equal(outcome(bytes(data), "torchvision"), outcome(bytes(data), "pillow"))


def test_a_bomb_is_refused_before_torchvision_sees_it(monkeypatch):
    require_decoder("torchvision")
    monkeypatch.setattr(torch.ops.image, "decode_jpeg", lambda *_: pytest.fail("it was decoded"))
    data = bytearray(encoded(quarters(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = b"\xff\xdc" * 2  # height and width 65500
    assert outcome(bytes(data), "torchvision") == "too large"
    progressive = encoded(quarters(), "JPEG", progressive=True)
    scans = progressive.index(b"\xff\xda")
    assert outcome(progressive[:-2] + progressive[scans:-2] * 20 + b"\xff\xd9", "torchvision") == "too many scans"


def test_a_torchvision_without_jpeg_is_an_error_with_a_remedy(monkeypatch):
    require_decoder("torchvision")
    monkeypatch.setattr(torch.ops, "image", object())
    require_decoder("pillow")
    with pytest.raises(CliptexError, match=r"train\.decoder: torchvision was built without JPEG; reinstall it"):
        require_decoder("torchvision")
