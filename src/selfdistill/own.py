"""What fills a slot: the package's specs, and the user's own from a file outside it. A recipe names kinds and values, never code."""

from __future__ import annotations

import importlib.util
import os
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, TypeVar
from zlib import crc32

from pydantic import Field, GetCoreSchemaHandler, ValidationError
from pydantic_core import core_schema

from selfdistill.errors import Misuse, did_you_mean, in_one_line
from selfdistill.spec import Spec, kind_of

PYTHON = "python:"
"""before the name of images or of a module that a Python program gave, which no one else can open"""
SLOTS: dict[str, tuple[str, ...]] = {
    "projector": ("out",),
    "predictor": ("trainable",),
    "teacher": ("own_weights",),
    "loss": (),
    "target": ("temperature",),
    "optimizer": (),
}
"""the slots that take an ingredient of the user's own, and what is asked of it beside `kind` and `build`"""
OWN: dict[str, dict[str, type[Spec]]] = {slot: {} for slot in SLOTS}
"""those that are there, by slot and kind"""
PACKAGE: dict[str, list[str]] = {}
"""the package's kinds by slot"""
FILES: list[Path] = []
"""files that were loaded, which a process that goes on with the work must load too"""
S = TypeVar("S", bound=type[Spec])


def ingredient(slot: str) -> Callable[[S], S]:
    """Decorates a spec that may fill `slot` from now on, under its `kind`: in recipes, YAML, `key=value` and messages. Its `build` makes
    the module as that of the slot's specs in `parts/` does. Raises `Misuse` for what no recipe could hold."""
    if slot not in SLOTS:
        raise Misuse(f"ingredient({slot!r}): the slots are {', '.join(SLOTS)}.{did_you_mean(slot, SLOTS)}")

    def add(cls: S) -> S:
        try:
            lacks = [name for name in ("build", *SLOTS[slot]) if not hasattr(cls(), name)]
        except (ValidationError, TypeError) as e:
            raise Misuse(f"{cls.__name__}: each field of an ingredient has a default: {in_one_line(e)}") from e
        kind = kind_of(cls)
        if not kind:
            raise Misuse(f'{cls.__name__}: an ingredient says its kind: kind: Literal["{cls.__name__.lower()}"] = "{cls.__name__.lower()}"')
        if kind in PACKAGE.get(slot, ()):
            raise Misuse(f"{cls.__name__}: {slot}={kind} is the package's own: choose another kind")
        if lacks:
            raise Misuse(f"{cls.__name__}: a {slot} has {', '.join(lacks)} too, as those of the package have")
        OWN[slot][kind] = cls
        return cls

    return add


def use(file: str | Path) -> ModuleType:
    """Runs a Python file of the user's own, whose ingredients, losses and methods are then there. Raises `Misuse`."""
    path = Path(file).expanduser().resolve()
    name = f"selfdistill_own_{path.stem}_{crc32(os.fsencode(path)):x}"  # two files of one name in two folders are two modules
    found = importlib.util.spec_from_file_location(name, path) if path.suffix == ".py" else None
    if found is None or found.loader is None:
        raise Misuse(f"--use {file}: not a .py file")
    module = sys.modules[name] = importlib.util.module_from_spec(found)  # there before it runs: annotations are looked up in it
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as e:  # whatever the user's code raises; a script of theirs may end itself
        del sys.modules[name]
        raise Misuse(f"{file}: {type(e).__name__}: {e}") from e
    if path not in FILES:
        FILES.append(path)
    return module


def flags() -> list[str]:
    """The words of a command line that loads these files again."""
    return [word for file in FILES for word in ("--use", str(file))]


@dataclass(frozen=True)
class Slot:
    """In an annotation, Annotated[A | B, Slot("teacher")]: one of these specs or of the user's own, told apart by `kind`."""

    name: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        kinds = PACKAGE[self.name] = [kind_of(cls) for cls in typing.get_args(source)]
        packages = handler.generate_schema(Annotated[source, Field(discriminator="kind")])

        def validated(value: Any, handler: core_schema.ValidatorFunctionWrapHandler) -> Any:
            kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
            if isinstance(kind, str) and kind in OWN[self.name]:
                return value if isinstance(value, Spec) else OWN[self.name][kind].model_validate(value)
            if isinstance(kind, str) and kind not in kinds:
                known = [*kinds, *OWN[self.name]]
                raise ValueError(
                    f"kind={kind}: there are {', '.join(known)}.{did_you_mean(kind, known)} If it is of your own, give --use FILE, "
                    "the file that defines it"
                )
            return handler(value)

        def dumped(value: Any, handler: core_schema.SerializerFunctionWrapHandler, info: core_schema.SerializationInfo) -> Any:
            return handler(value) if kind_of(type(value)) in kinds else value.model_dump(mode=info.mode)

        serialization = core_schema.wrap_serializer_function_ser_schema(dumped, info_arg=True, schema=packages)
        return core_schema.no_info_wrap_validator_function(validated, packages, serialization=serialization)
