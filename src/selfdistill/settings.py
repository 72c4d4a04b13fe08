"""`key=value`: a word of the command line at a path of fields, and YAML that may come from a stranger."""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Annotated, Any, Literal

import yaml

from selfdistill.errors import Misuse, did_you_mean, in_one_line
from selfdistill.own import OWN, Slot
from selfdistill.parts.encoder import Encoder
from selfdistill.parts.schedule import Schedule
from selfdistill.spec import Spec, kind_of


class _Loader(yaml.SafeLoader):
    """Plain data, each key once. No aliases: ten lines of them are a billion values once they are printed."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not taken: write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.YAMLError(f"{key.value} stands twice (the second in line {key.start_mark.line + 1}): leave one out")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes words that `_Loader`, or PyYAML, would read as numbers."""


NUMBERS = {  # as YAML 1.2 and Python have them: in 1.1, PyYAML's, 1e-3 is a word, 010 is 8 and 1:30 is 90
    "tag:yaml.org,2002:int": r"[-+]?\d[\d_]*$",
    "tag:yaml.org,2002:float": r"[-+]?((\d[\d_]*\.[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.inf|\.nan)$",
}
_Loader.yaml_implicit_resolvers = {
    first: [known for known in of if known[0] not in NUMBERS] for first, of in _Loader.yaml_implicit_resolvers.items()
}
for side in (_Loader, _Dumper):  # what is written quotes 1.1's as well, for other readers
    for tag, pattern in NUMBERS.items():
        side.add_implicit_resolver(tag, re.compile(pattern), list("-+.0123456789"))
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))


def yaml_from(tree: Any) -> str:
    """Plain data as YAML, in the order that it has; `yaml_of` reads the same from it."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120)


def settings_in(tree: dict[Any, Any], base: Any, before: str = "") -> Iterator[str]:
    """key=value for each entry of a user's YAML, key a path from `base`, the spec that it starts from. A slot that it fills with another
    kind is one setting, with all its fields."""
    for key, value in tree.items():
        there = getattr(base, str(key), None) if isinstance(base, Spec) else base.get(key)
        kind = kind_of(type(there)) if isinstance(there, Spec) else ""
        named = isinstance(there, Spec) or (isinstance(there, dict) and any(isinstance(of, Spec) for of in there.values()))
        if named and isinstance(value, dict) and value.get("kind", kind) == kind:
            yield from settings_in(value, there, f"{before}{key}.")
        else:
            yield f"{before}{key}={_word(value)}"


def _word(value: Any) -> str:
    """Plain data as a word of the command line."""
    if value is None or isinstance(value, str):
        return "none" if value is None else value
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=True, width=math.inf).removesuffix("...\n").strip()


def yaml_of(text: str) -> Any:
    """Plain data from YAML: no tag makes an object. Raises `ValueError` for all that a text can do to the parser."""
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as e:  # ValueError: the 31st of a month that has 30
        raise ValueError(in_one_line(e)) from e


def _options(annotation: Any) -> list[Any]:
    """The members of a union, without Annotated; of a slot with the user's own."""
    if typing.get_origin(annotation) is Annotated:
        of, *notes = typing.get_args(annotation)
        return [*_options(of), *(cls for note in notes if isinstance(note, Slot) for cls in OWN[note.name].values())]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [o for member in typing.get_args(annotation) for o in _options(member)]
    return [annotation]


def specs_of(annotation: Any) -> list[type[Spec]]:
    return [o for o in _options(annotation) if isinstance(o, type) and issubclass(o, Spec)]


