"""Fine-tuning against PyTorch's own steps, and its choices."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from selfdistill.evaluate.finetune import crop_and_flip, finetune, finetune_accuracy
from selfdistill.views.augment import plain
from selfdistill.views.draw import permutation
from selfdistill.views.spec import Augment, Crops

WHOLE = Crops(size=8, augment=Augment(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0), mean=(0.4,), std=(0.3,))


def bars(n=60):
    """Grey 8 x 8: bars across and bars down, with noise."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 2
    x = torch.randint(0, 150, (n, 1, 8, 8), generator=g)
    x[labels == 0, :, 2:4] += 100
    x[labels == 1, :, :, 2:4] += 100
    return x.to(torch.uint8), labels


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU())


def test_its_steps_are_those_of_sgd():
    """Nesterov 0.9, a cosine to 0, lr for a batch of 256, a head that starts at 0, what does not fill a batch left out; the network
    that it was given stays as it was."""
    pixels, labels = bars(50)
    backbone = net()
    before = copy.deepcopy(backbone.state_dict())
    tuned = finetune(backbone, pixels, labels, 2, WHOLE, rate=3.0, epochs=4, batch_size=16)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())

    oracle = nn.Sequential(backbone, nn.Linear(12, 2)).train()
    for p in oracle[1].parameters():
        nn.init.zeros_(p)
    optimizer = torch.optim.SGD(oracle.parameters(), lr=0.0, momentum=0.9, nesterov=True)
    for step in range(4 * 3):
        rows = permutation(0, step // 3, 50).split(16)[step % 3]
        optimizer.param_groups[0]["lr"] = 3.0 * 16 / 256 * (1 + math.cos(math.pi * step / 12)) / 2
        optimizer.zero_grad()
        F.cross_entropy(oracle(plain(pixels[rows], WHOLE)), labels[rows]).backward()
        optimizer.step()
    x = plain(pixels, WHOLE)
    with torch.no_grad():
        torch.testing.assert_close(tuned(x), oracle.eval()(x), atol=1e-4, rtol=1e-4)


def test_crops_and_flips_are_the_views_own_and_nothing_else_is():
    views = Crops(augment=Augment(scale=(0.3, 0.9), flip=0.2, solarize=0.3, erase=0.1), second=Augment())
    alone = crop_and_flip(views)
    assert (alone.augment.scale, alone.augment.flip, alone.mean) == ((0.3, 0.9), 0.2, views.mean)
    a = alone.augment
    assert (a.jitter, a.grey, a.blur, a.solarize, a.erase, alone.second) == (0, 0, 0, 0, 0, None)


def test_the_rate_is_the_validation_images_choice():
    """Here their labels are turned round: the rate that learns nothing is then best, whatever the test images say."""
    pixels, labels = bars(200)
    few, others = (pixels[:20], labels[:20]), (pixels[20:100], labels[20:100])
    test = pixels[100:], labels[100:]
    right = finetune_accuracy(net(), *few, *test, WHOLE, (1e-9, 2.0), others, epochs=20)
    wrong = finetune_accuracy(net(), *few, *test, WHOLE, (1e-9, 2.0), (others[0], 1 - others[1]), epochs=20)
    assert right.rate == 2.0
    assert right.accuracy > 0.95
    assert wrong.rate == 1e-9
    assert wrong.accuracy < right.accuracy


def test_without_any_a_tenth_is_held_out_and_then_all_are_learnt(monkeypatch):
    pixels, labels = bars(100)
    seen = []
    from selfdistill.evaluate import finetune as module

    original = module.finetune
    monkeypatch.setattr(module, "finetune", lambda b, x, *rest, **how: seen.append(len(x)) or original(b, x, *rest, **how))
    found = finetune_accuracy(net(), pixels, labels, pixels, labels, WHOLE, (1e-9, 2.0), epochs=10)
    assert seen == [90, 90, 100]
    assert found.rate == 2.0
    assert found.accuracy > 0.95


def test_one_rate_is_no_choice():
    """Of a bank too small to hold a tenth out; with images to choose on, it is what one of two would be."""
    pixels, labels = bars(100)
    few, others, test = (pixels[:15], labels[:15]), (pixels[20:40], labels[20:40]), (pixels[40:], labels[40:])
    alone = finetune_accuracy(net(), *few, *test, WHOLE, (2.0,), epochs=10)
    assert alone == finetune_accuracy(net(), *few, *test, WHOLE, (2.0,), others, epochs=10)
    assert alone == finetune_accuracy(net(), *few, *test, WHOLE, (2.0, 1e-9), others, epochs=10)


def test_adamw_too():
    from selfdistill.parts.optim import AdamW

    pixels, labels = bars(100)
    found = finetune_accuracy(net(), pixels, labels, pixels, labels, WHOLE, (0.05,), epochs=10, optimizer=AdamW())
    assert found == (pytest.approx(1.0, abs=0.05), 0.05)


def test_images_and_their_crops_are_drawn_by_seed_and_anew_in_each_epoch(monkeypatch):
    from selfdistill.evaluate import finetune as module

    seen = []
    original = module.views_of_pixels

    def spy(images, ids, spec, globals, seed, epoch):
        seen.append((ids.tolist(), globals, seed, epoch))
        return original(images, ids, spec, globals, seed, epoch)

    monkeypatch.setattr(module, "views_of_pixels", spy)
    pixels, labels = bars(20)
    finetune(net(), pixels, labels, 2, WHOLE, rate=0.1, epochs=2, batch_size=10, seed=3)
    expected = [(rows.tolist(), 1, 3, epoch) for epoch in range(2) for rows in permutation(3, epoch, 20).split(10)]
    assert seen == expected


def test_dropout_is_drawn_by_seed_and_nobody_elses_draws_are():
    """Images that are all the same in one batch: neither their order nor their crops tell seeds apart."""
    pixels, labels = torch.full((16, 1, 8, 8), 200, dtype=torch.uint8), torch.zeros(16, dtype=torch.long)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Dropout(0.5))
    weights, afterwards = [], []
    for at, seed in enumerate((0, 0, 1, 2)):
        torch.manual_seed(100 + at)
        weights.append(finetune(backbone, pixels, labels, 2, WHOLE, rate=1.0, epochs=2, seed=seed)[0][1].weight.detach())
        afterwards.append(float(torch.rand(())))
    assert torch.equal(weights[0], weights[1])
    assert not any(torch.allclose(weights[i], weights[j]) for i, j in ((0, 2), (0, 3), (2, 3)))
    assert len(set(afterwards)) == 4
