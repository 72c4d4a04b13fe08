"""One image, read whatever its format, or a reason why it cannot be."""

from __future__ import annotations

import io
import math
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

# Formats that Pillow names but does not decode, and those it hands to another program (Ghostscript, Windows).
NOT_DECODED = {"BUFR", "GRIB", "HDF5", "MPEG", "EPS", "WMF"}
SIXTEEN_BIT = {"PNG", "PPM"}  # formats whose mode "I" holds 0..65535, never more
SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that swap width and height"""
TURN = Image.Transpose
UPRIGHT = {
    **{2: TURN.FLIP_LEFT_RIGHT, 3: TURN.ROTATE_180, 4: TURN.FLIP_TOP_BOTTOM},
    **{5: TURN.TRANSPOSE, 6: TURN.ROTATE_270, 7: TURN.TRANSVERSE, 8: TURN.ROTATE_90},
}
"""what turns an image of an EXIF orientation upright"""
ENDINGS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}


DARK = 4096
"""a set of 16-bit images that stays below it is of 12 bits or fewer, as microscopes write it, and would be read as 16 grey levels"""
HEAD = 8192
"""bytes that hold a JPEG's header, unless it brings a colour profile or a preview"""


class BadImage(ValueError):
    """The file at `path` is not an image that can be trained on, and `reason` says why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)  # both, so that it survives pickling on its way out of a worker
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{printable(self.path)}: {self.reason}"


def printable(name: str | os.PathLike[str]) -> str:
    """`name` as text that any UTF-8 stream takes: bytes that are no UTF-8 become backslash escapes."""
    return os.fspath(name).encode("utf-8", "backslashreplace").decode()


@cache
def formats() -> tuple[str, ...]:
    """Pillow's names of the formats that it decodes by itself."""
    Image.init()
    return tuple(name for name in Image.ID if name not in NOT_DECODED)


@cache
def extensions() -> frozenset[str]:
    """The file extensions of these formats: lower case, with the dot."""
    return frozenset(extension for extension, name in Image.registered_extensions().items() if name in formats())


class Photo:
    """An image whose header is read, `height` x `width` pixels when upright; its pixels on demand."""

    def __init__(self, file: BinaryIO):
        self._file, self._image, self._turned, size = file, None, 1, _plain_jpeg(file)
        if size:
            _check_size(*size)
            self._is_plain, (self.width, self.height) = True, size
            return
        self._image = image = _by_pillow(file)
        self._turned = _orientation(image)
        self._is_plain = image.format == "JPEG" and image.mode == "RGB" and self._turned == 1
        self.width, self.height = reversed(image.size) if self._turned in SIDEWAYS else image.size

    def pixels(self, scale: float = 1.0) -> np.ndarray:
        """uint8 [H, W, 3]: RGB, upright by its EXIF orientation, transparency laid on white, the first frame of several.

        16-bit grey keeps its upper byte. 32-bit and float grey is scaled from the smallest usual full scale that holds the image
        (1 for floats, 255, 65535), else from its own minimum and maximum.
        scale: of what is needed; a JPEG is decoded at the smallest n/8 of its size (a DCT of n x n) that leaves as much.
        """
        scale = min(scale, 1.0)
        if self._is_plain:
            self._file.seek(0)
            with suppress(ValueError):  # what libjpeg-turbo warns of, Pillow may read all the same
                least = {"min_width": math.ceil(self.width * scale), "min_height": math.ceil(self.height * scale)}
                return simplejpeg.decode_jpeg(self._file.read(), "RGB", min_factor=1, **least)
            self._file.seek(0)
        image = self._image or _by_pillow(self._file)
        image.draft(None, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
        return np.array(_upright_rgb(image, self._turned))  # a copy: Pillow's own is not writable


@contextmanager
def open_photo(path: Path, content: bytes | None = None) -> Iterator[Photo]:
    """The image at `path`, or in `content`, which `path` then only names. Raises BadImage, also for what its reader meets."""
    with _opened(path, content) as file:
        yield Photo(file)


def read_image(path: Path) -> Image.Image:
    """`path` as `Photo.pixels` reads it. Raises BadImage."""
    with open_photo(path) as photo:
        return Image.fromarray(photo.pixels())


def inspect(path: Path) -> str | None:
    """Why `path` is a bad image, or None. A JPEG or PNG costs a header and a tail; what looks cut and other formats are decoded."""
    try:
        with _opened(path) as file:
            image = _by_pillow(file)
            ending = ENDINGS.get(image.format or "")
            if ending is None or ending not in _tail(file):
                _upright_rgb(image)
    except BadImage as bad:
        return bad.reason
    return None


def remarks(paths: Sequence[Path]) -> list[str]:
    """A sentence on what these files, good ones, hold beyond what is read of them: frames, and grey levels in the lower of 16 bits."""
    several, peaks = 0, []
    for path in paths:
        with suppress(BadImage), _opened(path) as file:
            image = _by_pillow(file)
            several += getattr(image, "is_animated", False) and image.format != "MPO"  # a camera's, with a preview or a second eye
            if _is_16_bit(image):
                peaks.append(int(np.asarray(image).max()))
    found = []
    if several:
        found.append(
            f"of {len(paths)} images looked at {several} have several frames (pages, a stack, an animation): the first of each is used"
        )
    if peaks and 0 < max(peaks) < DARK:
        found.append(
            f"of {len(paths)} images looked at {len(peaks)} have 16 bits and no value above {max(peaks)}: they are nearly black, since the "
            f"upper 8 bits are read. Multiply all of them by {65536 // (max(peaks) + 1)} first"
        )
    return found


def _is_16_bit(image: ImageFile.ImageFile) -> bool:
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in SIXTEEN_BIT)


