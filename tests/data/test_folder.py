"""Folders as people have them: flat, nested, labelled, split, linked, damaged."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selfdistill.data.folder import open_folder
from selfdistill.data.images import Files, Source
from selfdistill.errors import Misuse


def put(root: Path, *names: str) -> Path:
    """Small images at these names below root."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), "red").save(path)
    return root


def many(root: Path, folder: str, count: int) -> Path:
    return put(root, *(f"{folder}/{i:03}.png" for i in range(count)))


def names(images: object, root: Path) -> list[str]:
    assert isinstance(images, Files)
    return [path.relative_to(root).as_posix() for path in images.paths]


def labelled(images: object) -> list[str]:
    """The class of each image, in words."""
    assert isinstance(images, Files)
    assert images.labels is not None
    assert images.labels.dtype == torch.int64
    return [images.classes[label] for label in images.labels.tolist()]


def test_flat_folder_has_no_labels_and_no_test(tmp_path: Path) -> None:
    put(tmp_path, "b.png", "a.jpg", "C.JPG", "d.webp")
    source = open_folder(tmp_path)
    assert names(source.train, tmp_path) == ["C.JPG", "a.jpg", "b.png", "d.webp"]
    assert source.train.labels is None
    assert source.train.classes == ()
    assert source.test is None
    assert source.name == str(tmp_path)
    assert not source.bad
    assert any("no labels" in note for note in source.notes)


def test_what_is_no_image_is_not_looked_at(tmp_path: Path) -> None:
    put(tmp_path, "a.png", ".hidden.png", ".cache/b.png", "__MACOSX/c.png")
    for name in ("readme.txt", "paper.pdf", "film.mpg", "data.h5", "Thumbs.db", "noextension"):
        (tmp_path / name).write_text("x")
    source = open_folder(str(tmp_path))
    assert names(source.train, tmp_path) == ["a.png"]
    assert not source.bad


def test_one_class_or_stray_images_give_no_labels(tmp_path: Path) -> None:
    one = open_folder(put(tmp_path / "one", "cat/a.png", "cat/b.png"))
    stray = open_folder(put(tmp_path / "stray", "cat/a.png", "dog/b.png", "c.png"))
    assert one.train.labels is None
    assert len(one.train) == 2
    assert one.test is None
    assert stray.train.labels is None
    assert len(stray.train) == 3
    assert stray.test is None


def test_class_folders_give_labels_and_a_stratified_tenth(tmp_path: Path) -> None:
    for folder, count in {"dog": 40, "cat/deep/er": 20, "pair": 2, "single": 1}.items():
        many(tmp_path, folder, count)
    source = open_folder(tmp_path)
    assert source.test is not None
    assert source.train.classes == source.test.classes == ("cat", "dog", "pair", "single")
    train, test = labelled(source.train), labelled(source.test)
    assert [test.count(name) for name in source.train.classes] == [2, 4, 1, 0]
    assert [train.count(name) for name in source.train.classes] == [18, 36, 1, 1]
    assert all(name.startswith(label) for name, label in zip(names(source.train, tmp_path), train, strict=True))
    assert not set(names(source.train, tmp_path)) & set(names(source.test, tmp_path))
    assert any("7 of 63 images" in note for note in source.notes)


def test_split_depends_on_relative_names_alone(tmp_path: Path) -> None:
    many(tmp_path / "one", "a", 30), many(tmp_path / "one", "b", 30)
    shutil.copytree(tmp_path / "one", tmp_path / "else/where")
    first, again, moved = (open_folder(tmp_path / folder) for folder in ("one", "one", "else/where"))
    assert names(first.test, tmp_path / "one") == names(again.test, tmp_path / "one") == names(moved.test, tmp_path / "else/where")
    assert (
        names(first.train, tmp_path / "one") == names(moved.train, tmp_path / "else/where") == sorted(names(first.train, tmp_path / "one"))
    )


