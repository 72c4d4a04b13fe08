"""What workers cut from files: torchvision's resized crop, of an image decoded no larger than its crops need."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.transforms.v2 import functional as tv

from selfdistill.data.images import Files
from selfdistill.data.loader import _Crops, _Squares
from selfdistill.data.reading import Photo, open_photo
from selfdistill.methods import METHODS
from selfdistill.views.augment import draws
from selfdistill.views.crop import DRAWS, crop_boxes
from selfdistill.views.fused import cut_crops

RECIPE = METHODS["dino"].edit(["views.size=48", "views.locals.size=24", "seed=3"])


@pytest.fixture(scope="module")
def photo():
    return load_sample_image("china.jpg")  # [427, 640, 3]


def cut(path, keys=((0, 0),)):
    _, index, crops, bad = _Crops(Files([path]), RECIPE).__getitems__(list(keys))
    assert (index.tolist(), bad) == ([0] * len(keys), [])
    return crops


def expected(pixels, epoch):
    """The same boxes, cut by torchvision from the whole image."""
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    H, W = image.shape[1:]
    for views in RECIPE.views.of_each_size(2):
        done = []
        for v, size, how in views:
            top, left, h, w = crop_boxes(draws(3, epoch, torch.tensor([0]), v)[:, :DRAWS], H, W, how)[0].tolist()
            done.append(tv.resized_crop(image, top, left, h, w, [size, size], antialias=True))
        yield torch.stack(done)


def same(ours, theirs):
    """To a grey level: both round between columns and rows, torchvision takes the rows first."""
    assert ours.shape == theirs.shape
    off = ours.int() - theirs.int()
    assert off.abs().max() <= 1
    assert abs(off.float().mean()) < 0.05


def test_crops_are_torchvisions_to_a_grey_level(tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / "a.png")
    crops = cut(tmp_path / "a.png", [(4, 0), (4, 0)])
    for ours, theirs in zip(crops, expected(photo, 4), strict=True):
        assert ours.shape == (2, *theirs.shape)
        assert torch.equal(ours[0], ours[1])
        same(ours[0], theirs)


@pytest.mark.parametrize("size", [1, 7, 16, 45])
def test_boxes_of_any_shape_and_crops_of_any_size(size):
    """Of noise, where every rounding shows: down to one pixel, up to all, magnified and squeezed to a few."""
    rng = np.random.default_rng(size)
    pixels = rng.integers(0, 256, (61, 83, 3), dtype=np.uint8)
    corner, sides = rng.integers(0, (30, 40), (40, 2)), np.exp(rng.uniform(0, np.log((31, 43)), (40, 2))).astype(int)
    boxes = np.concatenate([np.concatenate([corner, sides], 1), [[0, 0, 61, 83], [60, 82, 1, 1], [0, 5, 61, 1]]])
    crops = torch.empty(len(boxes), 3, size, size, dtype=torch.uint8)
    cut_crops(pixels, boxes, crops)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    same(crops, torch.stack([tv.resized_crop(image, *box, [size, size], antialias=True) for box in boxes.tolist()]))


def test_a_large_jpeg_is_decoded_small_and_hardly_differs(tmp_path, photo, monkeypatch):
    """Of eight times the crops' size: a difference of two grey levels in the mean, from a shift by at most a quarter of a pixel."""
    Image.fromarray(photo).resize((1920, 1281), Image.Resampling.LANCZOS).save(tmp_path / "a.jpg", quality=95)
    with open_photo(tmp_path / "a.jpg") as whole:
        pixels = whole.pixels()
    asked = []
    original = Photo.pixels
    monkeypatch.setattr(Photo, "pixels", lambda self, scale=1.0: asked.append(scale) or original(self, scale))
    crops = cut(tmp_path / "a.jpg")
    assert asked[0] < 0.75
    for ours, theirs in zip(crops, expected(pixels, 0), strict=True):
        assert (ours[0].float() - theirs.float()).abs().mean() < 2.5


@pytest.mark.parametrize("scale", [1.0, 0.9, 0.5, 0.3, 0.125, 0.01])
def test_a_decoded_image_has_what_was_asked_and_not_much_more(tmp_path, photo, scale):
    Image.fromarray(photo).save(tmp_path / "a.jpg", quality=95)
    with open_photo(tmp_path / "a.jpg") as opened:
        height, width = opened.pixels(scale).shape[:2]
    assert 427 * scale <= height <= 427 * (max(scale, 0) + 1 / 8) + 1
    assert width / height == pytest.approx(640 / 427, rel=0.03)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_jpeg_is_upright_in_size_and_pixels(tmp_path, photo, orientation):
    image, exif = Image.fromarray(photo[:100, :160]), Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    with open_photo(tmp_path / "a.jpg") as opened:
        assert (opened.width, opened.height) == ((100, 160) if orientation > 4 else (160, 100))
        assert opened.pixels().shape == (opened.height, opened.width, 3)
        assert opened.pixels(0.5).shape[0] >= opened.height / 2


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_jpegs_of_all_modes_become_rgb(tmp_path, photo, mode):
    Image.fromarray(photo[:64, :64]).convert(mode).save(tmp_path / "a.jpg", quality=95)
    with open_photo(tmp_path / "a.jpg") as opened:
        pixels = opened.pixels()
    reference = np.asarray(Image.open(tmp_path / "a.jpg").convert("RGB"))
    assert np.abs(pixels.astype(int) - reference.astype(int)).mean() < 1.5


def test_squares_are_the_centre_and_an_unreadable_file_is_grey(tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"nothing")
    squares, _ = _Squares(Files([tmp_path / "a.png", tmp_path / "b.png"]), RECIPE.views).__getitems__([0, 1])
    centre = torch.from_numpy(photo[:, 106:533].copy()).permute(2, 0, 1)
    same(squares[0], tv.resize(centre, [48, 48], antialias=True))
    assert (squares[1] == 124).all()
