"""Decode picture files to RGB and encode pictures; handles colour modes, transparency, orientation, damaged files.

Training, evaluation and the exported processor all turn pictures into RGB here, so that all see the same pixels.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import ExifTags, Image, ImageOps

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"})
MOST_STRETCHED = 16  # length by width


def decode(data: bytes, orientation: int = 1) -> Image.Image:
    """Decode a picture file to RGB, upright, fully loaded.

    orientation: EXIF's number (1 to 8) for a file that was written again without its EXIF data; where a file has an
    orientation of its own, that counts
    Raises ValueError saying what is wrong when the bytes are not a whole picture.
    """
    try:
        image = Image.open(io.BytesIO(data))
        # asked before loading, because Pillow turns a TIFF when it loads it
        is_lost = orientation != 1 and ExifTags.Base.Orientation not in image.getexif()
        image.load()
        if is_lost:
            image.getexif()[ExifTags.Base.Orientation] = orientation
        return upright_rgb(image)
    except Exception as error:  # decoders meet damaged bytes with OSError, SyntaxError, zlib.error, ...
        raise ValueError(f"cannot be decoded as a picture ({type(error).__name__}: {error})") from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """An opened picture of any mode as RGB, turned by its EXIF orientation: the pixels that `decode` gives.

    Raises ValueError as `to_rgb` does.
    """
    return to_rgb(ImageOps.exif_transpose(image))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any colour mode to RGB: transparency over white, 16-bit grey by its high byte, CMYK by its inks.

    `Image.convert("RGB")` alone would show the colour of transparent pixels, and clip 16-bit grey to white.
    Raises ValueError for modes without a defined range (32-bit integers beyond 16 bits, floats).
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError(f"integer grey values {grey.min()}..{grey.max()} lie outside 0..65535")
        return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point grey has no defined range")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def centre(image: Image.Image) -> Image.Image:
    """The picture, or the middle of one that is more than MOST_STRETCHED times as long as wide.

    For models that see the central square of a picture that was resized by its shorter side: a strip of 20000 x 1
    pixels would become one of 4480000 x 224 before.
    """
    shorter, longer = sorted(image.size)
    if longer <= MOST_STRETCHED * shorter:
        return image
    kept = 4 * shorter - longer % 2  # of the same parity as the length, so that the middle stays where it is
    begin = (longer - kept) // 2
    wide = image.width == longer
    return image.crop((begin, 0, begin + kept, shorter) if wide else (0, begin, shorter, begin + kept))


def encode_png(image: Image.Image) -> bytes:
    """Encode as PNG: lossless, and the same bytes for the same pixels (no metadata is written)."""
    buffer = io.BytesIO()
    plain = Image.fromarray(np.asarray(image))  # drops text chunks, profiles and transparency marks of the source file
    plain.save(buffer, format="PNG")
    return buffer.getvalue()


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    """Encode as JPEG without colour subsampling: small, with a loss, and the same bytes for the same pixels."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(buffer, format="JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()
