"""Weights that an encoder starts from: another run's, timm's pretrained ones, a file's."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfdistill.errors import Misuse
from selfdistill.parts.backbone import Backbone
from selfdistill.parts.encoder import pretrained
from selfdistill.recipe import Recipe
from selfdistill.train.run import load
from selfdistill.train.weights import read, some, tensors

State = Mapping[str, Any]


def initialised(recipe: Recipe, encoder: nn.Module | None = None) -> tuple[Backbone, str]:
    """The recipe's encoder, or a module of the user's own, with the weights that `recipe.init_from` names, and a sentence about them.

    Raises `Misuse` where they lack some of the encoder's and `init_partial` is not set, `Failure` where they cannot be had.
    """
    source, size = str(recipe.init_from), recipe.views.size
    backbone = recipe.encoder.build(size, encoder)
    wanted = backbone.net.state_dict()
    found, prefix = _best(_weights(source, recipe), wanted, _kept_by(Path(os.path.expanduser(source))))
    taken = {k: found[prefix + k] for k, mine in wanted.items() if getattr(found.get(prefix + k), "shape", None) == mine.shape}
    # How many batches BatchNorm has seen decides nothing here, and older files do not have it.
    missing = [k for k in wanted if k not in taken and not k.endswith("num_batches_tracked")]
    said = f"init_from={source}: {len(taken)} of the encoder's {len(wanted)} keys ({len(taken) / max(1, len(wanted)):.0%})"
    said += f", under {prefix}" if prefix else ""
    if missing:
        odd = [f"{k} {list(found[prefix + k].shape)} for {list(wanted[k].shape)}" for k in missing if prefix + k in found]
        said += f"; {len(missing)} are not there or of another shape: {some(odd + [k for k in missing if prefix + k not in found])}"
        if not taken or not recipe.init_partial:
            way = "name the weights of this encoder" if not taken else "init_partial=true trains on with these left random"
            raise Misuse(f"{said}. The encoder is {recipe.encoder.name}; {way}")
    backbone.net.load_state_dict(taken, strict=False)
    return backbone, said


def _weights(source: str, recipe: Recipe) -> State:
    path = Path(os.path.expanduser(source))
    if source.startswith("timm:"):
        return pretrained(source.removeprefix("timm:"), recipe.encoder, recipe.views.size)
    if path.is_dir():
        kept, last = path / "backbone.safetensors", path / "checkpoints" / "last.ckpt"
        if not kept.is_file() and not last.is_file():
            raise Misuse(f"init_from={source}: neither {kept.name} nor checkpoints/{last.name} is there: not a run folder, or not so far")
        return tensors(kept) if kept.is_file() else read(last, torch.device("cpu"))
    if not path.is_file():
        raise Misuse(f"init_from={source}: no such file or run folder. Allowed: a run folder, timm:NAME, a .safetensors, a .pth")
    return tensors(path) if path.suffix == ".safetensors" else read(path, torch.device("cpu"))


def _kept_by(path: Path) -> str:
    """Of a run folder or a checkpoint in it, which of its two networks the run keeps: student or teacher; else student."""
    for folder in (path, *path.parents[:2]):
        if (folder / "recipe.yaml").is_file():
            with suppress(Misuse):  # made with what is not here
                return load(folder).recipe.kept
    return "student"


def _best(tree: State, wanted: State, keep: str) -> tuple[State, str]:
    """The table inside a file, and the prefix of its keys (`module.`, `encoder_q.`, ...), that know most of the wanted keys: files
    are as nested as their authors' scripts. Of several the one of the network `keep`, else the first, which is a student before its
    teacher."""
    first = max(wanted, key=len, default="")  # the longest name is the least likely to be another's ending
    pairs = [(table, key[: len(key) - len(first)]) for table in _tables(tree) for key in table if key.endswith(first)]
    pairs += [(table, "") for table in _tables(tree)]
    return max(pairs, key=lambda pair: (sum(pair[1] + k in pair[0] for k in wanted), pair[1].startswith(keep)), default=({}, ""))


def _tables(tree: Any) -> Iterator[State]:
    """A dict's own tensors by name, then those of the dicts in it."""
    if isinstance(tree, Mapping):
        own = {k: v for k, v in tree.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if own:
            yield own
        for value in tree.values():
            yield from _tables(value)
