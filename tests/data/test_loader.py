"""The order of a run, and which labels it may see."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from selfdistill.data import loader
from selfdistill.data.images import Files, Pixels
from selfdistill.data.loader import training_views
from selfdistill.data.order import evenly, micro_batches, visible_labels
from selfdistill.errors import Failure, Misuse
from selfdistill.methods import METHODS

RECIPE = METHODS["simsiam"].edit(["batch_size=8", "epochs=3", "views.size=8", "encoder.channels=1", "views.mean=[0.5]", "views.std=[0.5]"])
SEMI = METHODS["mean-teacher"].edit(
    [
        "batch_size=8",
        "epochs=3",
        "labelled_share=0.25",
        "labels=6",
        "views.size=8",
        "encoder.channels=1",
        "views.mean=[0.5]",
        "views.std=[0.5]",
    ]
)


def images(n=30, classes=3):
    return Pixels(torch.zeros(n, 1, 8, 8, dtype=torch.uint8), torch.arange(n) % classes, tuple("abcdef"[:classes]))


def test_an_epoch_has_each_image_once_and_drops_what_fills_no_batch():
    batches = [index for rounds, index in micro_batches(RECIPE, 30, 0) if (rounds == 0).all()]
    assert [len(b) for b in batches] == [8, 8, 8]
    assert len(torch.cat(batches).unique()) == 24


def test_a_later_start_sees_what_is_left():
    whole = list(micro_batches(RECIPE, 30, 0))
    for step in (1, 3, 5):
        rest = list(micro_batches(RECIPE, 30, step))
        assert all(torch.equal(torch.stack(a), torch.stack(b)) for a, b in zip(whole[step:], rest, strict=True))


@pytest.mark.parametrize("labels", [3, 7, 0.5, 1.0])
def test_labels_are_balanced_and_drawn_by_seed(labels):
    visible = visible_labels(images(), SEMI.edit([f"labels={labels}"]))
    total = labels if isinstance(labels, int) else round(labels * 30)
    counts = torch.bincount(visible[visible >= 0], minlength=3)
    assert counts.sum() == total
    assert counts.max() - counts.min() <= 1
    assert torch.equal(visible[visible >= 0], images().labels[visible >= 0])
    again = visible_labels(images(), SEMI.edit([f"labels={labels}"]))
    assert torch.equal(visible, again)
    if labels in (3, 7):
        assert not torch.equal(visible, visible_labels(images(), SEMI.edit([f"labels={labels}", "seed=1"])))


@pytest.mark.parametrize("labels", ["1", "31", "2"])
def test_too_few_or_too_many_labels(labels):
    with pytest.raises(Misuse, match=f"labels={labels}"):
        visible_labels(images(), SEMI.edit([f"labels={labels}"]))


def test_a_share_is_of_the_images_that_have_a_label():
    half = replace(images(), labels=torch.where(torch.arange(30) < 16, torch.arange(30) % 3, -1))
    visible = visible_labels(half, SEMI.edit(["labels=1.0"]))
    assert torch.equal(visible, half.labels)
    assert (visible_labels(half, SEMI.edit(["labels=0.5"])) >= 0).sum() == 8


def test_labels_of_images_that_have_none():
    with pytest.raises(Misuse, match="no labels"):
        visible_labels(Pixels(torch.zeros(30, 1, 8, 8, dtype=torch.uint8)), SEMI)


def few(labelled, n=30):
    """[n] labels of a run that sees those of `labelled` alone."""
    visible = torch.full((n,), -1)
    visible[labelled] = 0
    return visible


def test_each_batch_has_its_share_of_labelled_images_and_all_come_in_turn():
    labelled = torch.tensor([3, 5, 8, 13, 21])
    recipe = SEMI.edit(["labelled_share=0.25", "epochs=4"])  # 2 of 8, in 12 steps
    seen = []
    for rounds, batch in micro_batches(recipe, 30, 0, visible=few(labelled)):
        assert len(batch) == 8
        asked = rounds >= recipe.epochs
        assert asked.nonzero()[:, 0].tolist() == [0, 7]  # spread, so that micro-batches and ranks have their share
        seen += batch[asked].tolist()
    assert sorted(seen.count(int(i)) for i in labelled) == [4, 5, 5, 5, 5]  # of 24 places


@pytest.mark.parametrize("labels", ["1.0", "0.5", "3"])
def test_the_share_of_a_batch_that_trains_on_labels_is_the_recipes(labels):
    recipe = SEMI.edit(["labelled_share=0.25", f"labels={labels}"])
    for views in training_views(images(), recipe, 0, torch.device("cpu"), print):
        assert int((views.labels >= 0).sum()) == 2  # of 8: whatever share of all images has a label


def test_a_labelled_image_is_cropped_anew_each_time_it_comes():
    """Few images fill many places of an epoch: by the epoch alone they would be the same crop each time."""
    recipe = SEMI.edit(["labelled_share=0.5", "epochs=5", "labels=3"])
    source = replace(images(), pixels=torch.randint(0, 256, (30, 1, 8, 8), dtype=torch.uint8))
    crops = [
        views.crops[0][:, n]
        for views in training_views(source, recipe, 0, torch.device("cpu"), print)
        for n in range(8)
        if views.labels[n] >= 0
    ]
    assert len(crops) >= 60
    assert len({tuple(crop.flatten().tolist()) for crop in crops}) == len(crops)


def test_labelled_images_come_in_an_order_of_the_seed():
    def order(seed):
        recipe = SEMI.edit(["labelled_share=0.5", f"seed={seed}"])
        return [index.tolist() for _, index in micro_batches(recipe, 30, 0, visible=few(torch.arange(20)))]

    assert order(0) == order(0)
    assert order(0) != order(1)


@settings(max_examples=100, deadline=None)
@given(found=st.lists(st.integers(1, 50), min_size=1, max_size=8), data=st.data())
def test_labels_are_shared_evenly_among_classes_that_have_so_many(found, data):
    total = data.draw(st.integers(len(found), sum(found)))
    each = evenly(total, found)
    assert sum(each) == total
    for n, of in zip(each, found, strict=True):
        assert 0 < n <= of
        assert n == of or n >= max(each) - 1  # one that has fewer gives all


def test_a_containers_quota_and_the_processes_beside_count(monkeypatch, tmp_path):
    """docker --cpus=2 leaves all cores in the affinity mask."""
    monkeypatch.setattr(loader.os, "sched_getaffinity", lambda pid: set(range(32)), raising=False)
    monkeypatch.setattr(loader, "QUOTA", tmp_path / "cpu.max")
    assert loader.cores() == 32
    for text, count in (("max 100000\n", 32), ("200000 100000\n", 2), ("50000 100000\n", 1)):
        (tmp_path / "cpu.max").write_text(text)
        assert loader.cores() == count
    (tmp_path / "cpu.max").unlink()
    asked = []
    monkeypatch.setattr(loader, "DataLoader", lambda *_, num_workers, **__: asked.append(num_workers) or (x for x in ()))
    for beside in ("1", "8", "64"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", beside)
        assert list(loader._loader(None, iter([]), "auto")) == []
    assert asked == [16, 4, 1]


def test_views_carry_the_visible_labels_only():
    views = next(training_views(images(), SEMI, 0, torch.device("cpu"), print))
    visible = visible_labels(images(), SEMI)
    told = views.labels >= 0
    assert torch.equal(views.labels[told], visible[views.ids][told])
    assert told.sum() == 2
    assert next(training_views(images(), RECIPE, 0, torch.device("cpu"), print)).labels is None


@pytest.mark.parametrize("broken", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_batch_that_its_worker_can_no_longer_hand_over_is_that_workers_death(monkeypatch, tmp_path, broken):
    def cut(self):
        raise broken
        yield

    monkeypatch.setattr(loader.DataLoader, "__iter__", cut)
    with pytest.raises(Failure, match="processes that decode images died"):
        loader.in_memory(Files([tmp_path / "x.png"]), RECIPE.views)


LEAVES = """
import sys
from pathlib import Path
import torch
from selfdistill.data.images import Files
from selfdistill.data.loader import training_views
from selfdistill.methods import METHODS

recipe = METHODS["simsiam"].edit(["batch_size=4", "epochs=9", "views.size=8", "workers=2"])
held = training_views(Files(sorted(Path(sys.argv[1]).iterdir())), recipe, 0, torch.device("cpu"), print)
next(held)
print("done", flush=True)
"""


def test_a_program_ends_though_it_asks_for_no_more_batches(tmp_path):
    """Workers do not hear the SIGTERM by which Python ends them, and it would wait for them for ever."""
    for i in range(16):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 20, 3), np.uint8)).save(tmp_path / f"{i}.png")
    ended = subprocess.run([sys.executable, "-c", LEAVES, str(tmp_path)], capture_output=True, text=True, timeout=100)
    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr
