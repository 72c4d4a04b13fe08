"""One training step: lightly and ours in turn (A B A B), the same backbone, crops, K, batch and optimiser, views ready in memory.

    python benchmarks/step.py [--methods dino,ibot,simsiam,simclr,byol] [--rounds 2] [--steps 4]     (make bench-step)
    python benchmarks/step.py --sweep dino      how the step grows with batch, crops, K and the model
    python benchmarks/step.py --memory          what DINO's loss and its backward pass hold, beside a loop over pairs of views

Each contestant is a process of its own, so neither's memory nor threads help or hurt the other. On a CPU a step of DINO is ViT-Ti/16,
2 x 224 + 6 x 96, K = 65,536, batch 8; on a GPU ViT-S/16 and batch 64. SimSiam, SimCLR and BYOL: ResNet-18 with a 3x3 stem (ResNet-50
at 224 on a GPU), two views of 32 x 32, batch 128. lightly's steps are written as its own examples write them.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from selfdistill.methods import METHODS
from selfdistill.parts.loss import Output
from selfdistill.parts.schedule import Progress
from selfdistill.recipe import Recipe
from selfdistill.siamese import Siamese
from selfdistill.train.allocator import keep_freed_memory
from selfdistill.views.augment import masks
from selfdistill.views.batch import Views

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
NOW = Progress(1_000, 500, 100)
VITS = ["encoder=timm:vit_small_patch16_224", "batch_size=64"] if GPU else ["encoder=timm:vit_tiny_patch16_224", "batch_size=8"]
VITS.append("projector.out=65536")
RESNETS = ["encoder=resnet50", "batch_size=128"] if GPU else ["encoder=resnet18", "encoder.stem=3x3", "views.size=32", "batch_size=128"]
SETTINGS = {"dino": VITS, "ibot": VITS, "simsiam": RESNETS, "simclr": RESNETS, "byol": RESNETS}
COMMON = ["optimizer=adamw", "views.locals.count=6"]


def recipe_of(method: str, changes: list[str]) -> Recipe:
    recipe = METHODS[method]
    return recipe.edit([*SETTINGS[method], *(s for s in COMMON if recipe.views.locals or "locals" not in s), *changes])


def batch_of(recipe: Recipe) -> Views:
    """Views of noise: what is in them costs nothing."""
    torch.manual_seed(0)
    spec, b = recipe.views, recipe.batch_size
    crops = [torch.randn(2, b, 3, spec.size, spec.size, device=DEVICE)]
    if spec.locals:
        crops.append(torch.randn(spec.locals.count, b, 3, spec.locals.size, spec.locals.size, device=DEVICE))
    ids = torch.arange(b)  # masks are drawn on the host
    hidden = masks(ids, spec, 2, seed=0, epoch=0)
    return Views(tuple(crops), ids.to(DEVICE), None if hidden is None else hidden.to(DEVICE))


# ours ---------------------------------------------------------------------------------------------------------------


def ours(recipe: Recipe, amp: bool) -> Callable[[], None]:
    keep_freed_memory()
    siamese = Siamese(recipe, 1_000).to(DEVICE, memory_format=torch.channels_last)
    optimizer = recipe.optimizer.build(siamese.param_groups())
    views = batch_of(recipe)

    def step() -> None:
        with autocast(amp):
            loss = siamese(views, NOW).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        siamese.after_step(NOW)

    return step


# lightly's ----------------------------------------------------------------------------------------------------------


def backbone_of(recipe: Recipe) -> tuple[nn.Module, int]:
    """Ours, with attention as timm has it."""
    backbone = recipe.encoder.build(recipe.views.size)
    for module in backbone.net.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = True
    return backbone.net, backbone.dim


Model = tuple[nn.Module, Callable[[nn.Module, nn.Module | None, Views], Tensor]]


def lightly(recipe: Recipe, amp: bool) -> Callable[[], None]:
    from lightly.models.utils import update_momentum

    def model() -> Model:
        net, forward = LIGHTLY[recipe.method](recipe, *backbone_of(recipe))
        net = net.to(DEVICE)
        return net.to(memory_format=torch.channels_last) if amp else net, forward

    student, forward = model()
    teacher = model()[0].requires_grad_(False) if recipe.teacher.own_weights else None
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.0)
    views = batch_of(recipe)

    def step() -> None:
        if teacher:
            update_momentum(student, teacher, m=0.996)
        with autocast(amp):
            loss = forward(student, teacher, views)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def lightly_dino(recipe: Recipe, net: nn.Module, width: int) -> Model:
    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead

    k = recipe.projector.out
    model = nn.Sequential(net, DINOProjectionHead(width, 2048, 256, k, freeze_last_layer=1))
    criterion = DINOLoss(output_dim=k).to(DEVICE)

    def forward(student: nn.Module, teacher: nn.Module | None, views: Views) -> Tensor:
        with torch.no_grad():
            t = [teacher(view) for view in views.crops[0]]
        return criterion(t, [student(view) for crops in views.crops for view in crops], epoch=2)

    return model, forward


def lightly_ibot(recipe: Recipe, net: nn.Module, width: int) -> Model:
    from lightly.loss import DINOLoss, IBOTPatchLoss
    from lightly.models.modules import DINOProjectionHead, MaskedVisionTransformerTIMM

    k = recipe.projector.out
    model = nn.ModuleDict(
        {"backbone": MaskedVisionTransformerTIMM(vit=net), "head": DINOProjectionHead(width, 2048, 256, k, freeze_last_layer=1)}
    )
    cls_criterion, patch_criterion = DINOLoss(output_dim=k).to(DEVICE), IBOTPatchLoss(output_dim=k).to(DEVICE)

    def forward(student: nn.Module, teacher: nn.Module | None, views: Views) -> Tensor:
        globals_, locals_, masks = views.crops[0].flatten(0, 1), views.crops[1].flatten(0, 1), views.masks.flatten(0, 1)
        tokens = torch.cat([masks.new_zeros(len(masks), 1), masks.flatten(1)], 1)  # the class token is never masked
        with torch.no_grad():
            seen = teacher["backbone"].encode(globals_)
            t, t_patch = teacher["head"](seen[:, 0]), teacher["head"](seen[tokens])
        hidden = student["backbone"].encode(globals_, mask=tokens)
        s, s_patch = student["head"](hidden[:, 0]), student["head"](hidden[tokens])
        s_local = student["head"](student["backbone"].encode(locals_)[:, 0])
        cls = cls_criterion(list(t.chunk(2)), [*s.chunk(2), *s_local.chunk(len(views.crops[1]))], epoch=2)
        return cls + patch_criterion(t_patch, s_patch, masks)

    return model, forward


def lightly_simsiam(recipe: Recipe, net: nn.Module, width: int) -> Model:
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead

    g, h = recipe.projector, recipe.predictor
    model = nn.ModuleDict(
        {
            "g": nn.Sequential(net, SimSiamProjectionHead(width, g.hidden[0], g.out)),
            "h": SimSiamPredictionHead(g.out, h.hidden[0], g.out),
        }
    )
    criterion = NegativeCosineSimilarity()

    def forward(student: nn.Module, teacher: nn.Module | None, views: Views) -> Tensor:
        z = [student["g"](view) for view in views.crops[0]]
        p = [student["h"](x) for x in z]
        return 0.5 * (criterion(p[0], z[1].detach()) + criterion(p[1], z[0].detach()))

    return model, forward


def lightly_simclr(recipe: Recipe, net: nn.Module, width: int) -> Model:
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    model = nn.Sequential(net, SimCLRProjectionHead(width, recipe.projector.hidden[0], recipe.projector.out))
    criterion = NTXentLoss()

    def forward(student: nn.Module, teacher: nn.Module | None, views: Views) -> Tensor:
        return criterion(student(views.crops[0][0]), student(views.crops[0][1]))

    return model, forward


def lightly_byol(recipe: Recipe, net: nn.Module, width: int) -> Model:
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead

    g, h = recipe.projector, recipe.predictor
    model = nn.ModuleDict(
        {"g": nn.Sequential(net, BYOLProjectionHead(width, g.hidden[0], g.out)), "h": BYOLPredictionHead(g.out, h.hidden[0], g.out)}
    )
    criterion = NegativeCosineSimilarity()

    def forward(student: nn.Module, teacher: nn.Module | None, views: Views) -> Tensor:
        p = [student["h"](student["g"](view)) for view in views.crops[0]]
        with torch.no_grad():
            t = [teacher["g"](view) for view in views.crops[0]]
        return 0.5 * (criterion(p[0], t[1]) + criterion(p[1], t[0]))

    return model, forward


LIGHTLY = {"dino": lightly_dino, "ibot": lightly_ibot, "simsiam": lightly_simsiam, "simclr": lightly_simclr, "byol": lightly_byol}

# --------------------------------------------------------------------------------------------------------------------


def autocast(amp: bool) -> torch.autocast | nullcontext:
    return torch.autocast(DEVICE.type, torch.bfloat16) if amp else nullcontext()


def clocked(step: Callable[[], None], steps: int) -> dict[str, float]:
    """Median seconds of a step after two that warm up, and the peak of memory in GiB (of the process on a CPU, of tensors on a GPU)."""
    seconds = []
    for _ in range(steps + 2):
        start = time.perf_counter()
        step()
        if GPU:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds[2:]), "gib": peak()}


def in_process(who: str, method: str, precision: str, steps: int, changes: list[str]) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", who, "--methods", method, "--precision", precision, "--steps", str(steps), *changes]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def compare(method: str, rounds: int, steps: int, changes: list[str]) -> None:
    contestants = [(who, precision) for precision in ("fp32", "bf16") for who in ("lightly", "ours")]
    found: dict[tuple[str, str], list[dict[str, float]]] = {c: [] for c in contestants}
    for _ in range(rounds):
        for who, precision in contestants:
            found[who, precision].append(in_process(who, method, precision, steps, changes))
    seconds = {c: statistics.median(f["seconds"] for f in found[c]) for c in contestants}
    gib = {c: max(f["gib"] for f in found[c]) for c in contestants}
    print(f"\n{method}: {' '.join([*SETTINGS[method], *changes])}, {rounds} rounds of {steps} steps, {where()}")
    for who, precision in contestants:
        print(f"  {who:8} {precision}  {seconds[who, precision] * 1e3:8.1f} ms  peak {gib[who, precision]:.2f} GiB")
    ratios = {p: seconds["lightly", p] / seconds["ours", p] for p in ("fp32", "bf16")}
    default = seconds["lightly", "fp32"] / seconds["ours", "bf16"]
    print(f"  lightly / ours: fp32 {ratios['fp32']:.2f}, bf16 {ratios['bf16']:.2f}, default against default {default:.2f}", flush=True)


def sweep(method: str, steps: int) -> None:
    """Seconds of our step as one thing grows."""
    model = "small" if GPU else "tiny"
    grown = {
        "batch_size": (2, 4, 8, 16),
        "views.locals.count": (2, 6, 10),
        "projector.out": (1024, 8192, 65536),
        "encoder": tuple(f"timm:vit_{size}_patch16_224" for size in (("tiny", "small") if model == "tiny" else ("small", "base"))),
    }
    for key, values in grown.items():
        for value in values if method in ("dino", "ibot") or key == "batch_size" else ():
            found = in_process("ours", method, "bf16", steps, [f"{key}={value}"])
            print(f"{method} {key}={value}: {found['seconds'] * 1e3:.1f} ms, peak {found['gib']:.2f} GiB", flush=True)


def loss_memory(who: str) -> dict[str, float]:
    """GiB that the loss and its gradient take at their peak, beyond the outputs: 64 images, 2 + 8 crops, K = 65,536."""
    recipe = METHODS["dino"]
    torch.manual_seed(0)
    p = torch.randn(10, 64, 65536, device=DEVICE, requires_grad=True)
    t = torch.randn(2, 64, 65536, device=DEVICE)
    term = recipe.terms["views"].build(65536, views=2).to(DEVICE)
    q = term.loss.target(t, NOW)  # the targets are the same for both

    def nested() -> Tensor:
        pairs = [(i, j) for i in range(10) for j in range(2) if i != j]
        return sum(-(q[j] * (p[i] / 0.1).log_softmax(-1)).sum(-1).mean() for i, j in pairs) / len(pairs)

    def summed() -> Tensor:
        return term(Output(p), Output(t), NOW)

    before = peak()
    {"lightly": nested, "ours": summed}[who]().backward()
    return {"seconds": 0.0, "gib": peak() - before}


def peak() -> float:
    """GiB, so far: of the process on a CPU, of tensors on a GPU."""
    return (torch.cuda.max_memory_allocated() if GPU else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 2**30


def where() -> str:
    return torch.cuda.get_device_name() if GPU else f"{torch.get_num_threads()} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="dino,ibot,simsiam,simclr,byol")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--sweep", metavar="METHOD")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--one", choices=("lightly", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="fp32", help=argparse.SUPPRESS)
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_args()
    if args.one and args.memory:
        print(json.dumps(loss_memory(args.one)))
    elif args.memory:
        for who, what in (("lightly", "a loop over pairs"), ("ours", "teachers summed first")):
            found = in_process(who, "dino", "fp32", 1, ["--memory"])
            print(f"DINO's loss, 64 images, 2 + 8 crops, K = 65,536, {what}: {found['gib']:.2f} GiB")
    elif args.one:
        make = {"lightly": lightly, "ours": ours}[args.one]
        print(json.dumps(clocked(make(recipe_of(args.methods, args.changes), args.precision == "bf16"), args.steps)))
    elif args.sweep:
        sweep(args.sweep, args.steps)
    else:
        for method in args.methods.split(","):
            compare(method, args.rounds, args.steps, args.changes)


if __name__ == "__main__":
    main()
