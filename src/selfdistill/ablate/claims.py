"""A paper's sentence as data: predicates over a table's rows, and what the numbers say of them.

A predicate compares what one row, or two, measured:

    without.output_std < 0.2                  a number
    with.knn > without.knn + 0.05             another row, by a margin
    with.gap_predictor < with.gap_projection  another metric
    without.verdict is collapsed              a state, or one of several: is collapsed dimensional-collapse
    without.verdict is-not healthy            the reverse
    spearman(uniformity,knn) < 0              a rank correlation over all rows

It is judged seed by seed: the difference of the two sides has a mean and a standard error over seeds, and within `MARGIN` standard
errors of 0 it is undecided. One seed has no spread: there the sign decides.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple, get_args

from pydantic import AfterValidator

from selfdistill.ablate.figures import METRICS, Results, mean_and_sd, verdicts
from selfdistill.diagnose.causes import State
from selfdistill.spec import Spec

Outcome = Literal["HOLDS", "FAILS", "UNDECIDED"]
ScaleName = Literal["tiny", "small", "paper"]
MARGIN = 2.0
"""standard errors over seeds"""
TERM = re.compile(r"([\w-]+)\.(\w+)")
SPEARMAN = re.compile(r"spearman\((\w+),(\w+)\)")


def _grammatical(text: str) -> str:
    match text.split():
        case [left, "is" | "is-not", *states] if states:
            ok = left.endswith(".verdict") and TERM.fullmatch(left) and set(states) <= set(get_args(State))
        case [left, "<" | ">", right, *shift]:
            number = len(shift) == 2 and shift[0] in ("+", "-") and _number(shift[1]) is not None
            of_rows = TERM.fullmatch(left) or SPEARMAN.fullmatch(left)
            ok = of_rows and (TERM.fullmatch(right) or _number(right) is not None) and (not shift or number)
        case _:
            ok = False
    unknown = [metric for _, metric in terms(text) if metric not in METRICS]
    if not ok or unknown:
        raise ValueError(f"'{text}' is no predicate: {'no metric ' + unknown[0] if unknown else 'see ablate/claims.py'}")
    return text


Predicate = Annotated[str, AfterValidator(_grammatical)]


class Claim(Spec):
    """All predicates of `where` must hold."""

    id: str
    says: str
    """the sentence, in our words"""
    source: str
    where: tuple[Predicate, ...]
    at: tuple[ScaleName, ...] = ("tiny", "small", "paper")
    """scales that have its rows"""
    because: dict[ScaleName, str] = {}
    """why it does not hold at a scale, where that is known; shown only where it does not"""


class Judged(NamedTuple):
    outcome: Outcome
    evidence: str
    known: bool = True
    """whether there was a run to judge"""


def terms(text: str) -> Iterator[tuple[str, str]]:
    """(row, metric) that a predicate names; the row is empty where it is all of them."""
    for word in text.split():
        if found := SPEARMAN.fullmatch(word):
            yield from (("", metric) for metric in found.groups())
        elif (found := TERM.fullmatch(word)) and _number(word) is None:
            yield found[1], found[2]


def judge(claim: Claim, results: Results) -> Judged:
    """FAILS where one predicate does, HOLDS where all do."""
    parts = [judge_predicate(text, results) for text in claim.where]
    outcomes = [part.outcome for part in parts]
    outcome: Outcome = "FAILS" if "FAILS" in outcomes else "UNDECIDED" if "UNDECIDED" in outcomes else "HOLDS"
    return Judged(outcome, "; ".join(part.evidence for part in parts), all(part.known for part in parts))


def judge_predicate(text: str, results: Results) -> Judged:
    left, op, *right = text.split()
    seeds = sorted({seed for row in results.values() for seed in row})
    if op in ("is", "is-not"):
        row, metric = left.split(".")
        states = [results.get(row, {}).get(seed, {}).get(metric) for seed in seeds]
        known = [state for state in states if state is not None]
        found = {(state in right) == (op == "is") for state in known}
        outcome: Outcome = "HOLDS" if found == {True} else "FAILS" if found == {False} else "UNDECIDED"
        return Judged(outcome, f"{left} {op} {' or '.join(right)}: {verdicts(known) or 'no run'}", bool(known))
    shift = float(right[1] + right[2]) if len(right) > 1 else 0.0
    pairs = [(_value(left, results, seed), _value(right[0], results, seed)) for seed in seeds]
    whole = [(a, b) for a, b in pairs if a is not None and b is not None]
    sides = [(a - b - shift) * (1 if op == ">" else -1) for a, b in whole]
    shown = [_shown(left, [a for a, _ in whole]), op, _shown(right[0], [b for _, b in whole]), *right[1:]]
    missing = "not measured" if all(results.get(row) for row, _ in terms(text) if row) else "no run"
    return Judged(_outcome(sides), " ".join(shown) if whole else f"{text}: {missing}", bool(whole))


def _outcome(sides: list[float]) -> Outcome:
    """sides: for each seed, how far on the right side."""
    found = mean_and_sd(sides)
    if found is None:
        return "UNDECIDED"
    mean, error = found[0], found[1] / math.sqrt(len(sides))
    return "UNDECIDED" if mean == 0 or abs(mean) <= MARGIN * error else "HOLDS" if mean > 0 else "FAILS"


def _value(word: str, results: Results, seed: int) -> float | None:
    if found := SPEARMAN.fullmatch(word):
        runs = [row[seed] for row in results.values() if seed in row]
        pairs = [(a, b) for run in runs if (a := run[found[1]]) is not None and (b := run[found[2]]) is not None]
        return _spearman(pairs) if len(pairs) > 2 else None
    if (number := _number(word)) is not None:
        return number
    row, metric = word.split(".")
    value = results.get(row, {}).get(seed, {}).get(metric)
    return None if value is None else float(value)


def _spearman(pairs: list[tuple[float, float]]) -> float | None:
    """None where one side is constant."""
    from scipy.stats import spearmanr  # takes a second to import

    rho = float(spearmanr([a for a, _ in pairs], [b for _, b in pairs]).statistic)
    return rho if math.isfinite(rho) else None


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _shown(word: str, values: list[float]) -> str:
    found = mean_and_sd(values)
    if found is None or _number(word) is not None:
        return word
    return f"{word} {found[0]:.3g}" + (f" ± {found[1]:.2g}" if len(values) > 1 else "")
