"""The base of everything that is data: frozen, validated, no field that is not declared."""

import math
import re
import reprlib
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

LARGEST = 2**31 - 1
"""of a whole number in a field: more is no size, and no count"""


class Spec(BaseModel):
    """A frozen, validated value. Raises `pydantic.ValidationError` for an unknown field or a value out of range."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_numbers(cls, fields: Any) -> Any:
        """Python takes true for 1, and counts without end."""
        if not isinstance(fields, dict):
            return fields
        wrong: list[Any] = [
            {"type": PydanticCustomError("no_number", "{why}", {"why": why}), "loc": (name,), "input": fields[name]}
            for name, field in cls.model_fields.items()
            if (why := _no_number(fields.get(name), field.annotation))
        ]
        if wrong:
            raise ValidationError.from_exception_data(cls.__name__, wrong)
        return fields


def _no_number(value: Any, annotation: Any) -> str:
    """Why a field that takes numbers, or whatever a network's options are, takes none of these, if it does not."""
    if annotation == dict[str, Any] and not all(map(math.isfinite, _floats(value))):
        return "Input should be finite numbers"
    values = [one for one in (value if isinstance(value, list | tuple) else (value,)) if isinstance(one, int | float)]
    truths, beyond = any(isinstance(one, bool) for one in values), any(abs(one) > LARGEST for one in values)
    takes = set(re.findall(r"\b(?:int|float|bool)\b", str(annotation))) if truths or beyond else set()  # seldom: its words take time
    if truths and takes and "bool" not in takes:
        return "true and false are no numbers"
    return f"a whole number is {LARGEST} at most" if beyond and "int" in takes else ""


def _floats(value: Any) -> Iterator[float]:
    """Those in plain data."""
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from (one,) if isinstance(one, float) else _floats(one)


Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


def kind_of(cls: type[BaseModel]) -> str:
    """The word for a spec among those that fill its slot; empty where the slot has one alone."""
    field = cls.model_fields.get("kind")
    return str(field.default) if field else ""


def problems(e: ValidationError, tree: Any, before: str = "") -> str:
    """What is wrong with the fields of `tree`, plain data: "path=value: why", each once, and of a list with a wrong item the
    item alone. before: the path at which the tree stands."""
    errors = e.errors()
    inner = [error for error in errors if not any(other["loc"][: len(error["loc"])] == error["loc"] != other["loc"] for other in errors)]
    return "; ".join(dict.fromkeys(_problem(error, tree, before) for error in inner))


def _problem(error: Any, tree: Any, before: str) -> str:
    names = []
    for place, name in enumerate(error["loc"], 1):  # pydantic names the member of a union among the fields; a user does not
        inside = name in tree if isinstance(tree, dict) else isinstance(tree, list | tuple) and name in range(len(tree))
        if inside or (error["type"] == "missing" and place == len(error["loc"])):
            names.append(str(name))
            tree = tree[name] if inside else None
    path = ".".join([*([before] if before else []), *names])
    given = error["input"] if isinstance(error["input"], (str, int, float)) else reprlib.repr(error["input"])  # a list may be long
    value = "" if isinstance(error["input"], dict) or not path else f"={given}"
    said = f"wants a list: {path}=[...]" if error["type"] in ("tuple_type", "list_type") else error["msg"]
    return f"{path}{value}: {said.removeprefix('Value error, ')}".removeprefix(": ")


def diff(a: Spec, b: Spec) -> list[tuple[str, Any, Any]]:
    """(path, value in a, value in b) for each leaf that differs; a leaf that one side lacks is None."""
    left, right = dict(leaves(a)), dict(leaves(b))
    return [(path, left.get(path), right.get(path)) for path in {**left, **right} if left.get(path) != right.get(path)]


def under(key: str, path: str) -> bool:
    """Whether the leaf at `path` is the field `key` or inside it."""
    return path == key or path.startswith(f"{key}.")


def leaves(spec: Spec) -> Iterator[tuple[str, Any]]:
    """(path, value) for each field that holds no others."""
    return _leaves(spec.model_dump(mode="json"))


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}" if path else key)
    else:
        yield path, tree
