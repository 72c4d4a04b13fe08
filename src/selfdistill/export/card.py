"""The README of an export: how to load it, what it wants, what it was made of and is worth. A model card of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selfdistill.data.sources import SOURCES
from selfdistill.export.formats import Format, Kept
from selfdistill.train.run import Run
from selfdistill.train.subject import TIMM, Subject

MEASURED = {
    "knn_top1": "kNN top-1 on held-out images (k = 20 or the whole bank, T = 0.07)",
    "probed": "kNN top-1 of the last probe, on a share of the images",
    "knn_random_init": "kNN top-1 of the network at random",
    "knn_raw_pixels": "kNN top-1 of raw pixels",
    "linear_top1": "linear top-1 on held-out images",
    "output_std": "output_std of the projections (1 is isotropic, 0 constant)",
    "effective_rank": "effective rank of the projections",
    "epoch": "epochs",
    "wall_seconds": "seconds of training",
}


def card(subject: Subject, kept: Kept, made: Format, checked: str) -> str:
    """Markdown, with the YAML head that the hub reads."""
    r = subject.recipe
    data = _without_path(r.data)
    channels, size = r.encoder.channels, r.views.size
    colours = "RGB" if channels == 3 else f"{channels} channels"
    encoder = r.encoder.name.removeprefix("timm:")
    if subject.run:
        title, tags = f"{encoder}, pretrained by {r.method} on {data}", f"\n- self-supervised-learning\n- {r.method}"
        what = f"The {kept.of}'s backbone of a run of selfdistill, without its projector"
        told = _trained(subject.run, kept.of, data)
    else:
        title, tags = f"{encoder}, {_origin(subject)}", ""
        what, told = f"{encoder} with {_origin(subject)}", "Nothing was trained or measured here.\n"
    return f"""---
library_name: {made.library}
license: unknown
tags:
- image-feature-extraction{tags}
---
# {title}

{what}: images to {kept.backbone.dim} features.

```python
{made.code(kept)}
```

`images`: float32 `[B, {channels}, {size}, {size}]`, {colours}, pixels in [0, 1], minus the mean {kept.mean}, over the
standard deviation {kept.std}, channel by channel. `folder`: where this file is.

{checked}

{told}"""


def _origin(subject: Subject) -> str:
    """Whose the weights of what is no run are."""
    if subject.name.startswith(TIMM):
        return f"timm's pretrained weights ({subject.name}), whose licence is their authors'"
    return f"the weights of {_without_path(subject.name)}" if subject.recipe.init_from else f"random weights, seed {subject.recipe.seed}"


def _without_path(data: str) -> str:
    """A path says more of its owner than of the data."""
    return data if data in SOURCES else Path(data).name


def _trained(run: Run, of: str, data: str) -> str:
    """What the backbone of a run's student or teacher is worth, what to know of it, and how it came about."""
    r, s = run.recipe, run.summary
    if of != r.kept:  # evaluated was the one that the run keeps; of the other there are the probes
        s = {**s, "knn_top1": None, "linear_top1": None, "probed": s.get(f"knn_{of}")}
    numbers = "\n".join(f"| {name} | {_number(s[key])} |" for key, name in MEASURED.items() if s.get(key) is not None)
    labels = "without labels" if r.labels is None else f"with {r.labels} labels"
    start = f", from the weights of init_from={_without_path(r.init_from)}" if r.init_from else " and nothing else"
    return f"""## What it is worth

Last epoch, seed {r.seed}. Verdict: {s.get("because", "none: nothing was measured")}

| measured on {data} | |
|---|---|
{numbers}

## What to know

- Trained on {f"{s['images']:,} " if "images" in s else ""}images of {data}{start}, {labels}:
  it knows what they show, has their biases, and was measured nowhere else.
- A figure of one seed has no spread.
- Licence: the software is Apache-2.0. These weights are under what whoever trained them says here, as far as the licence of the images
  allows.

## Recipe

```yaml
{r.model_copy(update={"data": data, "init_from": r.init_from and _without_path(r.init_from)}).to_yaml()}```
"""


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