@pytest.mark.parametrize("held", ["val", "valid", "validation", "test", "Test"])
def test_train_and_held_out_folders_are_the_splits(tmp_path: Path, held: str) -> None:
    put(tmp_path, "train/cat/a.png", "train/dog/b.png", f"{held}/cat/c.png", f"{held}/dog/d.png", "other/e.png", "f.png")
    source = open_folder(tmp_path)
    assert names(source.train, tmp_path) == ["train/cat/a.png", "train/dog/b.png"]
    assert names(source.test, tmp_path) == [f"{held}/cat/c.png", f"{held}/dog/d.png"]
    assert labelled(source.train) == labelled(source.test) == ["cat", "dog"]
    assert any(note.startswith("2 images lie outside") for note in source.notes)


def test_test_is_preferred_to_val(tmp_path: Path) -> None:
    put(tmp_path, *(f"{split}/{name}/a.png" for split in ("train", "val", "test") for name in ("cat", "dog")))
    source = open_folder(tmp_path)
    assert names(source.test, tmp_path) == ["test/cat/a.png", "test/dog/a.png"]
    assert len(source.train) == 2
    assert not source.notes


@pytest.mark.parametrize("unlabelled", ["test/a.png", "test/unknown/a.png"])
def test_an_unlabelled_test_gives_way_to_a_labelled_val(tmp_path: Path, unlabelled: str) -> None:
    put(tmp_path, "train/cat/a.png", "train/dog/b.png", "val/cat/c.png", unlabelled)
    source = open_folder(tmp_path)
    assert names(source.test, tmp_path) == ["val/cat/c.png"]
    assert labelled(source.test) == ["cat"]
    assert any(note.startswith("test/ is not used") for note in source.notes)


def test_a_tenth_is_held_out_where_no_split_is_labelled(tmp_path: Path) -> None:
    many(tmp_path, "train/cat", 10), many(tmp_path, "train/dog", 10), many(tmp_path, "test", 5)
    source = open_folder(tmp_path)
    assert sorted(labelled(source.test)) == ["cat", "dog"]
    assert len(source.train) == 18


def test_unlabelled_split_keeps_its_test(tmp_path: Path) -> None:
    source = open_folder(put(tmp_path, "train/a.png", "train/b.png", "val/c.png"))
    assert source.test is not None
    assert source.test.labels is None
    assert (len(source.train), len(source.test)) == (2, 1)


def test_train_alone_is_the_root_and_train_may_be_a_class(tmp_path: Path) -> None:
    alone = open_folder(put(tmp_path / "alone", "train/cat/a.png", "train/dog/b.png"))
    vehicles = open_folder(put(tmp_path / "vehicles", "bus/a.png", "train/b.png"))
    assert alone.train.classes == ("cat", "dog")
    assert vehicles.train.classes == ("bus", "train")


def test_links_are_followed_once(tmp_path: Path) -> None:
    root = put(tmp_path / "root", "cat/a.png", "dog/b.png")
    put(tmp_path / "elsewhere", "c.png")
    put(tmp_path, "beside.png")
    (root / "cat/up").symlink_to(root)  # a loop
    (root / "cat/above").symlink_to(tmp_path)  # a loop over a parent of the root
    (root / "aaa").symlink_to(root / "cat")  # an alias that sorts first
    (root / "self").symlink_to(root / "self")  # leads nowhere
    (root / "zebra").symlink_to(tmp_path / "elsewhere")
    (root / "cat/d.png").symlink_to(tmp_path / "elsewhere/c.png")
    source = open_folder(root)
    found = names(source.train, root) + (names(source.test, root) if source.test else [])
    assert sorted(found) == ["cat/a.png", "cat/d.png", "dog/b.png", "zebra/c.png"]
    assert source.train.classes == ("cat", "dog", "zebra")
    assert not source.bad


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    put(tmp_path, "good/a.png", "other/b.png")
    try:
        os.rename(os.fsencode(tmp_path / "other"), os.fsencode(tmp_path) + b"/caf\xe9")
        os.rename(os.fsencode(tmp_path / "good/a.png"), os.fsencode(tmp_path) + b"/good/\xff.png")
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    (tmp_path / os.fsdecode(b"good/\xfe.png")).touch()
    source = open_folder(tmp_path)
    assert isinstance(source.train, Files)
    for i in range(2):
        with source.train.open(i) as photo:
            assert (photo.width, photo.height) == (4, 4)
    assert source.train.classes == ("caf\\udce9", "good")
    " ".join((*source.train.classes, *source.notes)).encode()  # all that is said can be written
    assert len(source.bad) == 1


