"""Block-wise masks: iBOT's statistics, and what each mask must be."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfdistill.views.augment import DRAWS
from selfdistill.views.draw import uniform
from selfdistill.views.masks import block_masks
from selfdistill.views.spec import BlockMasks


def reference(n, low, high, aspect, rng):
    """One mask by the loop of iBOT's loader, for the statistics."""
    import math

    mask, goal = torch.zeros(n, n, dtype=torch.bool), int(rng.uniform(low, high) * n * n)
    while mask.sum() < goal:
        room = goal - int(mask.sum())
        for _ in range(10):
            area = rng.uniform((n // 3) ** 2, room)
            shape = math.exp(rng.uniform(math.log(aspect), -math.log(aspect)))
            h, w = (round(math.sqrt(max(area, 0) * shape)), round(math.sqrt(max(area, 0) / shape)))
            if w < n and h < n:
                top, left = rng.randint(0, n - h), rng.randint(0, n - w)
                new = h * w - int(mask[top : top + h, left : left + w].sum())
                if 0 < new <= room:
                    mask[top : top + h, left : left + w] = True
                    break
        else:
            break
    return mask


@pytest.mark.parametrize("patches", [14, 7, 3])
def test_statistics_are_those_of_ibots_loader(patches):
    """Share hidden, its spread, and how blocky the masks are (equal neighbours), within 5 standard errors."""
    import random

    rng = random.Random(0)
    theirs = torch.stack([reference(patches, 0.1, 0.5, 0.3, rng) for _ in range(1500)]).float()
    spec = BlockMasks(patch=16, probability=1.0)
    ours = block_masks(spec, 16 * patches, torch.arange(6000), 0, 0, 0).float()

    def agree(f):
        a, b = f(ours), f(theirs)
        error = (a.var() / len(a) + b.var() / len(b)).sqrt()
        assert abs(a.mean() - b.mean()) < 5 * error

    agree(lambda m: m.mean((1, 2)))
    agree(lambda m: (m.mean((1, 2)) - 0.28).square())
    agree(lambda m: (m[:, 1:] == m[:, :-1]).float().mean((1, 2)))
    agree(lambda m: m[:, patches // 2, patches // 2])


def test_masks_share_no_draw_with_crops():
    ids = torch.arange(4000)
    hidden = block_masks(BlockMasks(probability=1.0), 224, ids, 0, 0, 0).float().mean((1, 2))
    for place, draws in enumerate(uniform(0, 0, ids, 0, DRAWS).T):
        assert torch.corrcoef(torch.stack([hidden, draws]))[0, 1].abs() < 0.08, place


def test_half_of_the_views_are_whole():
    m = block_masks(BlockMasks(), 224, torch.arange(8000), 1, 0, 0).flatten(1).any(1)
    assert abs(m.float().mean() - 0.5) < 0.03


@settings(max_examples=40, deadline=None)
@given(patches=st.integers(2, 16), low=st.floats(0, 0.5), more=st.floats(0, 0.5), seed=st.integers(0, 99))
def test_never_more_than_asked(patches, low, more, seed):
    spec = BlockMasks(patch=4, ratio=(low, low + more), probability=1.0)
    masks = block_masks(spec, 4 * patches, torch.arange(50), 0, seed, 0)
    assert masks.shape == (50, patches, patches)
    assert (masks.float().mean((1, 2)) <= low + more + 1e-6).all()
    assert torch.equal(masks[10:20], block_masks(spec, 4 * patches, torch.arange(10, 20), 0, seed, 0))
    assert not masks.all(2).all(1).any()