def edited(annotation: Any, node: Any, path: list[str], value: str, at: int = 0) -> Any:
    """`node`, the dump of a value of type `annotation` that stands at path[:at], with `value` at `path`."""
    key, here = ".".join(path), ".".join(path[:at]) or "a recipe"
    if at == len(path):
        return _parsed(annotation, node, value, key)
    name, rest = path[at], path[at + 1 :]
    of_names, specs = typing.get_origin(annotation) is dict, specs_of(annotation)
    if not (of_names or specs) or not (node is None or isinstance(node, dict)):
        raise Misuse(f"{key}={value}: {here} is a value and has no field {name}")
    if of_names:
        node = node or {}
        of = typing.get_args(annotation)[1]
        if specs_of(of) and not rest and value == "none":  # a term is taken out
            return {other: was for other, was in node.items() if other != name}
        if of is not Any and name not in node:
            raise Misuse(f"{key}={value}: {here} has no {name}, only {', '.join(node)}.{did_you_mean(name, node)}")
        return {**node, name: edited(of, node.get(name), path, value, at + 1)}
    if path[at:] == ["kind"] and any(map(kind_of, specs)):  # teacher.kind=snapshot: another spec, with other fields, is teacher=snapshot
        return node if node and node["kind"] == value else _parsed(annotation, node, value, here)
    if node is None:
        first = next(iter(specs[0].model_fields))
        raise Misuse(f"{key}={value}: {here} is none here; choose it first: {here}={kind_of(specs[0]) or f'{{{first}: ...}}'}")
    cls = next((c for c in specs if kind_of(c) == node.get("kind", "")), specs[0])
    if name not in cls.model_fields:
        before, after = (f"{here}." if at else ""), "".join(f".{n}" for n in rest)
        hint = did_you_mean(name, cls.model_fields, before, after, cutoff=0.5)
        hint += "".join(f" {here}={kind_of(c)} has {f}." for c in specs if c is not cls for f in get_close_matches(name, c.model_fields, 1))
        owner = f"{here}={node['kind']}" if "kind" in node else here
        fields = ", ".join(f for f in cls.model_fields if f != "kind") or "no fields"
        raise Misuse(f"{key}={value}: unknown key; {owner} has {fields}.{hint}")
    annotation = typing.get_type_hints(cls, include_extras=True)[name]
    return {**node, name: edited(annotation, node.get(name), path, value, at + 1)}


def _parsed(annotation: Any, node: Any, value: str, key: str) -> Any:
    """A command line's word as a value of type `annotation`; pydantic validates it later."""
    options, specs = _options(annotation), specs_of(annotation)
    literals = [word for o in options if typing.get_origin(o) is Literal for word in typing.get_args(o)]
    if value in literals or options == [str]:
        return value
    if value == "none" and type(None) in options:
        return None
    if value and {*options} == {str, type(None)}:  # a path: "#" and ":" are of it
        return value
    for cls in specs:
        if value and value == kind_of(cls):
            return cls().model_dump()
    if Encoder in specs and not value.startswith("{"):
        return {**node, "name": value, "options": {}}  # options are the named network's
    try:
        parsed = yaml_of(value)
    except ValueError:
        parsed = value
    if value and parsed is None and type(None) in options:  # null, as recipe.yaml has it
        return None
    if isinstance(parsed, bool) and {"on", "off"} <= set(literals):  # YAML's on
        return "on" if parsed else "off"
    if literals and not specs and isinstance(parsed, str | bool):  # no word, and no number in its place; YAML's no is a bool
        allowed = [str(word) for word in literals] + ["a number"] * bool({int, float} & set(options)) + ["none"] * (type(None) in options)
        raise Misuse(f"{key}={value}: allowed: {', '.join(allowed)}.{did_you_mean(value, allowed)}")
    if Schedule in specs and not isinstance(parsed, dict):
        return {**(node or {}), "base": parsed}
    if specs and not isinstance(parsed, dict):
        allowed = [kind_of(cls) for cls in specs if kind_of(cls)] + ["none"] * (type(None) in options)
        ways = f"allowed: {', '.join(allowed)}" if allowed else f"set its fields: {', '.join(f'{key}.{f}' for f in specs[0].model_fields)}"
        if allowed == ["none"]:
            ways += f", or its fields: {key}={{{', '.join(f'{f}: ...' for f in specs[0].model_fields)}}}"
        raise Misuse(f"{key}={value}: {ways}.{did_you_mean(value, allowed)}")
    return parsed
