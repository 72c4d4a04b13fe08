"""What a data set that is not ImageNet needs instead of the papers' values: named, said at the start of a run, in this one place.

A method's file keeps its paper's ImageNet values. A preset is a list of changes to it, each with its reason; the user's own
settings come after it and win. `preset=none` keeps the paper's values.
"""

from __future__ import annotations

from dataclasses import dataclass, field

Changes = tuple[tuple[str, str], ...]
"""(setting, why)"""


@dataclass(frozen=True)
class Preset:
    """Changes for all methods, and for one."""

    of: str
    changes: Changes
    methods: dict[str, Changes] = field(default_factory=dict)


def by_method(*layers: dict[str, Changes]) -> dict[str, Changes]:
    """Each method's changes of all layers, in order."""
    return {name: sum((layer.get(name, ()) for layer in layers), start=()) for name in {n: 0 for layer in layers for n in layer}}


SGD = ("optimizer=sgd", "LARS is for batches of thousands")
GREY = ("encoder.channels=1", "grey images")
SMALL_NET = ("encoder.name=resnet-small", "ResNet-50 is made for 224 x 224 and for GPUs")
NO_LOCALS = ("views.locals=none", "small images have no part worth a view of its own")
ONE_AUGMENTATION = ("views.second=none", "one augmentation for both views: solarised, small images look like another set")
TAU = ("teacher.tau.base=0.99", "a short run: BYOL's code has 0.99 for 100 epochs; at 0.9 BYOL's outputs shrink to output_std 0.5")

DINO_HEAD: Changes = (
    NO_LOCALS,
    ("projector.hidden=[512, 512]", "few features"),
    ("projector.bottleneck=64", "few features"),
    ("projector.out=1024", "K: few images"),
    ("projector.bn=hidden", "a small ViT's features are nearly one at first; without BatchNorm the targets turn uniform at once"),
)


def sharpened(*terms: str) -> Changes:
    temperature = "loss.target.temperature"
    return tuple(
        change
        for name in terms
        for change in (
            (f"terms.{name}.{temperature}.warmup=0", "the code's default"),
            (f"terms.{name}.{temperature}.base=0.04", "the code's default"),
        )
    )


SMALL_IMAGES: dict[str, Changes] = {
    "byol": (SGD, TAU, ("projector.hidden=[1024]", "few features"), ("predictor.hidden=[1024]", "few features")),
    "simclr": (
        SGD,
        ("weight_decay.base=0.0001", "SGD's usual"),
        ("projector.hidden=[512]", "few features"),
        ("terms.views.loss.temperature=0.2", "batches of hundreds, not thousands"),
    ),
    "moco": (TAU, ("projector.hidden=[512]", "few features")),
    "swav": (
        SGD,
        NO_LOCALS,
        ("weight_decay.base=0.0001", "SGD's usual"),
        ("lr.end=0", "SGD's usual"),
        ("lr.warmup_from=0", "SGD's usual"),
        ("projector.hidden=[512]", "few features"),
        ("terms.views.loss.prototypes=100", "fewer prototypes than a batch has images"),
    ),
    "dino": (*DINO_HEAD, *sharpened("views")),
    "ibot": (*DINO_HEAD, *sharpened("views", "patches")),
    "mean-teacher": (
        ("teacher.tau.then.base=0.99", "the code's for 4,000 labels of CIFAR-10"),
        ("terms.consistency.weight.base=10", "few classes"),
    ),
}
"""what any set of small images needs"""

XAVIER = "weight_init: moco"
"""Xavier's scale (MoCo v3): with timm's own, std 0.02, a narrow ViT's features are nearly one at first (kNN on digits 0.84 for 0.72)"""

