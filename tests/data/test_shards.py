"""Archives and tables as data: read at random, labelled, split, and refused by name."""

import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

import selfdistill as sd
from selfdistill.data.order import micro_batches
from selfdistill.data.pack import pack
from selfdistill.data.reading import BadImage
from selfdistill.data.shards import _expanded
from selfdistill.data.sources import open_source
from selfdistill.data.splits import split_of
from selfdistill.errors import Failure, Misuse
from selfdistill.train.run import features_of


def jpeg(colour: int, size=(20, 12)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (colour, 0, 0)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def write(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def red(images, i: int) -> float:
    with images.open(i) as photo:
        return photo.pixels()[..., 0].mean()


def test_samples_labels_and_splits(tmp_path):
    for shard in range(3):
        keys = range(10 * shard, 10 * shard + 10)
        members = {f"{k:03d}.{end}": data for k in keys for end, data in (("jpg", jpeg(5 * k)), ("cls", f"{k % 3}\n".encode()))}
        write(tmp_path / f"train-{shard}.tar", {**members, "readme.txt": b"no image"})
    write(tmp_path / "val-0.tar", {"a.png": png(), "a.json": json.dumps({"label": 2}).encode()})
    source = open_source(str(tmp_path))
    assert (len(source.train), len(source.test)) == (30, 1)
    assert source.train.classes == ("0", "1", "2")
    assert torch.equal(source.train.labels, torch.arange(30) % 3)
    assert source.test.labels.tolist() == [2]
    assert [red(source.train, i) for i in (29, 0, 17)] == pytest.approx([145, 0, 85], abs=2)  # any order
    assert red(source.train.pick(torch.tensor([8, 4])), 0) == pytest.approx(40, abs=2)
    braces = open_source(f"{tmp_path}/train-{{0..1}}.tar")
    assert len(braces.train) + len(braces.test) == 20
    assert len(braces.test) == 3  # one of each class


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), "blue").save(buffer, "PNG")
    return buffer.getvalue()


def test_folders_in_an_archive_are_classes_and_no_labels_are_none(tmp_path):
    source = open_source(str(write(tmp_path / "a.tar", {f"{c}/{i}.jpg": jpeg(i) for c in ("cat", "dog") for i in range(5)})))
    assert source.train.classes == ("cat", "dog")
    assert len(source.test) == 2
    bare = open_source(str(write(tmp_path / "b.tar", {f"{i}.jpg": jpeg(i) for i in range(5)})))
    assert (bare.train.labels, bare.test, len(bare.train)) == (None, None, 5)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("imagenet1k-train-0000.tar", "train"),
        ("imagenet1k-validation-00.tar", "validation"),
        ("default/test/0000.parquet", "test"),
        ("TEST_3.tar", "test"),
        ("valencia-000.tar", "train"),
        ("latest-000.tar", "train"),
        ("mnist-test-cut-train-0.tar", "train"),
        ("shards-000.tar", "train"),
    ],
)
def test_a_split_is_a_word_of_the_name(name, split):
    assert split_of(name) == split


def test_shards_to_hold_out_are_one_split_with_the_labels_of_training(tmp_path):
    def shard(name, classes, n=10):
        write(tmp_path / name, {f"{c}{i}.{end}": data for c in classes for i in range(n) for end, data in said(c, i)})

    def said(c, i):
        return [("jpg", jpeg(i))] + ([("cls", c.encode())] if c != "x" else [])

    shard("set-train-0.tar", "01")
    shard("set-val-0.tar", "01", 3)
    shard("set-test-0.tar", "x", 4)
    source = open_source(str(tmp_path))
    assert (len(source.train), len(source.test), source.train.classes) == (20, 6, ("0", "1"))
    assert any("named test are not used" in note for note in source.notes)
    shard("set-test-0.tar", "01", 4)
    source = open_source(str(tmp_path))
    assert (len(source.test), source.test.labels.tolist()) == (8, [0] * 4 + [1] * 4)
    assert any("named val are not used" in note for note in source.notes)


