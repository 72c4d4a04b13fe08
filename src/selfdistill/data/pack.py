"""A folder of photographs as WebDataset shards of smaller JPEGs: decoded faster at every epoch, read from few files."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from selfdistill.data.images import Encoded, Source
from selfdistill.data.reading import BadImage, printable
from selfdistill.data.sources import open_source
from selfdistill.disk import whole_folder
from selfdistill.errors import Misuse

SHARD = 10_000
"""images of a shard; a few hundred megabytes"""
FLIGHT = 256
"""images in flight: memory stays flat"""


def pack(data: str, out: Path, side: int = 256, quality: int = 95, report: Callable[[str], None] = print) -> int:
    """Writes train-0.tar, ... and test-0.tar, ... into the new folder `out`, which `data=OUT` then opens; returns how many images.

    side: of the shorter side, in pixels, beyond which an image is made smaller. What cannot be read, or written as a JPEG, is reported and
    left out. Raises `Misuse` when `out` exists, or when `data` is in memory already. `out` is whole or not there.
    """
    with whole_folder(out, "OUT") as folder:
        source = open_source(data)
        if not isinstance(source.train, Encoded):
            raise Misuse(f"data={data} is held in memory: there is nothing to pack")
        for path, reason in source.bad:
            report(f"left out: {printable(path)}: {reason}")
        return sum(_write(images, folder, split, side, quality, report) for split, images in _splits(source).items())


def _splits(source: Source) -> dict[str, Encoded]:
    return {split: images for split, images in (("train", source.train), ("test", source.test)) if isinstance(images, Encoded)}


def _write(images: Encoded, folder: Path, split: str, side: int, quality: int, report: Callable[[str], None]) -> int:
    written, names = 0, f"{split}-{{:0{len(str(len(images) // SHARD))}d}}.tar"
    with ThreadPoolExecutor() as pool:  # decoding, resizing and encoding all leave the interpreter
        for shard, start in enumerate(range(0, len(images), SHARD)):
            with tarfile.open(folder / names.format(shard), "w") as tar:
                for first in range(start, min(start + SHARD, len(images)), FLIGHT):
                    places = range(first, min(first + FLIGHT, start + SHARD, len(images)))
                    for i, jpeg in zip(places, pool.map(lambda i: _smaller(images, i, side, quality), places), strict=True):
                        if isinstance(jpeg, str):
                            report(f"left out: {jpeg}")
                            continue
                        _add(tar, f"{i:09d}.jpg", jpeg)
                        if images.labels is not None and images.labels[i] >= 0:
                            _add(tar, f"{i:09d}.json", json.dumps({"label": images.classes[images.labels[i]]}).encode())
                        written += 1
    return written


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _smaller(images: Encoded, i: int, side: int, quality: int) -> bytes | str:
    """Image i as a JPEG whose shorter side is at most `side` pixels, or why it cannot be one."""
    try:
        with images.open(i) as photo:
            factor = min(1.0, side / min(photo.width, photo.height))
            size = max(1, round(photo.width * factor)), max(1, round(photo.height * factor))
            image = Image.fromarray(photo.pixels(factor)).resize(size, Image.Resampling.LANCZOS)
    except BadImage as e:
        return str(e)
    buffer = io.BytesIO()
    try:
        image.save(buffer, "JPEG", quality=quality)
    except OSError as e:  # a JPEG has 65,500 pixels to a side
        return f"{images.path(i)}: cannot be written as a JPEG of {image.width} x {image.height} pixels: {e}"
    return buffer.getvalue()