DIGITS_VIT: Changes = (
    ("weight_decay.end=0.04", "a short run"),
    ("encoder.name=timm:vit_tiny_patch16_224", "a ViT, smaller"),
    (f"encoder.options={{patch_size: 2, depth: 3, embed_dim: 96, num_heads: 3, {XAVIER}}}", "16 patches of 2 x 2; init on Xavier's scale"),
)
GREY28_VIT: Changes = (
    TAU,
    ("weight_decay.end=0.04", "a short run"),
    ("encoder.name=timm:vit_tiny_patch16_224", "a ViT, smaller"),
    (f"encoder.options={{patch_size: 7, depth: 4, embed_dim: 128, num_heads: 4, {XAVIER}}}", "16 patches of 7 x 7; init on Xavier's scale"),
    ("lr.base=0.004", "a short run"),
    ("teacher.tau.end=0.99", "a short run: at 1 the teacher stands still before the student does (4 epochs: kNN 0.822 to 0.830)"),
)
FEW_PHOTOS_VIT: Changes = (
    ("encoder.name=timm:vit_tiny_patch16_224", "a ViT, smaller"),
    ("encoder.options={}", "few steps: each block in all of them"),
    ("views.locals.count=4", "half the cost"),
    ("views.locals.size=64", "half the cost"),
    ("projector.out=4096", "K: few images"),
    TAU,
)
GREY_PHOTOS: Changes = (GREY, ("views.mean=[0.449]", "ImageNet's, of three"), ("views.std=[0.226]", "the same"))
FEW_PHOTOS: Changes = (
    ("views.size=128", "a third of 224's cost"),
    ("encoder.name=resnet18", "ResNet-50 has more parameters than this has pixels to learn from"),
    ("batch_size=64", "many steps from few images"),
    ("epochs=100", "as SimSiam"),
)
FEW_PHOTOS_METHODS: dict[str, Changes] = {
    "byol": (
        SGD,
        TAU,
        ("lr.base=0.05", "SGD's scale"),
        ("weight_decay.base=0.0001", "SGD's scale"),
    ),
    "simclr": (SGD, ("weight_decay.base=0.0001", "SGD's scale"), ("terms.views.loss.temperature=0.2", "batches of 64")),
    "moco": (TAU, ("terms.views.loss.queue=256", "fewer keys than images, in a folder of hundreds too")),
    "swav": (SGD, ("weight_decay.base=0.0001", "SGD's scale"), ("terms.views.loss.prototypes=60", "batches of 64")),
    "dino": FEW_PHOTOS_VIT,
    "ibot": FEW_PHOTOS_VIT,
    "mean-teacher": (
        ("teacher.tau.then.base=0.99", "a short run"),
        ("terms.consistency.weight.base=10", "few images"),
        ("terms.consistency.weight.warmup=33", "a third of the run: early, wrong guesses become firm"),
    ),
}
TAU32 = ("teacher.tau.base=0.99", "as the authors' CIFAR notebook of MoCo has it, and peers' benchmarks of BYOL and DINO")
COLOR32_VIT: Changes = (
    TAU32,
    ("encoder.name=timm:vit_tiny_patch16_224", "a ViT, smaller"),
    ("encoder.options={patch_size: 4}", "64 patches of 4 x 4"),
)
WIDE = ("views.augment.scale=[0.14, 1.0]", "without local crops, as DINO's code advises")