def test_an_image_without_a_label_takes_none_of_the_others(tmp_path):
    """Neither when its shard is written by `pack`."""
    labels = {f"{i}.cls": str(i % 2).encode() for i in range(19)}
    source = open_source(str(write(tmp_path / "a.tar", {f"{i}.jpg": jpeg(i) for i in range(20)} | labels)))
    assert source.train.classes == ("0", "1")
    assert (source.train.labels == -1).sum() == 1
    assert sorted(source.test.labels.tolist()) == [0, 1]
    assert "1 of them have no label" in source.notes
    of_folder = {f"img/{name}": content for name, content in ({f"{i}.jpg": jpeg(i) for i in range(20)} | labels).items()}
    assert open_source(str(write(tmp_path / "b.tar", of_folder))).train.classes == ("0", "1")  # a folder is a label where none is written
    pack(str(tmp_path / "a.tar"), tmp_path / "packed", 64)
    again = open_source(str(tmp_path / "packed"))
    assert (again.train.labels == -1).sum() == 1


def test_a_mask_beside_an_image_is_not_the_image(tmp_path):
    for first, second in (("png", "mask.png"), ("depth.png", "jpg")):
        members = {f"{i}.{end}": jpeg(200 if "." not in end else 1) for i in range(3) for end in (first, second)}
        source = open_source(str(write(tmp_path / "a.tar", members)))
        assert [red(source.train, i) for i in range(3)] == pytest.approx([200] * 3, abs=2)
        assert any(note.startswith("3 images are not used") for note in source.notes)


def test_shards_in_folders_named_for_their_split(tmp_path):
    for split, n in (("train", 4), ("val", 2)):
        (tmp_path / "validated" / split).mkdir(parents=True)
        write(tmp_path / "validated" / split / "0000.tar", {f"{c}/{i}.jpg": jpeg(i) for c in "ab" for i in range(n)})
    source = open_source(f"{tmp_path}/validated/*/*.tar")
    assert (len(source.train), len(source.test)) == (8, 4)
    alone = open_source(f"{tmp_path}/validated/val/*.tar")  # what a user names is trained on
    assert len(alone.train) + len(alone.test) == 4


def test_one_folder_is_no_class_and_images_of_one_key_are_counted(tmp_path):
    source = open_source(str(write(tmp_path / "a.tar", {f"photos/IMG.{i}.jpg": jpeg(i) for i in range(5)} | {"photos/b.jpg": jpeg(1)})))
    assert (len(source.train), source.train.classes, source.test) == (2, (), None)
    assert any(note.startswith("4 images are not used") for note in source.notes)


def test_a_name_with_brackets_and_one_at_home(tmp_path, monkeypatch):
    write(tmp_path / "photos [1].tar", {f"{i}.jpg": jpeg(i) for i in range(5)})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(open_source(str(tmp_path / "photos [1].tar")).train) == len(open_source("~/photos [1].tar").train) == 5


def test_an_archive_that_is_gone_is_a_bad_image(tmp_path):
    source = open_source(str(write(tmp_path / "a.tar", {f"{i}.jpg": jpeg(i) for i in range(3)})))
    (tmp_path / "a.tar").unlink()
    with pytest.raises(BadImage, match=r"a\.tar@.*No such file"), source.train.open(2):
        pass


def test_features_of_what_cannot_be_read_are_warned_of(tiny_run, tmp_path):
    members = {f"{i}.png": grey() for i in range(4)} | {"broken.png": grey()[:60]}
    source = open_source(str(write(tmp_path / "a.tar", members)))
    recipe = tiny_run.recipe.edit(["workers=0"])
    with pytest.warns(UserWarning, match=r"1 of 5 images cannot be read .*a\.tar@"):
        found = features_of(nn.Flatten(), source.train, recipe)
    assert found.isfinite().all()


