"""A method as data: the slots of the family's one algorithm, and the settings of a run. Frozen, validated, YAML in and out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from selfdistill.errors import Misuse, in_one_line
from selfdistill.own import Slot
from selfdistill.parts.encoder import Encoder
from selfdistill.parts.head import DINOHead, Projector
from selfdistill.parts.loss import Term, global_views
from selfdistill.parts.optim import LARS, SGD, AdamW, Clip
from selfdistill.parts.predictor import DirectPred, LeastSquares, Predictor
from selfdistill.parts.schedule import Schedule
from selfdistill.parts.teacher import EMA, Expectation, Shared, Snapshot
from selfdistill.settings import edited, settings_in, specs_of, yaml_from, yaml_of
from selfdistill.spec import Count, Spec, kind_of, problems
from selfdistill.views.spec import Crops

FORMAT = 1
"""of recipe.yaml in a run folder and of its checkpoints: raised when a newer one could not be read as an older one is"""
RECORD = ("format", "versions")
"""what a run folder's recipe.yaml says beside the recipe: what it was made with"""
Rate = Annotated[Schedule, AfterValidator(lambda rate: rate.within(0.0, math.inf))]
Words = BeforeValidator(lambda value: () if value in (None, "none") else (value,) if isinstance(value, str) else value)


class Checkpoint(Spec):
    """Which checkpoints are kept beside last.ckpt, which always is."""

    every: Count | None = None
    """epochs between those that stay, checkpoints/epoch-N.ckpt; none: only the last"""
    best: bool = False
    """keep checkpoints/best.ckpt, of the probe with the highest kNN accuracy (of results the last epoch counts, not the best)"""


class Recipe(Spec):
    """Everything that decides what a run computes. Raises `pydantic.ValidationError` where two fields contradict."""

    method: str
    """the name under which `selfdistill methods` lists it"""

    # The slots of the algorithm (siamese.py).
    views: Crops = Crops()
    """what each image is turned into"""
    encoder: Encoder = Encoder()
    """f, the backbone that is kept at the end"""
    projector: Annotated[Projector | DINOHead, Slot("projector")] | None = Projector()
    """g, on both sides; none: the loss works on the features"""
    patch_projector: Annotated[Projector | DINOHead, Slot("projector")] | None = None
    """the head of masked patches; none: the projector serves them too (iBOT Table 17: shared is better)"""
    predictor: Annotated[Predictor | LeastSquares | DirectPred, Slot("predictor")] | None = None
    """h, on the student's side only"""
    teacher: Annotated[Shared | EMA | Snapshot | Expectation, Slot("teacher")] = Shared()
    """what the student is asked to predict"""
    stop_gradient: bool = True
    """no gradient into the targets"""
    terms: dict[str, Term] = Field({"views": Term()}, min_length=1)
    """the loss, a sum of terms"""
    bn_joint: bool = False
    """BatchNorm sees views together, the encoder's those of one size and the head's all (DINO), or each alone (SimSiam, BYOL); a part
    without one is the same either way, and sees them together"""
    keep: Literal["student", "teacher"] = "student"
    """whose encoder is evaluated and saved; a teacher without weights of its own is the student"""

    init_from: str | None = None
    """weights that the encoder starts from: a run folder, timm:NAME (pretrained), a .safetensors or a .pth; none: random"""
    init_partial: bool = False
    """accept weights that lack some of the encoder's, which then stay random"""

    # Optimisation.
    optimizer: Annotated[SGD | LARS | AdamW, Slot("optimizer")] = SGD()
    lr: Rate = Schedule(base=0.05, end=0.0)
    """learning rate for a batch of 256"""
    lr_scaling: Literal["linear", "sqrt", "none"] = "linear"
    """how lr grows with batch_size / 256"""
    weight_decay: Rate = Schedule(base=1e-4)
    decay_norm_and_bias: bool = True
    """whether weight decay reaches biases and BatchNorm's parameters"""
    clip: Clip | None = None
    """gradient clipping"""
    epochs: int = Field(100, ge=1)
    batch_size: int = Field(512, ge=2)
    """images per optimiser step, over all devices and micro-batches"""
    accumulate: int = Field(1, ge=1)
    """micro-batches per optimiser step"""

    # The run.
    data: str = "digits"
    """a built-in set's name, a folder of images, tar shards, or hf:NAME (data/sources.py)"""
    preset: str = "auto"
    """what the data needs instead of ImageNet's values (presets.py); auto: by the data, none: the paper's values"""
    labels: Count | Annotated[float, Field(gt=0, le=1)] | None = None
    """training images whose label may be learnt from: a number, or a share of those that have one, drawn by seed, as evenly over the
    classes as their sizes allow; none: no label is trained on (probes look at all of them)"""
    labelled_share: float = Field(0.25, gt=0, le=1)
    """of each batch, drawn from those; the rest of it is trained on without labels, even where an image has one"""
    on_bad_image: Literal["skip", "error"] = "skip"
    """skip a file that is no image and list it, or stop at the first"""
    max_bad_steps: int = Field(10, ge=0)
    """steps whose loss or gradient is not finite that are passed over; one more stops the run"""
    checkpoint: Checkpoint = Checkpoint()
    seed: int = Field(0, ge=0, lt=2**31)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast where the hardware has it; the loss stays in fp32"""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of the backbone; auto: on a GPU, where the run is long enough to repay it (train/resolve.py)"""
    devices: Count | Literal["auto"] = "auto"
    """processes that train together, one for each GPU (auto: all), or on the CPU; batch_size is shared among them"""
    workers: Annotated[int, Field(ge=0, le=256)] | Literal["auto"] = "auto"
    """processes that decode images of a folder; sets held in memory need none"""
    on_collapse: Literal["warn", "stop"] = "warn"
    """say it once when the verdict turns, or also end the run: saved, with exit code 1"""
    probe_every: Count | Literal["auto"] = "auto"
    """epochs between probes; auto: as often as about 4 % of the run's time allows"""
    log_every: int = Field(10, ge=1)
    """steps between lines of metrics.jsonl"""
    log: Annotated[tuple[Literal["tensorboard", "csv", "wandb", "mlflow"], ...], Words] = ("tensorboard",)
    """where these lines go as well; one, a list, or none"""

    @model_validator(mode="after")
    def _gradients_have_a_way(self) -> Recipe:
        if not self.stop_gradient and self.teacher.own_weights:
            raise ValueError(
                f"stop_gradient=false with teacher={self.teacher.kind}: that teacher is a copy with weights of its own, which no gradient "
                "reaches; the stop-gradient is built in. Take the copy away too: teacher=shared (--without momentum-teacher)"
            )
        return self

    @model_validator(mode="after")
    def _terms_have_what_they_compare(self) -> Recipe:
        for name, term in self.terms.items():
            if term.on == "patch" and self.views.masks is None:
                without = f"give views.masks, or take the term out: terms.{name}=none"
                raise ValueError(f"terms.{name} compares masked patches, and views.masks=none: {without}")
            if term.loss.kind in ("cross-entropy", "consistency") and self.teacher.kind == "expectation":
                raise ValueError(
                    f"terms.{name}.loss={term.loss.kind} reads logits, and teacher=expectation remembers vectors of length 1 (SimSiam "
                    "Sec. 5.2): use loss=cosine"
                )
        return self

    @model_validator(mode="after")
    def _labels_have_a_classifier(self) -> Recipe:
        if (self.labels is None) == any(term.loss.kind == "labels" for term in self.terms.values()):
            raise ValueError(f"labels={self.labels}: goes with one of the terms that learn from labels (mean-teacher's), and only with it")
        if self.labels is not None and (self.projector is None or self.predictor):
            slot = f"predictor={self.predictor.kind}" if self.predictor else "projector=none"
            raise ValueError(f"{slot}: with labels={self.labels} the projector is the classifier: projector=mlp predictor=none")
        if self.labels is not None and not round(self.labelled_share * self.batch_size):
            raise ValueError(f"labelled_share={self.labelled_share} of batch_size={self.batch_size} is no image: raise one of them")
        return self

    @model_validator(mode="after")
    def _least_squares_leave_a_rest(self) -> Recipe:
        if self.predictor and self.predictor.kind == "least-squares":
            if self.projector is None:
                raise ValueError("predictor=least-squares needs a projector, narrower than a batch has projections")
            rows, d = 2 * self.batch_size // self.accumulate, self.projector.out
            if any(term.pairs != "cross" for term in self.terms.values()):
                raise ValueError("predictor=least-squares is solved for both directions between views, and there is a term of one way")
            if rows <= d:
                raise ValueError(
                    f"predictor=least-squares: {rows} projections of projector.out={d} are fitted exactly, whatever they are: "
                    "raise batch_size or lower projector.out to a fraction of it"
                )
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> Recipe:
        if self.patch_projector and self.patch_projector.out != (self.projector.out if self.projector else None):
            raise ValueError(
                f"patch_projector.out={self.patch_projector.out} is not projector.out={self.projector.out}"
                if self.projector
                else f"patch_projector={self.patch_projector.kind} with projector=none: what images and patches become is of one width"
            )
        self.micro_batch(self.devices if isinstance(self.devices, int) else 1)
        for name in ("mean", "std"):
            if len(getattr(self.views, name)) not in (1, self.encoder.channels):
                values = len(getattr(self.views, name))
                raise ValueError(f"views.{name} has {values} values, and encoder.channels={self.encoder.channels}: one, or one a channel")
        return self

    @property
    def kept(self) -> str:
        """`keep`, of the networks that there are: of a teacher without weights of its own the student."""
        return self.keep if self.teacher.own_weights else "student"

    @property
    def global_views(self) -> int:
        """How many global views of each image the terms need."""
        return max(global_views(term.pairs) for term in self.terms.values())

    @property
    def split(self) -> bool:
        """Whether each global view is for one of the two networks alone: one way and with a teacher of its own weights the other need
        not see it (MoCo Alg. 1)."""
        one_way = all(term.pairs != "cross" for term in self.terms.values())
        return self.teacher.own_weights and self.views.masks is None and one_way

    def micro_batch(self, ranks: int) -> int:
        """Images that one of `ranks` processes sees at a time. Raises `Misuse` where the shares would not be equal."""
        if self.batch_size % (ranks * self.accumulate):
            raise Misuse(f"batch_size={self.batch_size} is not a multiple of devices={ranks} x accumulate={self.accumulate}")
        return self.batch_size // (ranks * self.accumulate)

    @property
    def lr_factor(self) -> float:
        ratio = self.batch_size / 256
        return {"linear": ratio, "sqrt": ratio**0.5, "none": 1.0}[self.lr_scaling]

    def edit(self, changes: Iterable[str]) -> Recipe:
        """The recipe with `key=value` changes applied in order. Raises `Misuse` that names the key, the value and the way out.

        A key is a path of fields with dots. A slot takes a kind (`teacher=ema`), `none`, or fields (`teacher.tau.base=0.99`);
        a bare field right after a slot's kind is the kind's own (`teacher=snapshot every=10`). A number for a schedule sets
        its base, a string for the encoder its name.
        """
        return validated(_edited(self.model_dump(), [changes] if isinstance(changes, str) else changes))

    def to_yaml(self) -> str:
        return yaml_from(self.model_dump(mode="json"))

    @classmethod
    def from_yaml(cls, path: Path, start: Callable[[str, str], Recipe] | None = None) -> Recipe:
        """A recipe from its file: a run's, which is whole; or with `start` a user's own, whose entries mean what `key=value` means, and
        which leaves out what is as in start(method, preset). Raises `Misuse` when the file is missing, is no YAML, or is no recipe."""
        try:
            tree = yaml_of(path.read_text())
        except (OSError, ValueError) as e:
            raise Misuse(f"{path}: cannot be read as a recipe: {in_one_line(e)}") from e
        if not isinstance(tree, dict):
            raise Misuse(f"{path}: not a recipe: expected fields like method, encoder, teacher")
        made = {name: tree.pop(name, None) for name in RECORD}
        try:
            check_format(made["format"], made["versions"])
            return validated(tree if start is None or made["format"] else _of_a_user(tree, start))
        except Misuse as e:
            unknown = [] if start else [key for key in tree if key not in cls.model_fields]
            raise Misuse(
                f"{path}: {e}" + (f" (unknown: {', '.join(map(str, unknown))})" if unknown and made["format"] != FORMAT else "")
            ) from e


