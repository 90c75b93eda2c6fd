"""A picture is read as a person sees it, whatever its kind: made with Pillow, read from a folder."""

import logging
import re
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from task.datasets.image_folder import load_images

NORMAL: dict[str, Any] = {"num_classes": 10, "mean": 0.5, "std": 0.25}
RAMP = np.add.outer(np.arange(28) * 6, np.arange(28) * 3).astype(np.uint8)  # 0..243, no symmetry


def _read(folder, name, image, **options):
    """Save one file as class 0 beside a plain one, and return what a run would train on in its place."""
    for part in ("train", "test"):
        (folder / part / "0").mkdir(parents=True, exist_ok=True)
        Image.fromarray(RAMP).save(folder / part / "0" / "zz.png")
    if isinstance(image, bytes):
        (folder / "train" / "0" / name).write_bytes(image)
    else:
        image.save(folder / "train" / "0" / name, **options)
    images = load_images(folder, **NORMAL).train[0][:, 0].numpy().astype(int)
    assert np.array_equal(images[-1], RAMP)
    return images[0] if len(images) == 2 else None


def _near(a, b, levels=1):
    return np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= levels


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bits_keep_their_levels(tmp_path, name):
    assert _near(_read(tmp_path, name, Image.fromarray(RAMP.astype(np.uint16) * 257)), RAMP, 0)


def test_big_endian_sixteen_bit_tiff(tmp_path):
    deep = Image.frombytes("I;16B", (28, 28), (RAMP.astype(">u2") * 257).tobytes())
    assert _near(_read(tmp_path, "a.tif", deep), RAMP, 0)


def test_tiffs_in_which_white_is_zero(tmp_path):
    """Baseline TIFF tag PhotometricInterpretation = 0, as scanners and fax programs write it."""
    deep = Image.fromarray((255 - RAMP.astype(np.uint16)) * 257)
    assert _near(_read(tmp_path / "deep", "a.tif", deep, tiffinfo={262: 0}), RAMP, 0)


@pytest.mark.parametrize("white", [1.0, 255.0])
def test_floating_point_tiff(tmp_path, white):
    levels = (RAMP / 255.0 * white).astype(np.float32)
    assert _near(_read(tmp_path, "a.tif", Image.fromarray(levels)), RAMP, 0)


@given(
    levels=st.lists(st.integers(0, 65535), min_size=2, max_size=20, unique=True),
    dtype=st.sampled_from(["u2", "f4"]),
)
@settings(max_examples=25, deadline=None)
def test_what_is_brighter_stays_brighter(tmp_path_factory, levels, dtype):
    """At any depth: black stays black, white white, and the order of levels is kept."""
    row = np.resize(np.sort([0, *levels, 65535]), (28, 28))
    values = row.astype("u2") if dtype == "u2" else (row / 65535).astype("f4")
    seen = _read(tmp_path_factory.mktemp("deep"), "a.tif", Image.fromarray(values))
    assert np.abs(seen - row / 257.0).max() <= 0.5 + 1e-3


def test_one_bit(tmp_path):
    black_and_white = RAMP > 120
    for name in ("a.png", "a.tif", "a.bmp"):
        seen = _read(tmp_path / name, name, Image.fromarray(black_and_white))
        assert np.array_equal(seen, np.where(black_and_white, 255, 0))


def test_palettes(tmp_path):
    """Pixel 0 is white and pixel 1 is black here: the numbers in the file say nothing of what is seen."""
    indexed = Image.fromarray((RAMP > 120).astype(np.uint8), "L")
    indexed.putpalette([255, 255, 255, 0, 0, 0])
    for name in ("a.png", "a.gif", "a.bmp"):
        assert np.array_equal(_read(tmp_path / name, name, indexed), np.where(RAMP > 120, 0, 255))


def _see_through(ink, alpha):
    return np.rint(ink * (alpha / 255.0) + 255.0 * (1 - alpha / 255.0))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_what_is_transparent_lies_on_white(tmp_path, mode, name):
    """The ink is black everywhere, as drawing programs store it: alpha alone carries the picture."""
    ink = Image.new(mode, (28, 28), 0)
    ink.putalpha(Image.fromarray(RAMP))
    assert _near(_read(tmp_path, name, ink), _see_through(0, RAMP))


def test_transparent_levels_and_palette_entries(tmp_path):
    seen = _read(tmp_path / "grey", "a.png", Image.fromarray(RAMP), transparency=0)
    assert np.array_equal(seen, np.where(RAMP == 0, 255, RAMP))
    deep = RAMP.astype(np.uint16) * 257
    seen = _read(tmp_path / "deep", "a.png", _png16(deep, transparent=0))
    assert np.array_equal(seen, np.where(deep == 0, 255, RAMP))
    indexed = Image.fromarray((RAMP > 120).astype(np.uint8), "L")
    indexed.putpalette([0, 0, 0, 50, 50, 50])
    seen = _read(tmp_path / "palette", "a.png", indexed, transparency=0)
    assert np.array_equal(seen, np.where(RAMP > 120, 50, 255))