def grey() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_secret_test_split_of_a_table_and_a_row_without_image(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    for path, n, labels in (
        ("default/train/0.parquet", 20, [0, 1]),
        ("default/test/0.parquet", 6, [-1]),
        ("validation.parquet", 4, [1, 0]),
    ):
        rows = {
            "image": [{"bytes": jpeg(i), "path": None} for i in range(n - 1)] + [None],
            "label": [labels[i % len(labels)] for i in range(n)],
        }
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / path))
    source = open_source(f"hf:{tmp_path}")
    assert (len(source.train), source.test.labels.tolist()) == (20, [1, 0, 1, 0])
    with pytest.raises(BadImage, match="no image in this row"):
        source.train.open(19)


def test_what_is_wrong_with_another_column_of_images_is_not_met(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "depth": datasets.Image()})
    rows = {"image": [{"bytes": jpeg(i), "path": None} for i in range(9)], "depth": [{"bytes": b"broken", "path": None}] * 9}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "a.parquet"))
    with open_source(f"hf:{tmp_path / 'a.parquet'}").train.open(0) as photo:
        assert (photo.height, photo.width) == (12, 20)


@pytest.mark.parametrize("cells", ["struct", "binary"])
def test_a_table_that_datasets_did_not_write(tmp_path, cells):
    """One file, images without its mark, and labels that are numbers or words."""
    pytest.importorskip("datasets")
    made = [{"bytes": jpeg(i), "path": None} if cells == "struct" else jpeg(i) for i in range(20)]
    label = [7, 3] if cells == "struct" else ["dog", "cat"]
    pq.write_table(pa.table({"picture": made, "label": [label[i % 2] for i in range(20)]}), tmp_path / "a.parquet")
    source = open_source(f"hf:{tmp_path / 'a.parquet'}")
    assert (len(source.train), len(source.test)) == (18, 2)
    assert source.train.classes == (("3", "7") if cells == "struct" else ("cat", "dog"))
    assert source.train.labels.bincount().tolist() == [9, 9]
    with source.train.open(0) as photo:
        assert (photo.height, photo.width) == (12, 20)
    assert source.holds(tmp_path / "a.parquet")
    assert not source.holds(tmp_path / "b.parquet")


@pytest.mark.parametrize("held", ["test", "validation"])
def test_held_out_words_are_the_classes_that_training_rows_have(tmp_path, held):
    """A split with some of the classes has their numbers, and one with another class is not taken."""
    pytest.importorskip("datasets")
    words = {"train": ["cat", "dog", "owl"] * 8, held: ["owl", None, "dog"], "val": ["elk", "owl"]}
    for split, labels in words.items():
        rows = {"picture": [jpeg(i) for i in range(len(labels))], "label": labels}
        pq.write_table(pa.table(rows), tmp_path / f"{split}.parquet")
    source = open_source(f"hf:{tmp_path}")
    assert source.train.classes == source.test.classes == ("cat", "dog", "owl")
    assert source.test.labels.tolist() == [2, -1, 1]
    (tmp_path / f"{held}.parquet").unlink()
    alone = open_source(f"hf:{tmp_path}")
    assert (len(alone.train) + len(alone.test), alone.test.classes) == (24, alone.train.classes)  # a tenth is held out
    assert alone.notes[0] == "the split val is not used: its labels are not those of the training rows"