def damaged(root: Path) -> Path:
    put(root, "a.png", "b.png")
    (root / "empty.jpg").touch()
    (root / "text.jpg").write_text("no image")
    Image.new("RGB", (1, 1)).save(root / "dot.png")
    (root / "gone.png").symlink_to(root / "nowhere")
    return root


def test_bad_files_are_left_out_and_listed(tmp_path: Path) -> None:
    source = open_folder(damaged(tmp_path))
    assert names(source.train, tmp_path) == ["a.png", "b.png"]
    assert [path.name for path, _ in source.bad] == ["dot.png", "empty.jpg", "gone.png", "text.jpg"]
    assert dict(source.bad)[tmp_path / "empty.jpg"] == "empty file"
    assert any(note.startswith("4 bad files are left out:\n") and note.count("\n") == 4 for note in source.notes)


def test_on_bad_image_error_stops_at_the_first(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match=r"dot\.png: 1x1 pixels.*on_bad_image=skip"):
        open_folder(damaged(tmp_path), on_bad_image="error")
    assert len(open_folder(put(tmp_path / "good", "a.png"), on_bad_image="error").train) == 1


def test_misuse_says_what_is_wrong(tmp_path: Path) -> None:
    def message(path: Path, policy: str = "skip") -> str:
        with pytest.raises(Misuse) as caught:
            open_folder(path, on_bad_image=policy)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert f"{tmp_path}/nowhere does not exist" in message(tmp_path / "nowhere")
    (tmp_path / "images.zip").touch()
    assert "is a file: unpack it" in message(tmp_path / "images.zip")
    assert "'ignore'" in message(tmp_path, "ignore")
    assert "skip, error" in message(tmp_path, "ignore")
    (tmp_path / "empty").mkdir()
    assert "0 files seen" in message(tmp_path / "empty")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").touch()
    assert "1 files seen, none with an image's extension" in message(tmp_path / "texts")
    (tmp_path / "texts/b.jpg").touch()
    assert "2 files seen, 1 named like images, bad:" in message(tmp_path / "texts")
    assert "b.jpg (empty file)" in message(tmp_path / "texts")


def test_more_files_than_one_batch_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfdistill.data.folder.BATCH", 7)
    source: Source = open_folder(many(tmp_path, ".", 50))
    assert names(source.train, tmp_path) == [f"{i:03}.png" for i in range(50)]


def test_a_stack_of_which_the_first_is_read_and_12_bits_in_16_are_said(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 4096, (3, 8, 8), dtype=np.uint16)
    for name, factor in {"microscope": 1, "scaled": 16}.items():
        pages = [Image.fromarray(page * factor) for page in deep]
        (tmp_path / name).mkdir()
        pages[0].save(tmp_path / name / "a.tif", save_all=True, append_images=pages[1:])
        pages[0].save(tmp_path / name / "b.png")
    said, scaled = (open_folder(tmp_path / name).notes for name in ("microscope", "scaled"))
    frames = "of 2 images looked at 1 have several frames (pages, a stack, an animation): the first of each is used"
    assert frames in said
    assert frames in scaled
    assert any(f"2 have 16 bits and no value above {deep[0].max()}: they are nearly black" in note and "by 16 " in note for note in said)
    assert not any("16 bits" in note for note in scaled)
