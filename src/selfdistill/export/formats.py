"""The formats in which a backbone leaves. Each is files in a folder, and the lines of Python that load them: what its README prints is
what the export itself ran."""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from selfdistill.errors import Misuse
from selfdistill.own import PYTHON
from selfdistill.parts.backbone import Backbone
from selfdistill.recipe import Recipe
from selfdistill.train.weights import state_of


@dataclass(frozen=True)
class Kept:
    """A backbone on its way out. of: "student", "teacher", or where there is no run "encoder", whose it was; images: normalised,
    [n, C, S, S], real ones."""

    backbone: Backbone
    recipe: Recipe
    of: str
    images: Tensor

    @property
    def mean(self) -> list[float]:
        """One value a channel."""
        return _each(self.recipe.views.mean, self.recipe.encoder.channels)

    @property
    def std(self) -> list[float]:
        return _each(self.recipe.views.std, self.recipe.encoder.channels)

    @property
    def state(self) -> dict[str, Tensor]:
        return state_of(self.backbone.net)

    @property
    def notes(self) -> dict[str, str]:
        """What a file of weights says of itself, as words."""
        r = self.recipe
        size, channels = r.views.size, r.encoder.channels
        return {
            "made_by": f"selfdistill {version('selfdistill')}",
            "method": r.method,
            "of": self.of,
            "encoder": r.encoder.model_dump_json(),
            "input": f"float32 [B, {channels}, {size}, {size}], pixels in [0, 1] minus mean, over std, for each channel",
            "mean": json.dumps(self.mean),
            "std": json.dumps(self.std),
            "size": str(size),
            "output": f"features [B, {self.backbone.dim}]",
        }

    def save(self, path: Path) -> None:
        # Not save_file, whose files their owner alone can read.
        path.write_bytes(safetensors.torch.save(self.state, {"format": "pt", **self.notes}))


class Format(ABC):
    library = "pytorch"
    """by the Hugging Face hub's name"""
    needs: tuple[str, ...] = ()
    """packages beyond the package's own"""

    def check(self, kept: Kept) -> None:  # noqa: B027  # most hold any
        """Raises `Misuse` where the format cannot hold the network."""

    @abstractmethod
    def write(self, kept: Kept, folder: Path) -> None:
        """The files."""

    @abstractmethod
    def code(self, kept: Kept) -> str:
        """Python that takes `folder` and `images` [B, C, S, S] and leaves `features` [B, F]."""

    def features(self, kept: Kept, folder: Path, images: Tensor) -> Tensor:
        """What the format's own library makes of images, by `code`, from what `write` left."""
        scope: dict[str, Any] = {"folder": str(folder), "images": images}
        with torch.no_grad():
            exec(self.code(kept), scope)
        return torch.as_tensor(scope["features"])


class Safetensors(Format):
    """The state dict alone, with its notes as metadata: for every encoder, a module of the user's own too."""

    def write(self, kept: Kept, folder: Path) -> None:
        kept.save(folder / "model.safetensors")

    def code(self, kept: Kept) -> str:
        spec, size = kept.recipe.encoder, kept.recipe.views.size
        if spec.name.startswith(PYTHON):
            room = "backbone import Backbone"
            of = f"Backbone(module, {spec.channels}, {size})  # your own, {spec.name.removeprefix('python:')}"
        else:
            room = "encoder import Encoder"
            of = f"Encoder(**{spec.model_dump()}).build({size})"
        return (
            "from safetensors.torch import load_file\n"
            f"from selfdistill.parts.{room}\n\n"
            f"model = {of}\n"
            "model.eval()\n"
            'model.net.load_state_dict(load_file(folder + "/model.safetensors"))\n'
            "features = model(images)"
        )

    def features(self, kept: Kept, folder: Path, images: Tensor) -> Tensor:
        if not kept.recipe.encoder.name.startswith(PYTHON):
            return super().features(kept, folder, images)
        theirs = copy.deepcopy(kept.backbone)
        theirs.net.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
        with torch.no_grad():
            return theirs(images)


