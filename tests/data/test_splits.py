"""A tenth of each class, whatever the images lie in."""

from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from selfdistill.data.images import Files
from selfdistill.data.splits import tenth_held_out


@given(st.lists(st.integers(-1, 4), min_size=1, max_size=120))
def test_a_tenth_of_each_class_is_held_out_and_nothing_without_a_label(labels):
    names = [f"{i}.png" for i in range(len(labels))]
    images = Files([Path(name) for name in names], torch.tensor(labels), tuple("abcde"))
    train, test, said = tenth_held_out(images, names)
    held = [] if test is None else test.paths
    assert sorted([*train.paths, *held]) == sorted(images.paths)
    for label in range(-1, 5):
        n = labels.count(label)
        expected = 0 if label < 0 or n < 2 else max(1, round(n / 10))
        assert (0 if test is None else test.labels.tolist().count(label)) == expected
    labelled = len(labels) - labels.count(-1)
    assert (f"{len(held)} of {labelled} images" if held else "one image a class" if labelled else "no label") in said
    fewer = tenth_held_out(images.pick(torch.arange(len(labels) - 1)), names[:-1])[1] if len(labels) > 1 else None
    if fewer is not None:  # one image less moves at most one of its class
        assert len({*fewer.paths} ^ {*held}) <= 3