def test_a_folder_of_images_with_an_archive_beside_them_is_a_folder(tmp_path):
    folder(tmp_path)
    write(tmp_path / "backup.tar", {"a.jpg": jpeg(1)})
    source = open_source(str(tmp_path))
    assert (len(source.train) + len(source.test), source.train.classes) == (24, ("cat", "dog"))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: write(p / "a.tar", {"a.txt": b"x"}), "no images"),
        (lambda p: write(p / "a.tar", {"a.jpg": jpeg(3)}, "w:gz"), "not an uncompressed tar"),
        (lambda p: (p / "a.tar").write_bytes(b"\1" * 700), "not an uncompressed tar"),
        (lambda p: write(p / "a.tar", {"a.jpg": jpeg(3), "a.json": b"[1, 2]"}), "damaged"),
        (lambda p: write(p / "test-1.tar", {"a.jpg": jpeg(3)}).rename(p / "a.tar") and (p / "a.tar").unlink(), "no such tar"),
    ],
)
def test_what_is_no_archive_of_images_is_refused(tmp_path, make, said):
    make(tmp_path)
    with pytest.raises(Misuse, match=said):
        open_source(str(tmp_path / "a.tar"))


def test_an_archive_that_was_cut_after_it_was_opened_is_a_bad_image(tmp_path):
    source = open_source(str(write(tmp_path / "a.tar", {f"{i}.jpg": jpeg(i) for i in range(3)})))
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:600])
    with pytest.raises(BadImage, match=r"a\.tar@"), source.train.open(2):
        pass


def test_braces():
    assert _expanded("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert _expanded("{x,y}-{1..2}") == ["x-1", "x-2", "y-1", "y-2"]
    assert _expanded("plain") == ["plain"]


def folder(root: Path, n: int = 12) -> Path:
    rng = np.random.default_rng(0)
    for c in ("cat", "dog"):
        (root / c).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(rng.integers(0, 256, (60, 90, 3), np.uint8)).save(root / c / f"{i}.png")
    return root


def test_pack_keeps_labels_and_splits_and_makes_small(tmp_path):
    before = open_source(str(folder(tmp_path / "photos")))
    (tmp_path / "photos" / "cat" / "0.png").write_bytes((tmp_path / "photos" / "cat" / "0.png").read_bytes())
    said = []
    assert pack(str(tmp_path / "photos"), tmp_path / "packed", side=30, report=said.append) == 24
    after = open_source(str(tmp_path / "packed"))
    assert (len(after.train), len(after.test), said) == (len(before.train), len(before.test), [])
    assert after.train.classes == before.train.classes
    assert torch.equal(after.train.labels, before.train.labels)
    with after.train.open(0) as photo:
        assert (photo.width, photo.height) == (45, 30)
    sizes = []
    for quality in (20, 95):
        pack(str(tmp_path / "photos"), tmp_path / f"q{quality}", side=300, quality=quality)
        sizes.append(sum(p.stat().st_size for p in (tmp_path / f"q{quality}").iterdir()))
    assert sizes[0] < sizes[1] / 1.5
    with open_source(str(tmp_path / "q95")).train.open(0) as photo:
        assert (photo.width, photo.height) == (90, 60)  # none is made larger
    with pytest.raises(Misuse, match="exists"):
        pack(str(tmp_path / "photos"), tmp_path / "packed")
    with pytest.raises(Misuse, match="memory"):
        pack("digits", tmp_path / "other")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("kind", ["shards", "parquet"])
def test_a_run_on_them_is_a_run_on_the_folder(tmp_path, kind):
    """The same images in the same order with the same draws: the same loss to the last bit, whatever they are read from."""
    for split, n in (("train", 12), ("val", 2)):
        names = sorted(folder(tmp_path / "photos" / split, n).rglob("*.png"))
        if kind == "shards":
            write(tmp_path / f"{split}-0.tar", {f"{p.parent.name}/{p.name}": p.read_bytes() for p in names})
        else:
            datasets = pytest.importorskip("datasets")
            features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
            rows = {"image": [{"bytes": p.read_bytes(), "path": None} for p in names], "label": [p.parent.name for p in names]}
            datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / f"{split}.parquet"))
    data = f"{tmp_path}/*.tar" if kind == "shards" else f"hf:{tmp_path}"
    assert (len(open_source(data).train), len(open_source(data).test)) == (24, 4)
    settings = ["epochs=1", "batch_size=8", "views.size=16", "encoder=resnet-small", "encoder.stem=3x3", "encoder.options={widths: [4]}"]
    settings += ["projector.hidden=[8]", "projector.out=8", "predictor.hidden=[8]", "workers=2", "precision=fp32", "preset=none"]
    runs = [sd.pretrain("simsiam", *settings, data=d, out=tmp_path / name) for name, d in (("a", tmp_path / "photos"), ("b", data))]
    assert runs[0].metrics[-1]["loss"] == runs[1].metrics[-1]["loss"]
    assert runs[0].summary["knn_top1"] == runs[1].summary["knn_top1"]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_share_an_epoch_of_an_archive_without_overlap_or_loss(tmp_path, ranks):
    source = open_source(str(write(tmp_path / "a.tar", {f"{i:02d}.jpg": jpeg(i) for i in range(32)})))
    recipe = sd.METHODS["simsiam"].edit(["batch_size=8", "epochs=1"])
    dealt = [torch.cat([ids for _, ids in micro_batches(recipe, len(source.train), 0, rank, ranks)]) for rank in range(ranks)]
    assert sorted(torch.cat(dealt).tolist()) == list(range(32))