class Timm(Format):
    """A folder that timm opens: model.safetensors, and config.json with the call of create_model."""

    library = "timm"

    def check(self, kept: Kept) -> None:
        timm_call(kept)

    def write(self, kept: Kept, folder: Path) -> None:
        name, keywords = timm_call(kept)
        size = kept.recipe.views.size
        net: Any = kept.backbone.net
        config = {
            "architecture": name,
            "num_classes": 0,
            "num_features": net.num_features,
            "model_args": keywords,
            "pretrained_cfg": {
                "input_size": [kept.recipe.encoder.channels, size, size],
                "fixed_input_size": keywords.get("img_size") is not None and not keywords.get("dynamic_img_size", False),
                "interpolation": "bilinear",  # how held-out images are read here: the central square, resized
                "crop_pct": 1.0,
                "crop_mode": "center",
                "mean": kept.mean,
                "std": kept.std,
                "num_classes": 0,
                "first_conv": net.pretrained_cfg.get("first_conv"),
                "classifier": net.pretrained_cfg.get("classifier"),
            },
            "selfdistill": kept.notes,
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        kept.save(folder / "model.safetensors")

    def code(self, kept: Kept) -> str:
        return 'import timm\n\nmodel = timm.create_model("local-dir:" + folder, pretrained=True).eval()\nfeatures = model(images)'


class HuggingFace(Timm):
    """timm's folder, which transformers opens as well, and the settings of its image processor."""

    needs = ("transformers",)

    def write(self, kept: Kept, folder: Path) -> None:
        super().write(kept, folder)
        config = json.loads((folder / "config.json").read_text())
        processor = {
            "image_processor_type": "TimmWrapperImageProcessor",
            "architecture": config["architecture"],
            "pretrained_cfg": config["pretrained_cfg"],
            "size": {"height": kept.recipe.views.size, "width": kept.recipe.views.size},
            "image_mean": kept.mean,
            "image_std": kept.std,
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")

    def code(self, kept: Kept) -> str:
        return (
            "from transformers import AutoModel\n\nmodel = AutoModel.from_pretrained(folder).eval()\nfeatures = model(images).pooler_output"
        )


class Torchvision(Format):
    """A state dict that torchvision's ResNets take: timm has the same names for the same layers."""

    def check(self, kept: Kept) -> None:
        name, _ = timm_call(kept)
        if name not in TORCHVISION:
            raise Misuse(f"--format torchvision: it has no {name} with the same weights, only {', '.join(TORCHVISION)}: use --format timm")
        if kept.recipe.encoder.channels != 3:
            channels = kept.recipe.encoder.channels
            raise Misuse(f"--format torchvision: its {name} takes images of 3 channels, the run's have {channels}: use --format timm")

    def write(self, kept: Kept, folder: Path) -> None:
        kept.save(folder / "model.safetensors")

    def code(self, kept: Kept) -> str:
        name, _ = timm_call(kept)
        return (
            "import torch\n"
            "import torchvision\n"
            "from safetensors.torch import load_file\n\n"
            f"model = torchvision.models.{name}()\n"
            "model.fc = torch.nn.Identity()\n"
            'model.load_state_dict(load_file(folder + "/model.safetensors"))\n'
            "features = model.eval()(images)"
        )


class ONNX(Format):
    """One graph for any number of images, and for any size that the network takes."""

    library = "onnx"
    needs = ("onnx", "onnxscript", "onnxruntime")

    def write(self, kept: Kept, folder: Path) -> None:
        free = torch.export.Dim.DYNAMIC
        # Two images of the run's size: a dimension of 1 would be taken for a constant.
        program = torch.onnx.export(
            kept.backbone,
            (kept.images[:2],),
            dynamo=True,
            dynamic_shapes=({0: free, 2: free, 3: free},),
            input_names=["images"],
            output_names=["features"],
            verbose=False,
        )
        assert program is not None
        program.model.metadata_props.update(kept.notes)
        program.save(folder / "model.onnx")

    def code(self, kept: Kept) -> str:
        return (
            "import onnxruntime\n\n"
            'model = onnxruntime.InferenceSession(folder + "/model.onnx", providers=["CPUExecutionProvider"])\n'
            '(features,) = model.run(None, {"images": images.numpy()})'
        )


FORMATS: dict[str, Format] = {
    "timm": Timm(),
    "torchvision": Torchvision(),
    "hf": HuggingFace(),
    "onnx": ONNX(),
    "safetensors": Safetensors(),
}

TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "wide_resnet50_2", "wide_resnet101_2")


def timm_call(kept: Kept) -> tuple[str, dict[str, Any]]:
    """The name and keywords of timm.create_model that build the network. Raises `Misuse` where timm does not have it."""
    encoder = kept.recipe.encoder
    call: Any = getattr(kept.backbone.net, "made_as", None)
    if call is None:
        if encoder.name == "resnet-small":
            made = "encoder=resnet-small is selfdistill's own"
        elif encoder.name.startswith(PYTHON):
            made = f"encoder={encoder.name} is a module of your own"
        else:
            made = f"encoder.stem={encoder.stem}: the ResNets of timm and torchvision have a 7x7 stem"
        raise Misuse(f"{made}, which this format cannot hold: use --format onnx or --format safetensors")
    return call


def _each(values: tuple[float, ...], channels: int) -> list[float]:
    return list(values) * (channels if len(values) == 1 else 1)