PRESETS: dict[str, Preset] = {
    "digits": Preset(
        of="8 x 8 grey, some 1,800 images",
        changes=(
            GREY,
            ("views.size=8", "the images' own size"),
            ("views.mean=[0.3]", "the set's own"),
            ("views.std=[0.37]", "the set's own"),
            ("views.augment.scale=[0.6, 1.0]", "a fifth of a digit is no digit any more"),
            ("views.augment.flip=0", "a mirrored 2 is no digit"),
            ("views.augment.blur=0", "strokes are one or two pixels wide"),
            ONE_AUGMENTATION,
            SMALL_NET,
            ("encoder.stem=3x3", "no stride at the start: 8 x 8 is little enough"),
            ("encoder.options={widths: [64, 128]}", "two stages, 8 x 8 and 4 x 4"),
            ("encoder.zero_init_residual=false", "with two blocks, blocks that start as the identity leave nothing"),
            ("batch_size=128", "11 steps an epoch: more steps are worth more than larger batches here"),
            ("epochs=60", "660 steps, about a minute on two cores"),
            ("lr.warmup=5", "lr is high"),
        ),
        methods=by_method(
            SMALL_IMAGES,
            {
                "simsiam": (
                    ("lr.base=0.7", "660 steps in all"),
                    ("projector.hidden=[512, 512]", "128 features"),
                    ("projector.out=256", "128 features"),
                    ("projector.bn=hidden", "Table 3b; at the output it holds the outputs apart for hundreds of steps (docs/collapse.md)"),
                    ("predictor.hidden=[128]", "d / 2"),
                ),
                "byol": (("lr.base=0.4", "660 steps in all"), ("weight_decay.base=0.0001", "SGD's usual")),
                "simclr": (("lr.base=0.4", "660 steps in all"),),
                "moco": (("lr.base=0.4", "660 steps in all"), ("terms.views.loss.queue=1024", "fewer keys than images")),
                "swav": (("lr.base=0.2", "660 steps in all"),),
                "dino": (
                    *DIGITS_VIT,
                    ("lr.base=0.008", "few steps"),
                    ("teacher.tau.base=0.97", "11 steps an epoch: at 0.99 the teacher is nine epochs behind, and kNN 0.940 for 0.962"),
                    ("epochs=120", "1,320 steps; kNN rises late: 0.91 after 60 epochs, 0.96 after 120"),
                ),
                "ibot": (
                    *DIGITS_VIT,
                    ("lr.base=0.016", "0.004 a step, as DINO's"),
                    ("teacher.tau.base=0.97", "as DINO's: at 0.99 kNN is 0.950 ± 0.024"),
                    ("batch_size=64", "22 steps an epoch: masked views take longer to learn from"),
                    ("epochs=130", "2,860 steps; the slowest of three seeds is at 0.91 after a run of 100 epochs, at 0.94 after 130"),
                    ("views.masks.patch=2", "the encoder's"),
                    ("views.masks.ratio=[0.1, 0.3]", "half a digit hidden may be another digit"),
                    ("terms.patches.weight.base=0.3", "a patch of 2 x 2 says little: at 1, kNN is 0.1 lower after 100 epochs"),
                ),
                "mean-teacher": (
                    ("labels=100", "10 a class"),
                    ("labelled_share=0.5", "few images have a label"),
                    ("terms.consistency.weight.base=30", "the ramp is long"),
                    ("terms.consistency.weight.warmup=40", "a third of the run: early, wrong guesses become firm"),
                    ("epochs=120", "1,320 steps: consistency pays late, with 60 it gains nothing over the labels alone"),
                ),
            },
        ),
    ),
    "grey-28": Preset(
        of="28 x 28 grey, as Fashion-MNIST",
        changes=(
            GREY,
            ("views.size=28", "Fashion-MNIST's"),
            ("views.mean=[0.286]", "Fashion-MNIST's"),
            ("views.std=[0.353]", "Fashion-MNIST's"),
            ("views.augment.scale=[0.5, 1.0]", "one centred object fills the image"),
            ("views.augment.blur=0", "28 x 28 is blurred enough"),
            ("views.augment.brightness=0.7", "grey images have no colour to jitter: more of what there is (3 epochs: kNN 0.841 to 0.847)"),
            ("views.augment.contrast=0.7", "the same"),
            ONE_AUGMENTATION,
            SMALL_NET,
            ("encoder.stem=3x3/2", "over 1,000 images/s on two cores"),
            ("encoder.zero_init_residual=false", "few blocks"),
            ("batch_size=128", "468 steps an epoch: more steps are worth more than larger batches (3 epochs: kNN 0.835 to 0.841)"),
            ("epochs=18", "under 20 minutes on two cores"),
            ("lr.warmup=2", "a tenth of the run"),
        ),
        methods=by_method(
            SMALL_IMAGES,
            {
                "simsiam": (
                    ("lr.base=0.1", "a short run: App. D has 0.03 for 800 epochs"),
                    ("weight_decay.base=0.0005", "SimSiam App. D"),
                    ("projector.hidden=[1024]", "two layers, SimSiam App. D"),
                    ("projector.out=1024", "256 features"),
                    ("predictor.hidden=[256]", "d / 4"),
                ),
                "byol": (("lr.base=0.2", "SGD's scale"), ("weight_decay.base=0.0005", "SGD's scale")),
                "simclr": (("lr.base=0.2", "SGD's scale"),),
                "moco": (("lr.base=0.2", "small batches"), ("terms.views.loss.queue=4096", "fewer keys than images")),
                "swav": (("lr.base=0.1", "SGD's scale"),),
                "dino": GREY28_VIT,
                "ibot": (
                    *GREY28_VIT,
                    ("views.masks.patch=7", "the encoder's"),
                    ("views.masks.ratio=[0.1, 0.3]", "16 patches: half of them hidden may be another garment"),
                    ("terms.patches.weight.base=0.3", "a patch of 7 x 7 says little"),
                ),
                "mean-teacher": (
                    ("labels=1000", "100 a class"),
                    ("labelled_share=0.5", "few images have a label"),
                    ("terms.consistency.weight.warmup=6", "a third of the run: early, wrong guesses become firm"),
                ),
            },
        ),
    ),
    "color-32": Preset(
        of="32 x 32 colour, as CIFAR-10 (SimSiam App. D)",
        changes=(
            ("views.size=32", "CIFAR-10's"),
            ("views.mean=[0.491, 0.482, 0.447]", "CIFAR-10's"),
            ("views.std=[0.247, 0.243, 0.262]", "CIFAR-10's"),
            ("views.augment.blur=0", "SimSiam App. D"),
            ONE_AUGMENTATION,
            ("encoder.name=resnet18", "SimSiam App. D"),
            ("encoder.stem=3x3", "the CIFAR stem: no stride before the first block"),
            ("batch_size=512", "SimSiam App. D"),
            ("epochs=800", "SimSiam App. D"),
        ),
        methods=by_method(
            SMALL_IMAGES,
            {
                "simsiam": (
                    ("lr.base=0.03", "SimSiam App. D"),
                    ("weight_decay.base=0.0005", "SimSiam App. D"),
                    ("projector.hidden=[2048]", "two layers, SimSiam App. D"),
                ),
                "simclr": (
                    ("terms.views.loss.temperature=0.5", "SimCLR App. B.9"),
                    ("views.augment.brightness=0.4", "strength 0.5, SimCLR App. B.9"),
                    ("views.augment.contrast=0.4", "the same"),
                    ("views.augment.saturation=0.4", "the same"),
                    ("views.augment.hue=0.1", "the same"),
                ),
                "byol": (TAU32, ("lr.base=0.03", "as SimSiam"), ("weight_decay.base=0.0005", "as SimSiam")),
                "moco": (TAU32, ("terms.views.loss.queue=4096", "the authors' CIFAR notebook")),
                "swav": (("views.augment.scale=[0.08, 1.0]", "without local crops, as the paper's run of two crops"),),
                "dino": (*COLOR32_VIT, WIDE),
                "ibot": (*COLOR32_VIT, WIDE, ("views.masks.patch=4", "the encoder's")),
                "mean-teacher": (
                    ("labels=4000", "Mean Teacher Table 2"),
                    ("epochs=300", "the code's for 4,000 labels"),
                    ("terms.consistency.weight.base=100", "the paper's"),
                ),
            },
        ),
    ),
    "few-photos": Preset(of="a folder of less than 20,000 images", changes=FEW_PHOTOS, methods=FEW_PHOTOS_METHODS),
    "grey-photos": Preset(
        of="less than 20,000 grey images of 64 pixels and more", changes=(*GREY_PHOTOS, *FEW_PHOTOS), methods=FEW_PHOTOS_METHODS
    ),
    "grey": Preset(of="20,000 grey images of 64 pixels and more, or more of them", changes=GREY_PHOTOS, methods={}),
}

FEW = 20_000
"""images of a folder below which ImageNet's batches and ResNet-50 are out of place"""


def preset_for(images: int, channels: int, side: int | None) -> str:
    """The name of the preset for `images` images of `channels` channels whose shorter side is `side` pixels, None where their sizes
    differ; "none" where the papers' values fit."""
    if side is None:
        return "few-photos" if images < FEW else "none"
    if channels == 1:
        return "digits" if side < 16 else "grey-28" if side < 64 else "grey-photos" if images < FEW else "grey"
    if side < 64:
        return "color-32"
    return "few-photos" if images < FEW else "none"
