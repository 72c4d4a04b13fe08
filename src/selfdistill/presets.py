"""What a data set that is not ImageNet needs instead of the papers' values: named, said at the start of a run, in this one place.

A method's file keeps its paper's ImageNet values. A preset is a list of changes to it, each with its reason; the user's own
settings come after it and win. `preset=none` keeps the paper's values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from selfdistill.errors import Misuse
from selfdistill.recipe import Recipe, diff


@dataclass(frozen=True)
class Preset:
    """Changes (setting, why) for all methods, and for one."""

    of: str
    changes: tuple[tuple[str, str], ...]
    methods: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)


GREY = (("encoder.channels=1", "grey images"),)
SGD_NOT_LARS = ("optimizer=sgd", "LARS is for batches of thousands")
SMALL_NET = ("encoder.name=resnet-small", "ResNet-50 is made for 224 x 224 and for GPUs")
SHORT_WARMUP = ("lr.warmup=2", "a tenth of the run")

PRESETS: dict[str, Preset] = {
    "digits": Preset(
        of="8 x 8 grey, some 1,800 images",
        changes=(
            *GREY,
            ("views.size=8", "the images' own size"),
            ("views.mean=[0.3]", "the set's own"),
            ("views.std=[0.37]", "the set's own"),
            ("views.augment.scale=[0.6, 1.0]", "a fifth of a digit is no digit any more"),
            ("views.augment.flip=0", "a mirrored 2 is no digit"),
            ("views.augment.blur=0", "strokes are one or two pixels wide"),
            ("views.second=none", "one augmentation for both views: a solarised digit is another set"),
            SMALL_NET,
            ("encoder.stem=3x3", "no stride at the start: 8 x 8 is little enough"),
            ("encoder.options={widths: [64, 128]}", "two stages, 8 x 8 and 4 x 4"),
            ("encoder.zero_init_residual=false", "with two blocks, blocks that start as the identity leave nothing"),
            ("batch_size=128", "11 steps an epoch: more steps are worth more than larger batches here"),
            ("epochs=60", "660 steps, about a minute on two cores"),
            ("lr.warmup=5", "lr is high"),
        ),
        methods={
            "simsiam": (
                ("lr.base=0.7", "660 steps in all"),
                ("projector.hidden=[512, 512]", "128 features"),
                ("projector.out=256", "128 features"),
                (
                    "projector.bn=hidden",
                    "Table 3b; BatchNorm at the output holds the outputs apart for hundreds of steps (docs/collapse.md)",
                ),
                ("predictor.hidden=[128]", "d / 2"),
            ),
            "byol": (
                ("optimizer=sgd", "LARS is for batches of thousands"),
                ("lr.base=0.4", "660 steps in all"),
                ("weight_decay.base=0.0001", "SGD's usual"),
                ("projector.hidden=[1024]", "128 features"),
                ("predictor.hidden=[1024]", "128 features"),
                ("teacher.tau.base=0.99", "BYOL's value for short runs (code's presets); at 0.9 the outputs shrink to output_std 0.5"),
            ),
            "simclr": (
                SGD_NOT_LARS,
                ("lr.base=0.4", "660 steps in all"),
                ("weight_decay.base=0.0001", "SGD's usual"),
                ("projector.hidden=[512]", "128 features"),
                ("terms.views.loss.temperature=0.2", "batches of 128, not 4096"),
            ),
            "moco": (
                ("lr.base=0.4", "660 steps in all"),
                ("projector.hidden=[512]", "128 features"),
                ("terms.views.loss.queue=1024", "11 steps of keys: fewer than the images"),
                ("teacher.tau.base=0.99", "660 steps: 0.999 would hardly move"),
            ),
            "swav": (
                SGD_NOT_LARS,
                ("lr.base=0.2", "660 steps in all"),
                ("lr.end=0.0", "660 steps in all"),
                ("weight_decay.base=0.0001", "SGD's usual"),
                ("projector.hidden=[512]", "128 features"),
                ("terms.views.loss.prototypes=100", "1,437 images; fewer prototypes than a batch has views"),
                ("views.locals=none", "8 x 8 has no part worth a view of its own"),
            ),
            "dino": (
                ("encoder=timm:vit_tiny_patch16_224", "a ViT, smaller"),
                ("encoder.options={patch_size: 2, depth: 4}", "16 tokens"),
                ("views.locals=none", "8 x 8 has no part worth a view of its own"),
                ("projector.hidden=[512, 512]", "192 features"),
                ("projector.bottleneck=64", "192 features"),
                ("projector.out=1024", "K, about as many as there are images"),
                ("teacher.tau.base=0.99", "660 steps"),
                ("lr.base=0.002", "660 steps in all"),
                ("terms.views.loss.target.temperature.warmup=0", "660 steps in all"),
                ("terms.views.loss.target.temperature.base=0.04", "the code's default"),
            ),
            "ibot": (
                ("encoder=timm:vit_tiny_patch16_224", "a ViT, smaller"),
                ("encoder.options={patch_size: 2, depth: 4}", "16 tokens"),
                ("views.masks.patch=2", "the encoder's"),
                ("views.locals=none", "8 x 8 has no part worth a view of its own"),
                ("projector.hidden=[512, 512]", "192 features"),
                ("projector.bottleneck=64", "192 features"),
                ("projector.out=1024", "K, about as many as there are images"),
                ("teacher.tau.base=0.99", "660 steps"),
                ("lr.base=0.002", "660 steps in all"),
                ("terms.views.loss.target.temperature.warmup=0", "660 steps in all"),
                ("terms.views.loss.target.temperature.base=0.04", "the code's default"),
                ("terms.patches.loss.target.temperature.warmup=0", "660 steps in all"),
                ("terms.patches.loss.target.temperature.base=0.04", "the code's default"),
            ),
            "mean-teacher": (
                ("labels=100", "10 a class"),
                ("lr.base=0.1", "660 steps in all"),
                ("teacher.tau.then.base=0.99", "660 steps"),
                ("terms.consistency.weight.base=10", "a squared difference of 10 softmaxes"),
            ),
        },
    ),
    "grey-28": Preset(
        of="28 x 28 grey, as Fashion-MNIST",
        changes=(
            *GREY,
            ("views.size=28", "the images' own size"),
            ("views.mean=[0.286]", "Fashion-MNIST's"),
            ("views.std=[0.353]", "Fashion-MNIST's"),
            ("views.augment.scale=[0.5, 1.0]", "one centred object fills the image"),
            ("views.augment.blur=0", "28 x 28 is blurred enough"),
            ("views.augment.brightness=0.7", "grey images have no colour to jitter: more of what there is (3 epochs: kNN 0.841 to 0.847)"),
            ("views.augment.contrast=0.7", "the same"),
            ("views.second=none", "one augmentation for both views"),
            SMALL_NET,
            ("encoder.stem=3x3/2", "over 1,000 images/s on two cores"),
            ("encoder.zero_init_residual=false", "few blocks"),
            ("batch_size=128", "468 steps an epoch: more steps are worth more than larger batches (3 epochs: kNN 0.835 to 0.841)"),
            ("epochs=18", "under 20 minutes on two cores"),
            SHORT_WARMUP,
        ),
        methods={
            "simsiam": (
                ("lr.base=0.1", "SimSiam App. D raises it for small images as well"),
                ("weight_decay.base=0.0005", "SimSiam App. D"),
                ("projector.hidden=[1024]", "two layers, SimSiam App. D"),
                ("projector.out=1024", "256 features"),
                ("predictor.hidden=[256]", "d / 4"),
            ),
            "byol": (
                ("optimizer=sgd", "LARS is for batches of thousands"),
                ("lr.base=0.2", "SGD's scale"),
                ("weight_decay.base=0.0005", "SGD's scale"),
                ("projector.hidden=[1024]", "256 features"),
                ("predictor.hidden=[1024]", "256 features"),
                ("teacher.tau.base=0.99", "8,424 steps: BYOL's value for 100 epochs (code's presets)"),
            ),
        },
    ),
    "color-32": Preset(
        of="32 x 32 colour, as CIFAR-10 (SimSiam App. D)",
        changes=(
            ("views.size=32", "the images' own size"),
            ("views.mean=[0.491, 0.482, 0.447]", "CIFAR-10's"),
            ("views.std=[0.247, 0.243, 0.262]", "CIFAR-10's"),
            ("views.augment.blur=0", "SimSiam App. D"),
            ("views.second=none", "one augmentation for both views"),
            ("encoder.name=resnet18", "SimSiam App. D"),
            ("encoder.stem=3x3", "the CIFAR stem: no stride before the first block"),
            ("batch_size=512", "SimSiam App. D"),
            ("epochs=800", "SimSiam App. D"),
        ),
        methods={
            "simsiam": (
                ("lr.base=0.03", "SimSiam App. D"),
                ("weight_decay.base=0.0005", "SimSiam App. D"),
                ("projector.hidden=[2048]", "two layers, SimSiam App. D"),
            ),
            "byol": (
                ("optimizer=sgd", "LARS is for batches of thousands"),
                ("lr.base=0.03", "as SimSiam"),
                ("weight_decay.base=0.0005", "as SimSiam"),
                ("projector.hidden=[1024]", "512 features"),
                ("predictor.hidden=[1024]", "512 features"),
                ("teacher.tau.base=0.99", "as lightly's and solo-learn's CIFAR settings"),
            ),
        },
    ),
    "few-photos": Preset(
        of="a folder of less than 20,000 images",
        changes=(
            ("views.size=128", "a third of 224's cost"),
            ("encoder.name=resnet18", "ResNet-50 has more parameters than this has pixels to learn from"),
            ("batch_size=64", "many steps from few images"),
        ),
        methods={
            "byol": (
                ("optimizer=sgd", "LARS is for batches of thousands"),
                ("lr.base=0.05", "SGD's scale"),
                ("weight_decay.base=0.0001", "SGD's scale"),
                ("epochs=100", "as SimSiam"),
                ("teacher.tau.base=0.99", "BYOL's value for 100 epochs (code's presets)"),
            ),
        },
    ),
}


def preset_for(images: int, channels: int, side: int | None) -> str:
    """The name of the preset for `images` images of `channels` channels whose shorter side is `side` pixels, None where their sizes
    differ; "none" where the papers' values fit."""
    if side is None:
        return "few-photos" if images < FEW else "none"
    if channels == 1:
        return "digits" if side < 16 else "grey-28"
    return "color-32" if side < 64 else "none"


FEW = 20_000
"""images of a folder below which ImageNet's batches and ResNet-50 are out of place"""


def with_preset(recipe: Recipe, name: str) -> tuple[Recipe, list[str]]:
    """The recipe with a preset's changes, and a line for each field that they changed: old and new value, and why."""
    if name == "none":
        return recipe, []
    if name not in PRESETS:
        near = get_close_matches(name, PRESETS, 1)
        raise Misuse(f"preset={name}: allowed: {', '.join(PRESETS)}, none, auto." + (f" Did you mean {near[0]}?" if near else ""))
    changes = PRESETS[name].changes + PRESETS[name].methods.get(recipe.method, ())
    changed = recipe.edit([setting for setting, _ in changes])
    differing = [path for path, _, _ in diff(recipe, changed)]
    lines = []
    for setting, why in changes:
        key, _, new = setting.partition("=")
        if any(path == key or path.startswith(f"{key}.") for path in differing):
            lines.append(f"{key}: {_short(recipe, key)} -> {new}, {why}")
    return changed, lines


def _short(recipe: Recipe, key: str) -> str:
    """The value at a path; of a slot its kind."""
    value: Any = recipe.model_dump(mode="json")
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return str(value.get("kind", "set" if value else "none")) if isinstance(value, dict) else "none" if value is None else str(value)
