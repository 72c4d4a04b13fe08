"""Reading one image: every mode and format, and every way in which a file can be bad."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selfdistill.data.images import Files, Pixels, Source, spread
from selfdistill.data.reading import BadImage, inspect, open_photo, printable, read_image
from selfdistill.data.sources import given
from selfdistill.errors import Misuse

HEIGHT, WIDTH = 12, 20


def test_images_spread_over_a_set_are_in_it():
    """In fp32 the last of more than 2^24 places is one too many."""
    many = Pixels(torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(2**24 + 4, 1, 1, 1))
    assert len(spread(many, 1000)) == 1000


def rgb() -> Image.Image:
    """Smooth in both directions, so that lossy formats stay close to it."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return Image.fromarray(np.stack([x * 12, y * 20, np.full_like(x, 100)], axis=-1).astype(np.uint8))


def pixels(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("extension", ["png", "bmp", "tiff", "ppm", "tga", "gif", "webp", "jpg", "jp2", "avif", "ico", "pcx", "sgi", "qoi"])
def test_formats_round_trip(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"image.{extension}"
    options = {"lossless": True} if extension == "webp" else {"sizes": [(WIDTH, HEIGHT)]} if extension == "ico" else {}
    try:
        rgb().save(path, **options)
    except (KeyError, OSError, ValueError) as error:
        pytest.skip(f"this Pillow does not write {extension}: {error}")
    lossy = {"jpg": 24, "avif": 40, "gif": 40}
    assert pixels(path).shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_allclose(pixels(path).astype(int), np.asarray(rgb()).astype(int), atol=lossy.get(extension, 0))
    assert inspect(path) is None


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_modes(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "image.png"
    rgb().convert(mode).save(path)
    assert Image.open(path).mode == mode
    np.testing.assert_array_equal(pixels(path), np.asarray(rgb().convert(mode).convert("RGB")))
    assert inspect(path) is None


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (200, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (4, 4), (0, 0, 0, 128)).save(tmp_path / "half.png")
    Image.new("LA", (4, 4), (0, 0)).save(tmp_path / "grey.png")
    assert (pixels(tmp_path / "clear.png") == 255).all()
    assert (pixels(tmp_path / "half.png") == 127).all()
    assert (pixels(tmp_path / "grey.png") == 255).all()


@pytest.mark.parametrize("name", ["palette.png", "palette.gif"])
def test_palette_with_a_transparent_entry(tmp_path: Path, name: str) -> None:
    image = Image.new("P", (4, 2), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.paste(1, (2, 0, 4, 2))
    image.save(tmp_path / name, transparency=0)
    assert pixels(tmp_path / name)[0].tolist() == [[255, 255, 255]] * 2 + [[0, 255, 0]] * 2


def test_transparent_colour_of_an_rgb_png(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "a.png", transparency=(1, 2, 3))
    assert (pixels(tmp_path / "a.png") == 255).all()


@pytest.mark.parametrize("name", ["cmyk.jpg", "cmyk.tiff"])
def test_cmyk(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (16, 16), (250, 10, 10)).convert("CMYK").save(tmp_path / name)
    red, green, blue = pixels(tmp_path / name)[8, 8].astype(int)
    assert red > 200
    assert green < 60
    assert blue < 60


@pytest.mark.parametrize("name", ["deep.png", "deep.tiff", "deep.pgm"])
def test_sixteen_bit_grey_keeps_its_upper_byte(tmp_path: Path, name: str) -> None:
    values = np.array([[0, 255, 256, 511], [1000, 32768, 65280, 65535]], np.uint16)
    if name.endswith("pgm"):
        (tmp_path / name).write_bytes(b"P5 4 2 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(tmp_path / name)
    np.testing.assert_array_equal(pixels(tmp_path / name), np.repeat((values >> 8)[..., None], 3, axis=-1))


def test_big_endian_sixteen_bit_tiff(tmp_path: Path) -> None:
    image = Image.frombytes("I;16B", (2, 2), np.array([[0, 256], [32768, 65535]], ">u2").tobytes())
    image.save(tmp_path / "a.tiff")
    assert Image.open(tmp_path / "a.tiff").mode == "I;16B"
    assert pixels(tmp_path / "a.tiff")[..., 0].tolist() == [[0, 1], [128, 255]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 0.5], [0.25, 1]], np.float32), [[0, 128], [64, 255]]),
        (np.array([[0, 200], [17, 255]], np.float32), [[0, 200], [17, 255]]),
        (np.array([[-1, 0], [1, np.nan]], np.float32), [[0, 128], [255, 128]]),
        (np.array([[3, 3], [3, 3]], np.float32) * 1e6, [[0, 0], [0, 0]]),
        (np.array([[0, 200], [17, 255]], np.int32), [[0, 200], [17, 255]]),
        (np.array([[0, 65535], [257, 514]], np.int32), [[0, 255], [1, 2]]),
        (np.array([[0, 2_000_000], [1_000_000, 0]], np.int32), [[0, 255], [128, 0]]),
    ],
)
def test_grey_without_a_fixed_scale(tmp_path: Path, values: np.ndarray, expected: list[list[int]]) -> None:
    Image.fromarray(values).save(tmp_path / "a.tiff")
    assert pixels(tmp_path / "a.tiff")[..., 0].tolist() == expected


