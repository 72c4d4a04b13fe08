"""Networks by name: any timm model, ResNets for small images, a small ResNet for CPUs."""

import copy
from collections.abc import Sequence
from typing import Any, Literal

import timm
import torch
from pydantic import Field, field_validator
from timm.models import is_model_in_modules
from timm.models.resnet import BasicBlock
from torch import Tensor, nn

from selfdistill.errors import Failure, Misuse, did_you_mean, in_one_line
from selfdistill.own import PYTHON
from selfdistill.parts.backbone import Backbone, why
from selfdistill.spec import Spec

Stem = Literal["7x7", "3x3", "3x3/2"]


class Encoder(Spec):
    """Images [B, channels, H, W] to features [B, F]."""

    name: str = "resnet50"
    """resnet18, resnet34, resnet50, resnet101, resnet-small, or timm:NAME for any model of timm; a bare name sets this"""
    channels: int = Field(3, ge=1)
    """channels of the input images"""
    stem: Stem = "7x7"
    """All ResNets: as ImageNet has it, 7x7 stride 2 with max-pooling; 3x3 as for CIFAR; 3x3 with stride 2 for CPUs"""
    zero_init_residual: bool = True
    """ResNets, timm's too: the last BatchNorm of each block starts at 0 (Goyal et al. 2017; SimSiam App. A)"""
    checkpointing: bool = False
    """timm's models: activations are computed again in the backward pass, a third more work for a fraction of the memory"""
    options: dict[str, Any] = {}
    """further keywords of the timm model, e.g. patch_size or drop_path_rate; widths for resnet-small. Naming another encoder empties them,
    DINO's and iBOT's drop_path_rate of 0.1 as well"""

    @field_validator("options")
    @classmethod
    def _keywords(cls, options: dict[str, Any]) -> dict[str, Any]:
        for key, value in options.items():
            if not key.isidentifier():  # YAML reads {depth:3} as a key "depth:3" without a value, which timm would leave out
                raise ValueError(f"{key} is not a keyword: write {{depth: 3}}, with a space after the colon")
            if isinstance(value, dict) and not all(isinstance(name, str) for name in value):  # {0}: recipe.yaml would say {'0': null}
                raise ValueError(f"{key}={value}: the keys of a mapping are words")
        return options

    def build(self, size: int, own: nn.Module | None = None) -> Backbone:
        """The network of that name, randomly initialised, or a copy of a module of the user's own, which stays as it is. Raises `Misuse`
        for a name or an option that is unknown, a size that does not fit, and a module that cannot be trained, copied, saved and loaded."""
        return self._backbone(_network(self, size), size) if own is None else self._around(own, size)

    def _around(self, module: nn.Module, size: int) -> Backbone:
        kind = type(module).__name__
        if isinstance(module, torch.jit.ScriptModule):
            raise Misuse(f"encoder: {kind} is TorchScript, which has no copy that goes its own way: give the module that it was made of")
        odd = {str(p.dtype).removeprefix("torch.") for p in module.parameters() if p.dtype != torch.float32}
        if odd:
            raise Misuse(f"encoder: {kind} has parameters of {', '.join(sorted(odd))}: .float() it; what is no weight is a buffer")
        try:
            net = copy.deepcopy(module)
            net = net if net.training else net.train()  # else a BatchNorm that the user froze stays frozen
        except Exception as e:  # whatever a module's parts say
            raise Misuse(f"encoder: {kind} cannot be copied: {in_one_line(e)}") from e
        backbone, state = self._backbone(net, size), net.state_dict()
        more = [key for key, value in state.items() if not isinstance(value, Tensor)]
        if more:
            raise Misuse(f"encoder: the state of {kind} holds more than tensors ({', '.join(more)}), which a checkpoint refuses")
        try:
            net.load_state_dict({key: value.clone() for key, value in state.items()})
        except Exception as e:
            raise Misuse(f"encoder: {kind} cannot load its own state, so no run of it could go on: {in_one_line(e)}") from e
        return backbone

    def _backbone(self, net: nn.Module, size: int) -> Backbone:
        if self.checkpointing:
            _checkpoint(net, self.name)
        try:
            return Backbone(net, self.channels, size)
        except (AssertionError, RuntimeError) as e:
            raise Misuse(f"encoder={self.name} does not take {size} x {size} images (views.size={size}): {why(e)}") from e


class SmallResNet(nn.Module):
    """One basic block per width, each after the first at half the resolution. At the default widths 1.2 M parameters, some 20
    times cheaper than ResNet-18."""

    def __init__(self, channels: int, widths: Sequence[int] = (32, 64, 128, 256), zero_init_residual: bool = True):
        super().__init__()
        i = widths[0]
        self.conv1 = nn.Conv2d(channels, i, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(i)
        self.act1 = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.Identity()
        self.blocks = nn.Sequential()
        for n, o in enumerate(widths):
            shortcut = nn.Sequential(nn.Conv2d(i, o, 1, 2, bias=False), nn.BatchNorm2d(o)) if n else None
            self.blocks.append(BasicBlock(i, o, 2 if n else 1, shortcut))
            i = o
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock) and zero_init_residual:
                module.zero_init_last()

    def forward_features(self, x: Tensor) -> Tensor:
        return self.blocks(self.maxpool(self.act1(self.bn1(self.conv1(x)))))  # [B, F, h, w], F the last width

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x).mean((2, 3))  # [B, F]


RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
OF_RESNET = {"resnet", "sknet", "res2net", "resnest"}
"""timm's modules whose models are its ResNet with other blocks"""


def _network(spec: Encoder, size: int) -> nn.Module:
    name = spec.name.removeprefix("timm:")
    if spec.name in RESNETS or (spec.name != name and is_model_in_modules(name, OF_RESNET)):
        net = _timm(name, spec, size, {"zero_init_last": spec.zero_init_residual, **spec.options})
        return net if spec.stem == "7x7" else _restem(net, spec)
    if spec.name != name:
        return _timm(name, spec, size, spec.options)
    if spec.name == "resnet-small":
        try:
            return _restem(SmallResNet(spec.channels, zero_init_residual=spec.zero_init_residual, **spec.options), spec)
        except (TypeError, IndexError, ValueError, RuntimeError) as e:
            raise Misuse(f"encoder.options={spec.options} does not fit resnet-small, which takes widths, a list of numbers: {e}") from e
    if spec.name.startswith(PYTHON):
        raise Misuse(
            f"encoder={spec.name}: a module of a Python program, which passes it again: sd.load(RUN, encoder=module), or with resume=True"
        )
    hint = did_you_mean(spec.name, [*RESNETS, "resnet-small", *(f"timm:{m}" for m in timm.list_models())])
    raise Misuse(f"encoder={spec.name}: no such encoder. Allowed: {', '.join(RESNETS)}, resnet-small, timm:NAME.{hint}")


def _restem(net: Any, spec: Encoder) -> nn.Module:
    """The stem in place: a small image must not lose 4 x in resolution before the first block."""
    kernel, stride = {"7x7": (7, 2), "3x3": (3, 1), "3x3/2": (3, 2)}[spec.stem]
    net.conv1 = nn.Conv2d(spec.channels, len(net.bn1.weight), kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.maxpool = nn.MaxPool2d(3, 2, 1) if spec.stem == "7x7" else nn.Identity()
    net.made_as = None  # timm makes no such network
    return net


def _unfused(net: Any) -> Any:
    """On a CPU attention by three products: PyTorch's fused kernel is 2.5 to 9 times slower in bf16 (197 and 17 tokens)."""
    for module in net.modules():
        if hasattr(module, "fused_attn") and not torch.cuda.is_available():  # timm's attentions share no class
            module.fused_attn = False
    return net


def _checkpoint(net: Any, name: str) -> None:
    try:
        net.set_grad_checkpointing(True)
    except (AttributeError, AssertionError) as e:  # AssertionError: timm's own word for a model that cannot
        raise Misuse(f"encoder.checkpointing=true: encoder={name} cannot; timm's ViTs and most of its convnets can") from e


def pretrained(name: str, spec: Encoder, size: int) -> dict[str, Tensor]:
    """The weights of timm's pretrained model of that name, which timm fits to `spec`'s channels and options and to the size of the
    images. Raises `Misuse`, or `Failure` where they cannot be downloaded."""
    options = spec.options if spec.name.removeprefix("timm:") == name.partition(".")[0] else {}
    return _timm(name, spec, size, {**options, "pretrained": True}).state_dict()


def _timm(name: str, spec: Encoder, size: int, options: dict[str, Any]) -> nn.Module:
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models(), before="timm:")
        raise Misuse(f"encoder=timm:{name}: timm {timm.__version__} has no model of that name; timm.list_models() lists all.{hint}")
    # A ViT is made for any size, a Swin for this one, a convnet needs neither keyword: the first that the model accepts.
    problem: Exception = ValueError()
    accepted: list[dict[str, Any]] = [{"img_size": size, "dynamic_img_size": True}, {"img_size": size}, {}]
    for sized in accepted:
        keywords = {"in_chans": spec.channels, **sized, **options}
        try:
            net = _unfused(timm.create_model(name, num_classes=0, **keywords))
            net.made_as = (name, keywords)  # how another program makes it
            return net
        except (TypeError, ValueError, AssertionError) as e:
            problem = e
        except Exception as e:  # the hub's and the network's errors share no class
            if options.get("pretrained"):
                why = in_one_line(e, 200)
                raise Failure(f"timm:{name}: its weights cannot be had ({why}): download them elsewhere, and init_from=FILE") from e
            problem = e
    raise Misuse(
        f"encoder=timm:{name} cannot be built for {size} x {size} images (views.size={size}) with encoder.options={options}: {problem}"
    )
