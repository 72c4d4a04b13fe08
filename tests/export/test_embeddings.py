"""Features of a folder in a file, the nearest of an image, and pairs that are nearly the same."""

import shutil

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.neighbors import NearestNeighbors

import selfdistill as sd
from selfdistill.data.images import Pixels, Source
from selfdistill.data.sources import open_source
from selfdistill.evaluate.neighbours import alike, mean_cosine, nearest_to
from selfdistill.export import embeddings
from tests.conftest import TINY

FEATURES = st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(2, 6), st.integers(0, 2**31)))


def some(n, dim, seed):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=30)
@given(FEATURES, st.integers(1, 50), st.integers(1, 9))
def test_nearest_is_scikit_learns_however_it_is_cut(shape, k, batch):
    bank, query = some(*shape), some(1, shape[1], shape[2] + 1)[0]
    cosines, places = nearest_to(query, bank.split(batch), k)
    distances, theirs = (
        NearestNeighbors(n_neighbors=min(k, len(bank)), metric="cosine", algorithm="brute").fit(bank).kneighbors(query[None])
    )
    np.testing.assert_allclose(cosines, 1 - distances[0], atol=1e-5)
    np.testing.assert_array_equal(places, theirs[0])


def test_what_is_nan_is_like_nothing():
    bank = torch.eye(3)
    bank[1] = torch.nan
    assert nearest_to(torch.tensor([1.0, 0.1, 0.0]), [bank], 3)[1].tolist() == [0, 2]
    assert sum(len(i) for i, _, _ in alike(bank, -1.0)) == 1


@settings(deadline=None, max_examples=30)
@given(FEATURES, st.floats(-1, 1))
def test_alike_is_every_pair_once(shape, threshold):
    features = some(*shape)
    cosine = F.normalize(features, dim=1) @ F.normalize(features, dim=1).T
    expected = {(i, j) for i in range(len(features)) for j in range(i + 1, len(features)) if cosine[i, j] >= threshold}
    near = {(i, j) for i, j in expected ^ {p for i, j, _ in alike(features, threshold) for p in zip(i.tolist(), j.tolist(), strict=True)}}
    assert all(abs(cosine[i, j] - threshold) < 1e-5 for i, j in near)  # rounding may decide at the threshold itself, nowhere else


def test_exact_copies_are_alike_at_1():
    features = F.relu(some(200, 512, 0)).repeat(2, 1)
    found = [(i, j, c) for chunk in alike(features, 1.0) for i, j, c in zip(*(part.tolist() for part in chunk), strict=True)]
    assert [(i, j) for i, j, _ in found] == [(i, i + 200) for i in range(200)]
    assert all(1 - 1e-6 <= c <= 1 for _, _, c in found)


def test_alike_in_chunks(monkeypatch):
    features = some(50, 3, 0)
    whole = torch.cat([torch.stack([i, j]) for i, j, _ in alike(features, 0.5)], 1)
    monkeypatch.setattr("selfdistill.evaluate.neighbours.CHUNK", 120)
    chunks = list(alike(features, 0.5))
    assert len(chunks) > 10
    assert torch.equal(torch.cat([torch.stack([i, j]) for i, j, _ in chunks], 1), whole)