def check_format(found: Any, versions: Any = None) -> None:
    """Raises `Misuse` for a file of a later format. One without was made before there were formats, and is read as it is."""
    if found is not None and not (isinstance(found, int) and 0 < found <= FORMAT):
        by = f" by selfdistill {versions['selfdistill']}" if isinstance(versions, dict) and "selfdistill" in versions else ""
        raise Misuse(f"format={found}{by}: this version reads formats up to {FORMAT}: pip install --upgrade selfdistill")


def _edited(tree: dict[str, Any], changes: Iterable[str]) -> dict[str, Any]:
    """The dump of a recipe after `key=value` changes (`Recipe.edit`), not validated yet."""
    slot = ""
    for change in changes:
        key, eq, value = change.partition("=")
        if not eq or not key:
            raise Misuse(f"'{change}' is not a setting: write key=value, for example epochs=20")
        first = key.partition(".")[0]
        if slot and first not in Recipe.model_fields and first in _class_at(slot, tree[slot]).model_fields:
            key = f"{slot}.{key}"
        tree = edited(Recipe, tree, key.split("."), value)
        filled = key.removesuffix(".kind")
        if filled in Recipe.model_fields and isinstance(tree[filled], dict) and tree[filled].get("kind") == value:
            slot = filled
    return tree


def _of_a_user(tree: dict[str, Any], start: Callable[[str, str], Recipe]) -> dict[str, Any]:
    """A user's YAML as the dump of a recipe. A file that leaves nothing out may be of a method that `start` does not know."""
    try:
        base = start(str(tree.get("method")), str(tree.get("preset", "auto")))
    except Misuse:
        if Recipe.model_fields.keys() <= tree.keys():
            return tree
        raise
    whole = base.model_dump()
    if isinstance(tree.get("terms"), dict):  # those that it does not name are taken out
        whole["terms"] = {name: whole["terms"].get(name) for name in tree["terms"]}
    return _edited(whole, settings_in(tree, base))


def validated(tree: dict[str, Any]) -> Recipe:
    """A recipe of its dump. Raises `Misuse`."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as e:
        raise Misuse(problems(e, tree)) from e


def _class_at(slot: str, node: Any) -> type[Spec]:
    return next(cls for cls in specs_of(get_type_hints(Recipe, include_extras=True)[slot]) if kind_of(cls) == node["kind"])
