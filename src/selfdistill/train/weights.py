"""Weights from files, which may come from a stranger or another version: tensors and numbers only, and all of them or none."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from selfdistill.errors import Failure, Misuse, in_one_line
from selfdistill.recipe import check_format


def read(path: Path, device: torch.device) -> dict[str, Any]:
    """Tensors and numbers only: a checkpoint may come from a stranger. Raises `Misuse`."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as e:  # pickle.UnpicklingError and whatever a damaged archive provokes
        raise Misuse(f"{path}: refused: it is damaged, or holds more than tensors and numbers ({type(e).__name__})") from e
    if not isinstance(state, dict):
        raise Misuse(f"{path}: refused: it holds a {type(state).__name__}, no checkpoint")
    try:
        check_format(state.get("format"))
    except Misuse as e:
        raise Misuse(f"{path}: {e}") from e
    return state


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors. Raises `Misuse`."""
    try:
        return safetensors.torch.load_file(path)
    except Exception as e:  # SafetensorError, OSError, and what numbers in a damaged header provoke
        raise Misuse(f"{path}: refused: no .safetensors, or damaged ({in_one_line(e, 200)})") from e


def state_of(net: nn.Module) -> dict[str, torch.Tensor]:
    """Copies on the CPU, contiguous: safetensors refuses tied weights and other strides."""
    return {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in net.state_dict().items()}


def fill(module: nn.Module, state: Any, path: Path) -> None:
    """Loads all of the module's weights and nothing else. Raises `Failure` that names what is missing, not known, or of another
    shape; the module is then as it was."""
    wanted, found = module.state_dict(), state if isinstance(state, dict) else {}
    problems = {
        "missing": [k for k in wanted if k not in found],
        "not known": [k for k in found if k not in wanted],
        "of another shape": [k for k in wanted if k in found and getattr(found[k], "shape", None) != wanted[k].shape],
    }
    if any(problems.values()):
        said = "; ".join(f"{what}: {some(map(str, keys))}" for what, keys in problems.items() if keys)
        raise Failure(f"{path}: does not fit the recipe beside it, {said}. It is of another run, or of another version: see recipe.yaml")
    module.load_state_dict(found)


def some(names: Iterable[str], most: int = 4) -> str:
    """The first few of many names."""
    every = list(names)
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")
