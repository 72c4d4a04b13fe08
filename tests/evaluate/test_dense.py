"""Segmentation: mIoU against scikit-learn's Jaccard index, patches against a loop, probes on features that know the answer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score

from selfdistill.errors import Misuse
from selfdistill.evaluate.dense import IGNORED, confusion, dense_probes, majority, scenes, segmented


@settings(max_examples=50, deadline=None)
@given(classes=st.integers(1, 5), n=st.integers(1, 60), seed=st.integers(0, 999))
def test_miou_is_the_mean_jaccard_index(classes, n, seed):
    """Over the classes that are there or were predicted; ignored pixels count nowhere."""
    g = torch.Generator().manual_seed(seed)
    truth, called = (torch.randint(0, classes, (2, n), generator=g) for _ in range(2))
    truth[:, n // 2 :: 3] = IGNORED
    counted = truth != IGNORED
    if not counted.any():
        return
    found = segmented(confusion(called, truth, classes + 2))  # two classes that are nowhere
    expected = jaccard_score(truth[counted], called[counted], average="macro", labels=torch.cat([truth[counted], called[counted]]).unique())
    assert found.miou == pytest.approx(expected)
    assert found.accuracy == pytest.approx(float((truth == called)[counted].float().mean()))


def test_miou_by_hand():
    """Of four pixels of class 0 three are found and one of class 1 is taken for it: 3 / 5; class 1 has 1 of 3."""
    truth = torch.tensor([0, 0, 0, 0, 1, 1])
    called = torch.tensor([0, 0, 0, 1, 0, 1])
    assert segmented(confusion(called, truth, 2)) == pytest.approx(((3 / 5 + 1 / 3) / 2, 4 / 6))


def test_a_patch_has_the_class_of_most_of_its_pixels():
    g = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 3, (5, 8, 12), generator=g)
    masks[0, :4, :4] = IGNORED
    masks[1, :4, :4] = IGNORED
    masks[1, 0, 0] = 2  # one pixel that counts
    found = majority(masks, 2, 3, 3)
    for i in range(5):
        for y in range(2):
            for x in range(3):
                pixels = masks[i, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].flatten()
                counts = [int((pixels == c).sum()) for c in range(3)]
                assert found[i, y, x] == (counts.index(max(counts)) if any(counts) else IGNORED)
    assert found[0, 0, 0] == IGNORED
    assert found[1, 0, 0] == 2


def halves(n, seed):
    """Images of which a side is of class 1 or 2, and maps [n, 3, 4, 4] that say so, with noise; masks of 16 x 16."""
    g = torch.Generator().manual_seed(seed)
    at_places = torch.zeros(n, 4, 4, dtype=torch.long)
    at_places[:, :, 2:] = torch.randint(1, 3, (n, 1, 1), generator=g)
    features = torch.eye(3)[at_places].permute(0, 3, 1, 2) + 0.02 * torch.randn(n, 3, 4, 4, generator=g)
    return features, at_places.repeat_interleave(4, 1).repeat_interleave(4, 2)


def test_features_that_know_the_class_segment_to_the_pixel():
    (bank, masks), (test, targets) = halves(40, 0), halves(10, 1)
    found = dense_probes(bank, masks, test, targets, 3, epochs=30)
    assert found["knn"] == (1.0, 1.0)
    assert found["linear"].miou > 0.85
    shuffled = dense_probes(bank[torch.randperm(40, generator=torch.Generator().manual_seed(0))].flip(3), masks, test, targets, 3, epochs=5)
    assert shuffled["knn"].miou < 0.6


def test_a_class_that_no_patch_has_is_counted_as_missed():
    """Class 3 is one pixel in each image: never learnt, never found, and in the mean."""
    (bank, masks), (test, targets) = halves(40, 0), halves(10, 1)
    masks[:, 0, 0] = targets[:, 0, 0] = 3
    for found in dense_probes(bank, masks, test, targets, 4, epochs=30).values():
        assert found.miou < 0.76
        assert found.accuracy > 0.85


def test_images_without_a_pixel_that_counts_choose_no_learning_rate():
    """Nine in ten teach nothing, and the others are still learnt from and held out."""
    (bank, masks), (test, targets) = halves(40, 0), halves(10, 1)
    masks[4:] = IGNORED
    few = dense_probes(bank, masks, test, targets, 3, epochs=30)
    assert few == dense_probes(bank[:4], masks[:4], test, targets, 3, epochs=30)
    assert few["linear"].miou > 0.8
    masks[1:] = IGNORED
    with pytest.raises(Misuse, match="in 1 of 40 images"):
        dense_probes(bank, masks, test, targets, 3, epochs=1)


def test_scenes_say_where_each_image_is():
    labels = torch.arange(6)
    pixels = torch.zeros(6, 1, 5, 5, dtype=torch.uint8)
    pixels[:, :, 1:4, 1:4] = (100 + labels).to(torch.uint8)[:, None, None, None]
    canvas, mask = scenes(pixels, labels, 50, seed=3)
    assert canvas.shape == (50, 1, 10, 10)
    assert torch.equal(mask, torch.where(canvas[:, 0] > 0, canvas[:, 0].long() - 99, 0))
    assert set(mask.unique().tolist()) == set(range(7))
    assert int((mask > 0).sum((1, 2)).max()) == 27
    assert torch.equal(scenes(pixels, labels, 50, seed=3)[0], canvas)
    assert not torch.equal(scenes(pixels, labels, 50, seed=4)[0], canvas)
    alone = scenes(pixels, labels, 400, objects=1)[1]
    corners = {(int(y.min()), int(x.min())) for y, x in ((m > 0).nonzero(as_tuple=True) for m in alone)}
    assert corners == {(y, x) for y in range(1, 7) for x in range(1, 7)}  # wherever it fits


def test_the_linear_probes_rate_is_chosen_on_images_that_it_does_not_learn_from(monkeypatch):
    """A tenth of the images, with all of their places; places that are ignored are in neither part."""
    from selfdistill.evaluate import dense as module

    seen = []
    original = module.linear_probe
    spy = lambda x, y, validation, **how: seen.extend((x, validation[0])) or original(x, y, validation=validation, **how)  # noqa: E731
    monkeypatch.setattr(module, "linear_probe", spy)
    _, masks = halves(40, 0)
    masks[7] = masks[8, :4, :4] = IGNORED
    image, place = torch.arange(40.0).view(40, 1, 1, 1).expand(40, 1, 4, 4), torch.arange(16.0).view(1, 1, 4, 4).expand(40, 1, 4, 4)
    names = torch.cat([image, place], 1)
    dense_probes(names, masks, names[:2], masks[:2], 3, epochs=1)
    learnt, held = ({tuple(row) for row in of.int().tolist()} for of in seen)
    images = [{image for image, _ in of} for of in (learnt, held)]
    assert not images[0] & images[1]
    assert len(images[1] - {7}) in (3, 4)
    assert len(seen[0]) + len(seen[1]) == len(learnt | held)
    assert learnt | held == {(n, p) for n in range(40) for p in range(16) if n != 7 and (n, p) != (8, 0)}


def strips(rows: list[list[int]], features: torch.Tensor):
    """Images of one row of places of these classes, with `features` of each class; masks of 8 x 8 pixels a place."""
    classes = torch.tensor(rows)
    return features[classes].transpose(1, 2)[:, :, None], classes.repeat_interleave(8, 1)[:, None].expand(-1, 8, -1)


def test_a_boundary_lies_midway_between_two_places_wherever_they_are():
    """Corners aligned would move it unless it is in the middle of the image."""
    (bank, masks), (queries, targets) = (strips(rows, torch.eye(2)) for rows in ([[0, 0, 1, 1]] * 20, [[0, 1, 1, 1], [0, 0, 0, 1]]))
    assert dense_probes(bank, masks, queries, targets, 2, epochs=30) == {"linear": (1.0, 1.0), "knn": (1.0, 1.0)}


def test_every_place_has_the_same_votes_however_near_its_neighbours():
    """Of its four neighbours one is near the place of class 0 and all are near that of class 1; the boundary is midway all the same."""
    kinds = torch.eye(8)
    bank = torch.cat([kinds[:1], kinds[2:], kinds[1:2].expand(7, -1)]).view(14, 8, 1, 1)
    masks = torch.tensor([0] * 7 + [1] * 7).view(14, 1, 1).expand(14, 8, 8)
    queries, targets = strips([[0, 1]], kinds)
    bank, masks = bank.expand(-1, -1, 1, 2), masks.repeat(1, 1, 2)
    assert dense_probes(bank, masks, queries, targets, 2, k=8, epochs=1)["knn"] == (1.0, 1.0)
