"""One picture file as a person sees it, in grey levels and in colour.

Files differ in more than size: 16-bit and floating-point grey, black and white, palettes, transparency,
CMYK, cameras that store a picture lying on its side. Pillow's own conversion to eight bits cuts off the
levels above 255, drops transparency and leaves the picture on its side. What cannot be shown without guessing
is refused.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

# Formats of single pictures. EPS is not among them: reading it starts another program.
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000")
MAX_PIXELS = 64_000_000  # 256 MB once decoded; what a photo of a few MB can claim to hold
_ORIENTATION, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 0x0112, 258, 262, 339
_WHITE_IS_ZERO = 0
_COLOUR_STEP = 8  # levels between the colours of a pixel, below which it is grey: JPEG leaves a few

Grey = npt.NDArray[np.uint8]


class PictureError(ValueError):
    """The file is no picture that can be shown without guessing; the text says why."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture, upright, on white.

    Attributes:
        grey: uint8 (height, width); 0 is black, 255 is white.
        red_green_blue: uint8 (height, width, 3), or None where the file is grey.
        colour: whether colours go with the conversion to grey.
        dark: whether a file of more than eight bits uses less than a sixteenth of its range: what is
            in it is (nearly) black in any viewer, and here.
    """

    grey: Grey
    red_green_blue: npt.NDArray[np.uint8] | None = None
    colour: bool = False
    dark: bool = False

    def resized(self, height: int, width: int, channels: int) -> npt.NDArray[np.uint8]:
        """Return levels at another size, averaged where they are shrunk; uint8 (channels, height, width).

        Args:
            height, width: of the result.
            channels: 1 (grey) or 3 (colour; a grey file three times).
        """
        levels = self.grey if channels == 1 or self.red_green_blue is None else self.red_green_blue
        if levels.shape[:2] != (height, width):
            image = Image.fromarray(levels).resize((width, height), Image.Resampling.BILINEAR)
            levels = np.asarray(image, dtype=np.uint8)
        if levels.ndim == 2:
            return np.repeat(levels[None], channels, axis=0)
        return np.ascontiguousarray(levels.transpose(2, 0, 1))


def read_picture(path: Path) -> Picture:
    """Read a picture as a person sees it.

    Sixteen bits are scaled to eight; floating-point levels are taken as 0..1 (as 0..255 if one of them is
    above 1); what is transparent lies on white; the camera's note which way is up is followed.

    Raises:
        PictureError: if the file is damaged, no picture, one of several pages, larger than `MAX_PIXELS`, or
            of a kind whose black and white are not told.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what matters of Pillow's warnings is checked here
        try:
            with Image.open(path, formats=FORMATS) as image:
                return _shown(image)
        except PictureError:
            raise
        except Exception as error:  # damaged files fail in every way that a decoder can
            raise PictureError(f"it is not a readable image: {error or type(error).__name__}") from error


def _shown(image: Image.Image) -> Picture:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise PictureError(f"it has {width} x {height} pixels; at most {MAX_PIXELS:,} are read")
    pages = getattr(image, "n_frames", 1)
    if pages > 1 and image.format != "MPO":  # a phone's photo with its preview: the photo comes first
        raise PictureError(f"it holds {pages} pictures (pages or frames); one file is one picture")
    levels: Grey | None
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        levels, dark = _deep(image)
        return Picture(_upright(levels, image), dark=dark)
    colours = _on_white(image)
    red, green, blue = (np.asarray(channel, dtype=np.int16) for channel in colours.split())
    step = max(int(np.abs(red - green).max()), int(np.abs(green - blue).max()))
    if step == 0:
        return Picture(_upright(red.astype(np.uint8), image))
    return Picture(
        _upright(np.asarray(colours.convert("L")), image),
        _upright(np.asarray(colours), image),
        colour=step > _COLOUR_STEP,
    )


def _on_white(image: Image.Image) -> Image.Image:
    """Return eight-bit colours on white."""
    if image.mode == "LAB":
        from PIL import ImageCms

        to_rgb = ImageCms.buildTransform(
            ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"
        )
        shown = ImageCms.applyTransform(image, to_rgb)
        assert shown is not None
        return shown
    if "transparency" not in image.info and image.mode not in ("LA", "La", "PA", "RGBA", "RGBa"):
        return image.convert("RGB")
    ink = image.convert("RGBA")
    alpha = np.asarray(ink.getchannel("A"))
    shown = Image.alpha_composite(Image.new("RGBA", ink.size, "white"), ink).convert("RGB")
    if (
        alpha.min(initial=255) < 255
        and alpha.max(initial=0) > 0
        and np.asarray(shown).min(initial=255) == 255
    ):
        raise PictureError("it is white on a transparent ground: nothing of it is seen on white")
    return shown


def _deep(image: Image.Image) -> tuple[Grey, bool]:
    """Return the levels of grey of more than eight bits, and whether they are nearly black."""
    values = np.asarray(image).astype(np.float32)
    tags: Any = getattr(image, "tag_v2", {})
    if not np.isfinite(values).all():
        raise PictureError("it holds levels that are not finite")
    low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    if image.mode == "F":
        white = 1.0 if high <= 1.0 else 255.0
        if low < 0.0 or high > 255.0:
            raise PictureError(
                f"its floating-point levels go from {low:g} to {high:g}; black is 0 and white is 1 (or 255)"
            )
    else:
        bits = int(tags.get(_BITS, (16,))[0])
        if bits > 16 or tags.get(_SAMPLE_FORMAT, (1,))[0] != 1:
            raise PictureError(
                f"its levels are {bits}-bit {'signed ' if low < 0 else ''}integers whose white is not told; "
                "save it with 8 or 16 bits"
            )
        white = float(2**bits - 1)
    dark = image.mode != "F" and high < white / 16.0
    grey = np.rint(values * (255.0 / white))
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255.0 - grey
        dark = False
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # PNG: one level stands for "see through"
        grey[values == transparent] = 255.0
    return grey.astype(np.uint8), dark


def _upright(grey: Grey, image: Image.Image) -> Grey:
    orientation = image.getexif().get(_ORIENTATION, 1)
    if orientation == 1:
        return grey
    upright = Image.fromarray(grey)
    upright.getexif()[_ORIENTATION] = orientation
    return np.asarray(ImageOps.exif_transpose(upright), dtype=np.uint8)