def test_a_table_that_is_none_is_refused(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["a", "b"]}).to_parquet(str(tmp_path / "train.parquet"))
    with pytest.raises(Misuse, match="no column of images"):
        open_source(f"hf:{tmp_path}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(Failure, match="cannot be loaded"):
        open_source(f"hf:{tmp_path / 'empty'}")


def test_what_is_no_jpeg_is_left_out_of_a_pack_by_name(tmp_path):
    photos = folder(tmp_path / "photos")
    Image.new("RGB", (80_000, 300)).save(photos / "cat" / "wide.png")
    (photos / "dog" / "broken.png").touch()
    said = []
    assert pack(str(photos), tmp_path / "packed", report=said.append) == 24
    assert sorted(re.findall(r"left out: .*?(\w+)\.png", " ".join(said))) == ["broken", "wide"]
    with pytest.raises(Misuse, match=r"OUT .*: exists already"):
        pack(str(photos), tmp_path / "packed")


def test_shards_that_are_named_and_not_there_are_refused(tmp_path):
    (tmp_path / "s[1]").mkdir()
    for n in (0, 1, 3):
        write(tmp_path / "s[1]" / f"train-{n}.tar", {f"{i}.jpg": jpeg(i) for i in range(3)})
    with pytest.raises(Misuse, match=r"1 of 4 are not there, the first: .*train-2\.tar"):
        open_source(str(tmp_path / "s[1]" / "train-{0..3}.tar"))
    for name in ("train-{0..1}.tar", "train-[01].tar"):
        assert len(open_source(str(tmp_path / "s[1]" / name)).train) == 6
    assert len(open_source(str(tmp_path / "s[1]" / "train-*.tar")).train) == 9


@pytest.mark.parametrize(
    ("column", "labels", "classes"),
    [
        ([1.0, None, 3.0, 1.0] * 6, [0, -1, 1, 0], ("1", "3")),  # as pandas has integers of which one is missing
        ([True, False, True, True] * 6, [1, 0, 1, 1], ("False", "True")),
        (pa.array([2, 1, 2, 2] * 6, pa.uint8()), [1, 0, 1, 1], ("1", "2")),
        ([0.5, 0.1, 0.2, 0.9] * 6, None, ()),  # a quantity
    ],
)
def test_a_column_called_label_may_be_of_any_plain_type(tmp_path, column, labels, classes):
    pq.write_table(pa.table({"image": [jpeg(i) for i in range(24)], "label": column}), tmp_path / "a.parquet")
    source = open_source(f"hf:{tmp_path / 'a.parquet'}")
    assert source.train.classes == classes
    if labels is None:
        assert "holds whole numbers or words" in source.notes[0]
    else:
        everything = sorted([*source.train.labels.tolist(), *source.test.labels.tolist()])
        assert everything == sorted(labels * 6)