def _png16(levels, transparent):
    """Return a 16-bit grey PNG with a transparent level: Pillow does not write one."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    height, width = levels.shape
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0))
        + chunk(b"tRNS", struct.pack(">H", transparent))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_cmyk(tmp_path, name):
    """Black ink alone: K = 255 is black."""
    inks = np.zeros((28, 28, 4), np.uint8)
    inks[..., 3] = 255 - RAMP
    seen = _read(tmp_path, name, Image.fromarray(inks, "CMYK"))
    assert _near(seen, RAMP, 12 if name == "a.jpg" else 0)


def test_lab(tmp_path):
    """L* = 53.4 is the middle grey of sRGB, level 127."""
    lab = Image.new("LAB", (28, 28), (round(53.4 * 2.55), 0, 0))
    assert abs(int(_read(tmp_path, "a.tif", lab)[0, 0]) - 127) <= 5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_on_its_side(tmp_path, orientation):
    """EXIF: how the stored picture is turned and mirrored before it is shown."""
    stored = {
        1: RAMP, 2: RAMP[:, ::-1], 3: RAMP[::-1, ::-1], 4: RAMP[::-1], 5: RAMP.T,
        6: np.rot90(RAMP, 1), 7: np.rot90(RAMP, 2).T, 8: np.rot90(RAMP, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    seen = _read(tmp_path, "a.png", Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    assert np.array_equal(seen, RAMP)
    deep = np.ascontiguousarray(stored).astype(np.uint16) * 257
    assert np.array_equal(_read(tmp_path, "a.png", Image.fromarray(deep), exif=exif), RAMP)


def test_colours_are_seen_as_grey_of_their_brightness_and_that_is_said(tmp_path, caplog):
    colours = np.zeros((56, 84, 3), np.uint8)
    colours[:, :42], colours[:, 42:] = (255, 0, 0), (0, 255, 0)
    with caplog.at_level(logging.WARNING):
        seen = _read(tmp_path, "a.png", Image.fromarray(colours))
    assert (seen[0, 0], seen[0, -1]) == (76, 150)  # ITU-R BT.601
    assert "1 image(s) of other sizes (up to 84 x 56)" in caplog.text
    assert "1 from colour to grey" in caplog.text


def test_grey_pictures_of_the_right_size_lose_nothing_and_nothing_is_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(_read(tmp_path, "a.png", Image.fromarray(np.dstack([RAMP] * 3))), RAMP)
    assert not caplog.records


def test_a_phone_photo_with_its_preview_is_one_picture(tmp_path):
    photo, preview = Image.fromarray(RAMP), Image.new("L", (28, 28))
    photo.save(tmp_path / "x.mpo", save_all=True, append_images=[preview], quality=100)
    assert _near(_read(tmp_path / "data", "a.jpg", (tmp_path / "x.mpo").read_bytes()), RAMP, 4)


def _pages(path):
    Image.fromarray(RAMP).save(path, save_all=True, append_images=[Image.fromarray(RAMP[::-1])])
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "made", "why"),
    [
        ("a.tif", lambda path: _pages(path / "x.tif"), "2 pictures"),
        ("a.png", lambda path: _pages(path / "x.png"), "2 pictures"),
        ("a.gif", lambda path: _pages(path / "x.gif"), "2 pictures"),
        ("a.png", lambda path: b"no picture at all", "not a readable image"),
        ("a.webp", lambda path: b"", "not a readable image"),
        ("a.tif", lambda path: Image.fromarray(RAMP.astype(np.int32)), "whose white is not told"),
        ("a.tif", lambda path: Image.fromarray(RAMP.astype(np.float32) - 9), "go from -9"),
        ("a.tif", lambda path: Image.fromarray(np.full((28, 28), np.nan, np.float32)), "not finite"),
        ("a.png", lambda path: Image.new("L", (10000, 7000)), "10000 x 7000 pixels"),
        ("a.png", lambda path: Image.new("1", (20000, 20000)), "20000 x 20000|exceeds limit"),
    ],
)
def test_what_cannot_be_shown_costs_itself_and_is_named(tmp_path, caplog, name, made, why):
    with caplog.at_level(logging.WARNING):
        assert _read(tmp_path / "data", name, made(tmp_path)) is None
    assert re.search(rf"1 file\(s\) left out: {re.escape(str(tmp_path))}.*{name}.*({why})", caplog.text)


def test_white_ink_on_nothing_is_not_taken_for_an_empty_sheet(tmp_path, caplog):
    ink = Image.new("LA", (28, 28), (255, 0))
    ink.putalpha(Image.fromarray(RAMP))
    assert _read(tmp_path, "a.png", ink) is None
    assert "white on a transparent ground" in caplog.text


def test_twelve_bits_in_sixteen_are_dark_and_that_is_said(tmp_path, caplog):
    _read(tmp_path, "a.png", Image.fromarray(RAMP.astype(np.uint16) * 16))
    assert "less than a sixteenth of their range" in caplog.text