def _regular(path: Path) -> BinaryIO:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise BadImage(path, "not a regular file")  # opening a pipe would wait for ever
    if status.st_size == 0:
        raise BadImage(path, "empty file")
    return open(path, "rb")


@contextmanager
def _opened(path: Path, content: bytes | None = None) -> Iterator[BinaryIO]:
    """The file, or its content. Whatever goes wrong while it is open is a BadImage."""
    try:
        with _regular(path) if content is None else io.BytesIO(content) as file:
            yield file
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        raise BadImage(path, "not an image, or its header is damaged") from error
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged data: struct.error, SyntaxError, IndexError...
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise BadImage(path, reason) from error


def _by_pillow(file: BinaryIO) -> ImageFile.ImageFile:
    """Header read and size checked."""
    image = Image.open(file, formats=formats())
    _check_size(*image.size)
    return image


def _plain_jpeg(file: BinaryIO) -> tuple[int, int] | None:
    """(width, height) of a JPEG of three channels whose first bytes are all of its header, none of it an APP1, where EXIF and XMP may
    turn an image. None leaves a file to Pillow, whose look at a header costs thirty times as much."""
    head = file.read(HEAD)
    if head.startswith(b"\xff\xd8\xff") and b"\xff\xe1" not in head:
        with suppress(ValueError):
            height, width, colours, _ = simplejpeg.decode_jpeg_header(head)
            if colours in ("YCbCr", "RGB"):
                return width, height
    file.seek(0)
    return None


def _check_size(width: int, height: int) -> None:
    """Raises ValueError."""
    limit = Image.MAX_IMAGE_PIXELS  # Pillow only warns up to twice its limit
    if limit is not None and width * height > limit:
        raise ValueError(f"{width}x{height} pixels, more than Pillow's limit of {limit} (a decompression bomb?): cut it into tiles")
    if min(width, height) < 2:
        raise ValueError(f"{width}x{height} pixels, smaller than 2x2")


def _orientation(image: ImageFile.ImageFile) -> int:
    """EXIF's, 1 to 8, as far as the header says it; 1 is upright."""
    if image.format == "TIFF":
        return 1  # Pillow turns these itself, and says their size so
    with suppress(Exception):  # damaged EXIF data is no reason to lose the image
        # Not `image.getexif`: that of a PNG decodes the pixels to look behind them, and here an error of theirs would pass.
        return int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
    return 1


def _tail(file: BinaryIO, length: int = 64) -> bytes:
    place = file.tell()  # the decoder goes on from here
    file.seek(max(0, file.seek(0, os.SEEK_END) - length))
    tail = file.read()
    file.seek(place)
    return tail


def _upright_rgb(photo: ImageFile.ImageFile, turned: int = 1) -> Image.Image:
    photo.load()
    image = photo.transpose(UPRIGHT[turned]) if turned in UPRIGHT else photo
    if _is_16_bit(photo):
        return _grey(np.asarray(image) >> 8)
    if image.mode in ("I", "F"):
        return _grey(_to_255(np.asarray(image), (255, 65535) if image.mode == "I" else (1, 255, 65535)))
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        return canvas.convert("RGB")
    return image.convert("RGB")


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def _to_255(values: np.ndarray, full_scales: tuple[int, ...]) -> np.ndarray:
    values = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    for full_scale in full_scales:
        if low >= 0 and high <= full_scale:
            return (values * (255 / full_scale)).round()
    return ((values - low) * (255 / ((high - low) or 1.0))).round()