@pytest.mark.parametrize("extension", ["gif", "webp", "png", "tiff"])
def test_animation_gives_its_first_frame(tmp_path: Path, extension: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black", "black")]
    path = tmp_path / f"a.{extension}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert getattr(Image.open(path), "n_frames", 1) > 1
    assert (pixels(path) == 255).all()


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tiff"])
def test_exif_orientation(tmp_path: Path, extension: str) -> None:
    image = Image.new("RGB", (40, 16), "black")
    image.paste("white", (0, 0, 16, 16))  # white on the left; orientation 6 turns by a quarter clockwise: white on top
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / f"a.{extension}"
    image.save(path, exif=exif)
    assert pixels(path).shape == (40, 16, 3)
    with open_photo(path) as photo:
        assert (photo.height, photo.width) == (40, 16)  # before it is decoded: crops are drawn from these
    assert pixels(path)[2:14].mean() > 230
    assert pixels(path)[18:].mean() < 25


def test_damage_inside_a_png_is_an_error_and_no_black_image(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(255 - b for b in content[middle : middle + 64])
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(BadImage, match=r"a\.png"):
        read_image(tmp_path / "a.png")


def test_damaged_exif_keeps_the_image(tmp_path: Path) -> None:
    rgb().save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff garbage")
    assert pixels(tmp_path / "a.jpg").shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("at_least", [1, 50, 99, 100, 101, 200, 399, 1000])
def test_a_jpeg_is_shrunk_but_never_below_what_is_needed(tmp_path: Path, at_least: int) -> None:
    Image.new("RGB", (600, 400), "red").save(tmp_path / "a.jpg")
    with open_photo(tmp_path / "a.jpg") as photo:
        height, width, _ = photo.pixels(at_least / 400).shape
    assert height >= min(400, at_least)
    assert width / height == pytest.approx(1.5)
    assert height == 400 or height < at_least + 50 * 1.01  # eighths
    Image.new("RGB", (600, 400), "red").save(tmp_path / "a.png")
    with open_photo(tmp_path / "a.png") as photo:
        assert photo.pixels(at_least / 400).shape == (400, 600, 3)


def bad_files(folder: Path) -> dict[str, Path]:
    """One file for each way of being bad."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    for name in ("cut.jpg", "cut.png", "cut.bmp", "cut.tiff", "cut.webp", "cut.gif"):
        noise.save(folder / name)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
    noise.save(folder / "head.jpg")
    (folder / "head.jpg").write_bytes((folder / "head.jpg").read_bytes()[:20])
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("this is a text, not an image\n" * 20)
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.new("RGB", (100, 1)).save(folder / "line.png")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "broken.png").symlink_to(folder / "nowhere")
    return {path.name: path for path in folder.iterdir()}


def test_bad_files_say_why(tmp_path: Path) -> None:
    reasons = {
        "empty.jpg": "empty file",
        "text.jpg": "not an image",
        "head.jpg": "not an image",
        "dot.png": "1x1 pixels, smaller than 2x2",
        "line.png": "100x1",
        "folder.png": "not a regular file",
        "pipe.png": "not a regular file",
        "broken.png": "No such file",
        "cut.jpg": "truncated",
        "cut.png": "",
        "cut.bmp": "",
        "cut.tiff": "",
        "cut.webp": "",
        "cut.gif": "",
    }
    files = bad_files(tmp_path)
    assert files.keys() == reasons.keys()
    for name, path in files.items():
        reason = inspect(path)
        assert reason, name
        assert reasons[name] in reason
        with pytest.raises(BadImage) as caught:
            read_image(path)
        assert caught.value.path == path
        assert caught.value.reason == reason
        assert str(caught.value) == f"{path}: {reason}"


def test_a_decompression_bomb_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rgb().save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH // 4)  # Pillow's own error
    assert "bomb" in (inspect(tmp_path / "a.png") or "")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH - 1)  # where Pillow only warns
    with pytest.warns(Image.DecompressionBombWarning):
        assert "bomb" in (inspect(tmp_path / "a.png") or "")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert inspect(tmp_path / "a.png") is None


def test_inspection_of_a_whole_jpeg_does_not_decode_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rgb().save(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes() + b"\0" * 100)  # padding hides the end: decoded, and good
    decoded: list[object] = []
    monkeypatch.setattr("selfdistill.data.reading._upright_rgb", decoded.append)
    assert inspect(tmp_path / "a.jpg") is None
    assert not decoded
    assert inspect(tmp_path / "b.jpg") is None
    assert len(decoded) == 1


@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_no_cut_file_passes_inspection_and_then_fails(tmp_path: Path, extension: str) -> None:
    whole, cut = tmp_path / f"whole.{extension}", tmp_path / f"cut.{extension}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)).save(whole)
    content = whole.read_bytes()
    for length in range(0, len(content), 7):
        cut.write_bytes(content[:length])
        if inspect(cut) is None:
            assert read_image(cut).size == (24, 24)
            assert length > len(content) - 16  # only a lost end marker may pass


def test_bad_image_survives_pickling() -> None:
    bad = pickle.loads(pickle.dumps(BadImage(Path("a.jpg"), "empty file")))
    assert (bad.path, bad.reason, str(bad)) == (Path("a.jpg"), "empty file", "a.jpg: empty file")


def test_printable() -> None:
    assert printable(os.fsdecode(b"caf\xe9.jpg")) == "caf\\udce9.jpg"
    assert printable(Path("café.jpg")) == "café.jpg"


def test_pixels_and_files_have_one_interface(tmp_path: Path) -> None:
    rgb().save(tmp_path / "a.png")
    labels = torch.tensor([1])
    memory = Pixels(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), labels, ("cat", "dog"))
    disk = Files([tmp_path / "a.png"], labels, ("cat", "dog"))
    assert (len(memory), memory.channels) == (1, 1)
    assert (len(disk), disk.channels) == (1, 3)
    assert memory.labels is labels
    assert disk.classes == ("cat", "dog")
    with disk.open(0) as photo:
        assert (photo.width, photo.height) == (WIDTH, HEIGHT)
        assert photo.pixels().shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    ("shape", "dtype", "labels", "message"),
    [
        ((2, 8, 8), torch.uint8, None, "not uint8"),
        ((2, 1, 8, 8), torch.float32, None, "not uint8"),
        ((2, 1, 8, 8), torch.uint8, torch.tensor([0]), "one for each image"),
        ((2, 1, 8, 8), torch.uint8, torch.tensor([0.0, 1.0]), "not int64"),
        ((2, 1, 8, 8), torch.uint8, torch.tensor([0, 2]), "with 2 classes"),
        ((2, 1, 8, 8), torch.uint8, torch.tensor([0, -2]), "with 2 classes"),
    ],
)
def test_pixels_refuse_what_they_cannot_hold(shape: tuple[int, ...], dtype: torch.dtype, labels: torch.Tensor | None, message: str) -> None:
    with pytest.raises(Misuse, match=message):
        Pixels(torch.zeros(shape, dtype=dtype), labels, ("a", "b"))


def test_a_numpy_array_is_images_too() -> None:
    images = np.arange(64, dtype=np.uint8).reshape(1, 1, 8, 8)
    source = given(images)
    assert isinstance(source, Source)
    assert torch.equal(source.train.pick(torch.tensor([0])).pixels, torch.as_tensor(images))
    images.flags.writeable = False
    assert torch.equal(given(images[:, :, ::-1]).train.pixels, torch.as_tensor(images.copy()).flip(2))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (np.zeros((4, 8, 8, 3), np.uint8), r"channels last: \.permute\(0, 3, 1, 2\)"),
        (np.zeros((4, 3, 8, 8)), "float64"),
        (np.zeros((4, 8, 8), np.uint8), r"not uint8 \[N, C, H, W\]"),
        ([Image.new("L", (8, 8))], "give their folder"),
        (iter([0]), "Streams are not read"),
    ],
)
def test_what_is_no_set_of_images_is_told_the_way_out(data: object, said: str) -> None:
    with pytest.raises(Misuse, match=said):
        given(data)


def test_labels_of_another_kind_are_named() -> None:
    with pytest.raises(Misuse, match=r"labels are a ndarray, not a tensor"):
        Pixels(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), np.arange(2), ("a", "b"))  # type: ignore[arg-type]
