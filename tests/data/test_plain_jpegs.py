"""Which JPEGs libjpeg-turbo reads alone, and what is checked of them all the same."""

from pathlib import Path

import pytest
from PIL import Image

from selfdistill.data import reading
from selfdistill.data.reading import BadImage, read_image
from tests.data.test_images import HEIGHT, WIDTH, pixels, rgb


def test_a_plain_jpeg_never_meets_pillow_and_any_other_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may be turned (EXIF, XMP), is grey or CMYK, has a header longer than what is read of it, is cut within, or is no JPEG."""
    exif = Image.Exif()
    exif[0x0112] = 1
    rgb().save(tmp_path / "plain.jpg")
    rgb().save(tmp_path / "progressive.jpg", progressive=True, subsampling=0)
    rgb().save(tmp_path / "exif.jpg", exif=exif)
    rgb().save(tmp_path / "xmp.jpg", xmp=b'<x tiff:Orientation="6"/>')
    rgb().save(tmp_path / "profile.jpg", icc_profile=bytes(20_000))
    rgb().convert("L").save(tmp_path / "grey.jpg")
    rgb().convert("CMYK").save(tmp_path / "cmyk.jpg")
    rgb().save(tmp_path / "a.png")
    opened: list[str] = []
    original = reading._by_pillow
    monkeypatch.setattr(reading, "_by_pillow", lambda file: opened.append(Path(file.name).name) or original(file))
    for path in sorted(tmp_path.iterdir()):
        turned = path.name == "xmp.jpg"
        assert pixels(path).shape == ((WIDTH, HEIGHT, 3) if turned else (HEIGHT, WIDTH, 3))
    assert opened == ["a.png", "cmyk.jpg", "exif.jpg", "grey.jpg", "profile.jpg", "xmp.jpg"]
    content = (tmp_path / "plain.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[:300])
    with pytest.raises(BadImage):
        read_image(tmp_path / "cut.jpg")
    assert opened[-1] == "cut.jpg"


def test_the_size_of_a_plain_jpeg_is_checked_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (1, 9)).save(tmp_path / "line.jpg")
    with pytest.raises(BadImage, match="1x9 pixels, smaller than 2x2"):
        read_image(tmp_path / "line.jpg")
    rgb().save(tmp_path / "a.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH - 1)
    with pytest.raises(BadImage, match="decompression bomb"):
        read_image(tmp_path / "a.jpg")
