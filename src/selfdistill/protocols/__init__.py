"""How good a backbone is, by name: `evaluate` runs protocols on a `Subject` and writes what they found into its run folder."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, get_type_hints

from pydantic import ValidationError

from selfdistill.disk import merge
from selfdistill.errors import Misuse, did_you_mean
from selfdistill.protocols.dense import Dense
from selfdistill.protocols.frozen import KNN, Clustering, Linear, Logistic, Protocol, Retrieval, Robustness
from selfdistill.protocols.tuned import Finetune, Semi, Supervised
from selfdistill.settings import edited
from selfdistill.spec import problems
from selfdistill.train.run import EVALUATION
from selfdistill.train.subject import Subject

PROTOCOLS: dict[str, type[Protocol]] = {
    "knn": KNN,
    "linear": Linear,
    "logistic": Logistic,
    "finetune": Finetune,
    "supervised": Supervised,
    "semi": Semi,
    "retrieval": Retrieval,
    "clustering": Clustering,
    "robustness": Robustness,
    "dense": Dense,
}


def protocols_of(names: Iterable[str], settings: Iterable[str] = ()) -> dict[str, Protocol]:
    """The protocols named, with `settings`: "protocol.field=value". Raises `Misuse` for what is unknown or out of range."""
    chosen = dict.fromkeys(names)
    for name in chosen:
        if name not in PROTOCOLS:
            raise Misuse(f"--protocol {name}: allowed: {', '.join(PROTOCOLS)}.{did_you_mean(name, PROTOCOLS)}")
    fields: dict[str, dict[str, Any]] = {name: {} for name in chosen}
    for setting in settings:
        key, eq, value = setting.partition("=")
        name, _, field = key.partition(".")
        if name not in fields:
            raise Misuse(f"{setting}: {name} is not among the protocols asked for ({', '.join(fields)})")
        known = PROTOCOLS[name].model_fields
        if not eq or field not in known:
            raise Misuse(f"{setting}: {name} has {', '.join(known)}.{did_you_mean(field, known, f'{name}.')}")
        fields[name][field] = edited(get_type_hints(PROTOCOLS[name], include_extras=True)[field], None, [name, field], value, at=2)
    return {name: _made(name, of) for name, of in fields.items()}


def _made(name: str, fields: dict[str, Any]) -> Protocol:
    try:
        return PROTOCOLS[name].model_validate(fields)
    except ValidationError as e:
        raise Misuse(problems(e, fields, name)) from e


def is_protocol_setting(word: str) -> bool:
    """Whether "key=value" is of a protocol and not of a recipe."""
    return word.partition(".")[0] in PROTOCOLS


def evaluate(subject: Subject, protocols: Mapping[str, Protocol]) -> dict[str, dict[str, Any]]:
    """`measured` for each of `protocols`, and written down."""
    found = {}
    for name, protocol in protocols.items():
        found[name] = measured(subject, protocol)
        write_down(subject, name, found[name])
    return found


def measured(subject: Subject, protocol: Protocol) -> dict[str, Any]:
    """data, settings, what was chosen on held-out training images, results, and the seconds that it took."""
    started = time.perf_counter()
    results, chosen = protocol.measure(subject)
    return {
        "data": subject.other or subject.recipe.data,
        "settings": protocol.model_dump(mode="json"),
        "chosen": chosen,
        "results": results,
        "seconds": round(time.perf_counter() - started, 1),
    }


def write_down(subject: Subject, name: str, found: dict[str, Any]) -> None:
    """A run's are merged into its evaluation.json under the protocol's name (`linear@DATA` on other images than its own); linear_top1
    goes into summary.json too. Raises `Failure` when the disk fails."""
    folder = subject.folder
    if folder is None:
        return
    merge(folder / EVALUATION, {f"{name}@{subject.other}" if subject.other else name: found})
    usual = name == "linear" and found["settings"] == Linear().model_dump(mode="json")  # what tables and claims ask for
    if usual and not subject.other and (folder / "summary.json").exists():
        merge(folder / "summary.json", {"linear_top1": found["results"]["top1"]})