def test_the_mean_cosine_in_closed_form():
    features = some(9, 4, 0)
    cosine = F.normalize(features, dim=1) @ F.normalize(features, dim=1).T
    assert mean_cosine(features) == pytest.approx(float(cosine[~torch.eye(9, dtype=torch.bool)].mean()), abs=1e-6)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two class folders, 30 images each, of several sizes and modes; a is there twice."""
    folder, rng = tmp_path_factory.mktemp("data") / "photos", np.random.default_rng(0)
    for i in range(60):
        kind = folder / ("cats" if i % 2 else "dogs")
        kind.mkdir(parents=True, exist_ok=True)
        grid = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)).resize(tuple(map(int, rng.integers(20, 50, 2))))
        grid.convert(("RGB", "P", "RGBA", "L")[i % 4]).save(kind / f"{i:02}.png")
    (folder / "cats" / "twin.png").write_bytes((folder / "dogs" / "00.png").read_bytes())
    return folder


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    made = {**TINY, "encoder": "resnet-small", "views.size": 16, "epochs": 1, "batch_size": 16, "workers": 0}
    return sd.pretrain("simsiam", data=str(photos), out=tmp_path_factory.mktemp("runs") / "photos", **made)


def test_parquet_is_read_by_others(run, photos, tmp_path, monkeypatch):
    pd, pq = pytest.importorskip("pandas"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(embeddings, "BATCH", 20)
    out = tmp_path / "e.parquet"
    assert sd.embed_to(run, str(photos), out) == 61
    table = pd.read_parquet(out)
    assert pq.ParquetFile(out).num_row_groups == 4  # 55 to train on, 6 held out, in batches of 20
    source = open_source(str(photos))
    assert list(table["path"]) == [str(p) for p in source.train.paths + source.test.paths]
    assert list(table["id"]) == list(range(61))
    assert list(table["split"]) == ["train"] * 55 + ["test"] * 6
    assert all(path.split("/")[-2] == name for path, name in zip(table["path"], table["class"], strict=True))
    assert table["label"].tolist() == [*source.train.labels.tolist(), *source.test.labels.tolist()]
    features = np.stack(table["features"])
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, run.embed([*source.train.paths, *source.test.paths]), atol=1e-6)


def test_a_folders_features_are_of_all_its_images_and_what_cannot_be_read_is_said(run, photos, tmp_path):
    assert sd.embed_to(run, photos, tmp_path / "e.npy") == 61
    assert torch.equal(run.embed(photos), torch.from_numpy(np.load(tmp_path / "e.npy")))
    folder = shutil.copytree(photos, tmp_path / "photos")
    first = next(folder.glob("*/*"))
    (first.parent / "empty.png").touch()
    said: list[str] = []
    assert sd.embed_to(run, folder, tmp_path / "f.npy", said.append) == 61
    assert len(said) == 1
    assert "1 bad files are left out, the first: " in said[0]
    assert "empty.png" in said[0]
    with pytest.warns(UserWarning, match="empty.png"):
        assert run.embed(folder).shape == (61, 16)
    with pytest.warns(UserWarning, match="1 of 2 images cannot be read and have features nan"):
        found = run.embed([first, folder / "nowhere.png"])
    assert found.isnan().all(1).tolist() == [False, True]


def test_npy_with_a_table_beside(run, photos, tmp_path):
    assert sd.embed_to(run, str(photos), tmp_path / "e.npy") == 61
    found = np.load(tmp_path / "e.npy", mmap_mode="r")
    assert found.shape == (61, 16)
    lines = (tmp_path / "e.csv").read_text().splitlines()
    assert lines[0] == "id,split,path,label,class"
    assert len(lines) == 62
    _, _, path, label, name = lines[61].split(",")
    np.testing.assert_allclose(found[60], run.embed([path])[0], atol=1e-6)
    assert name == ("cats", "dogs")[int(label)]
    assert {p.name for p in tmp_path.iterdir()} == {"e.npy", "e.csv"}


def test_images_in_memory_have_no_path_and_perhaps_no_label(tiny_run, tmp_path):
    pd = pytest.importorskip("pandas")
    pixels = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    sd.embed_to(tiny_run, Source("mine", Pixels(pixels, torch.tensor([0, 1, -1, 0, 1]), ("a", "b"))), tmp_path / "e.parquet")
    table = pd.read_parquet(tmp_path / "e.parquet")
    assert table["path"].isna().all()
    assert table["label"].isna().tolist() == [False, False, True, False, False]
    assert table["class"].tolist()[:2] == ["a", "b"]


def test_an_image_that_turns_unreadable_is_said_and_nan(run, photos, tmp_path):
    source = open_source(str(photos))
    cut = tmp_path / "cut.png"
    cut.write_bytes(source.train.paths[3].read_bytes()[:60])
    source.train.paths[3] = cut
    said = []
    assert sd.embed_to(run, source, tmp_path / "e.npy", said.append) == 61
    found = np.load(tmp_path / "e.npy")
    assert np.isnan(found[3]).all()
    assert np.isfinite(np.delete(found, 3, 0)).all()
    assert len(said) == 1
    assert str(cut) in said[0]
    found_pairs = sd.duplicates(run, source, 0.5)
    cosines = [pair.cosine for pair in found_pairs.pairs]
    assert cosines == sorted(cosines, reverse=True)
    assert cosines[0] > cosines[-1]
    mean = found_pairs.mean
    unit = F.normalize(torch.from_numpy(np.delete(found, 3, 0)), dim=1)
    assert mean == pytest.approx(float((unit @ unit.T)[~torch.eye(60, dtype=torch.bool)].mean()), abs=1e-5)


def test_what_goes_wrong_leaves_the_old_file(run, tiny_run, photos, tmp_path):
    out = tmp_path / "e.npy"
    out.write_text("old")
    with pytest.raises(sd.Misuse, match="images of 5 channels for a network of 1"):
        sd.embed_to(tiny_run, Source("spectra", Pixels(torch.zeros(4, 5, 8, 8, dtype=torch.uint8))), out)
    (tmp_path / "photos.csv").write_text("of the user's own")
    for wrong, said in (
        ("e.txt", ".parquet or .npy"),
        ("no/e.npy", "no folder"),
        ("photos.npy", r"photos\.csv, which would come beside it"),
    ):
        with pytest.raises(sd.Misuse, match=said):
            sd.embed_to(run, str(photos), tmp_path / wrong)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"e.npy": "old", "photos.csv": "of the user's own"}


RANDOM = ["encoder=resnet-small", "encoder.options={widths: [8, 16]}", "views.size=16", "workers=0"]


def test_what_is_no_run(run, photos, tmp_path, monkeypatch):
    """Weights from a file that an export wrote are the run's; random ones are those before its first step; and timm's."""
    done = sd.export_run(run, "safetensors", out=tmp_path / "exported")
    ours = run.embed([*(s := open_source(str(photos))).train.paths, *s.test.paths])
    sd.embed_to(done.path / "model.safetensors", str(photos), tmp_path / "e.npy")
    np.testing.assert_allclose(np.load(tmp_path / "e.npy"), ours, atol=1e-6)
    plain = ["encoder=resnet-small", *RANDOM, "views.mean=[0.485, 0.456, 0.406]", "views.std=[0.229, 0.224, 0.225]"]
    sd.embed_to(run.path / "backbone.safetensors", str(photos), tmp_path / "f.npy", settings=[*plain, "preset=none"])
    np.testing.assert_allclose(np.load(tmp_path / "f.npy"), ours, atol=1e-6)
    sd.embed_to("random-init", str(photos), tmp_path / "g.npy", settings=RANDOM)
    assert np.abs(np.load(tmp_path / "g.npy") - ours.numpy()).max() > 0.01
    sd.embed_to("raw-pixels", str(photos), tmp_path / "h.npy", settings=["views.size=4"])
    assert np.load(tmp_path / "h.npy").shape == (61, 48)

    monkeypatch.setattr(timm.models._builder, "load_pretrained", lambda *args, **kw: None)  # no network
    found = sd.neighbours("timm:resnet18", photos / "dogs" / "00.png", str(photos), 2, settings=["views.size=32"])
    assert {f.path.split("/")[-1] for f in found} == {"00.png", "twin.png"}


def test_what_is_no_run_on_the_command_line(command, run, photos, tmp_path):
    code, out, err = command("duplicates", "random-init", photos, *RANDOM, "--threshold", 0.999999)
    assert code == 0, err
    assert "00.png" in out
    code, out, err = command("export", "random-init", f"data={photos}", *RANDOM, "seed=3", "--format", "onnx")
    assert code == 0, err
    assert "export/random-init-onnx" in out
    card = (tmp_path / "export" / "random-init-onnx" / "README.md").read_text()
    assert "random weights, seed 3" in card
    assert "Nothing was trained or measured here" in card
    weights = run.path / "backbone.safetensors"
    for args, said in (
        (["embed", weights, photos, "encoder=resnet18"], "The encoder is resnet18"),
        (["embed", "nowhere.safetensors", photos], "nowhere.safetensors: no such file"),
        (["embed", run.path, photos, "views.size=8"], "views.size=8"),
        (["export", "raw-pixels", "data=digits", "--format", "onnx"], "no network"),
        (["export", "random-init", "--format", "onnx"], "on which images"),
        (["diagnose", "timm:resnet18"], "timm:resnet18: on which images? timm:resnet18 data=digits"),
        (["export", "random-init", f"data={photos}", *RANDOM, "--of", "teacher", "--format", "onnx"], "is no run"),
    ):
        code, _, err = command(*args)
        assert code == 2, args
        assert said in err


def test_neighbours_and_duplicates_on_the_command_line(command, run, photos, tmp_path):
    code, out, err = command("neighbours", run.path, photos / "dogs" / "00.png", f"data={photos}", "--k", 3, "--sheet", "near.png")
    assert code == 0, err
    lines = [line.split("  ") for line in out.splitlines()[:3]]
    assert {path.split("/")[-1] for _, path in lines[:2]} == {"00.png", "twin.png"}
    assert [float(c) for c, _ in lines[:2]] == [1.0, 1.0]
    assert float(lines[2][0]) < 1.0
    sheet = np.asarray(Image.open(tmp_path / "near.png"))
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 100

    code, out, err = command("duplicates", run.path, photos, "--threshold", 0.99999, "--out", "pairs.csv", "--sheet", "pairs.png")
    assert code == 0, err
    assert "1 pairs of 61 images at 0.99999 or above" in " ".join(out.split())
    head, pair = (tmp_path / "pairs.csv").read_text().splitlines()
    assert head == "first,second,cosine"
    assert "00.png" in pair
    assert "twin.png" in pair
    assert Image.open(tmp_path / "pairs.png").size[0] > 200

    broken = tmp_path / "broken.png"  # whole at both ends
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8)).save(broken)
    content = broken.read_bytes()
    broken.write_bytes(content[:9000] + bytes(99) + content[9099:])

    twin = photos / "cats" / "twin.png"
    there = twin.read_bytes()
    for args, said in (
        (["neighbours", run.path, "nothing.png", photos], "nothing.png: No such file"),
        (["neighbours", run.path, tmp_path / "pairs.csv", photos], "not an image"),
        (["duplicates", run.path, photos, "--threshold", 2], "threshold=2"),
        (["duplicates", run.path, photos, "--out", "."], "--out .: is a folder"),
        (["neighbours", run.path, photos / "cats" / "01.png", photos, "--sheet", "no/a.png"], "no folder no"),
        (["neighbours", run.path, broken, photos], "broken.png"),
        (["neighbours", run.path, twin, photos, "--sheet", twin], "a file that this command reads"),
        (["neighbours", run.path, photos / "cats" / "01.png", photos, "--sheet", twin], "a file that this command reads"),
        (["neighbours", run.path, twin, photos, "--sheet", "near.jpg"], ".png"),
        (["duplicates", run.path, photos, "--sheet", twin], "a file that this command reads"),
        (["duplicates", run.path, photos, "--out", "pairs.png"], ".csv"),
        (["picture", "neighbours", run.path, twin, "--out", twin], "a file that this command reads"),
        (["embed", run.path, photos, f"data={photos}"], "name one set"),
        (["embed", run.path, "data=nowhere/at/all"], "nowhere/at/all"),
        (["embed", tmp_path, photos], "not a run folder"),
    ):
        code, _, err = command(*args)
        assert code == 2
        assert said in err
    assert twin.read_bytes() == there
    code, out, _ = command("embed", run.path, f"data={photos}", "--out", "e [old].npy")
    assert code == 0
    assert "61 images in e [old].npy" in out
    code, out, _ = command("export", run.path, "--format", "safetensors", "--out", "given")
    assert code == 0
    assert "the student's backbone" in out
    assert (tmp_path / "given" / "README.md").is_file()
