"""Expansion of an entry of `ablations.yaml` with lists into one named ablation per combination of their values.

A list is a sweep: `quantile: [0.1, 0.25]` of `paper_top` gives `paper_top10` and `paper_top25`; `seed: [0, 1]` gives
the bare name and `_s1`; `learning_rate: [0.001, 0.002]` gives `_lr0p001` and `_lr0p002`; any other key gives
`_<key><value>`, or `_<value>` if the value is a word. In names, `p` is the decimal point.
"""

import copy
import itertools
import math
from decimal import Decimal
from typing import Any

SWEPT = (
    *("quantile", "threshold", "keep", "scope"),
    *("teacher", "divergence", "temperature", "weight", "top_k"),
    *("exponent", "gamma", "floor", "power", "clip", "noise"),
    *("learning_rate", "epochs", "weight_decay"),
    *("rank", "alpha", "dropout", "budget", "seed"),
)
"""Keys, at any depth, whose lists are sweeps."""

TRAIN = "train"
"""The key of an ablation that changes its training; what it sets stands after everything else but the seed."""

_SHORT = {"learning_rate": "lr", "weight_decay": "wd"}
"""Key -> what names have in its place."""

KeyPath = tuple[str, ...]
"""The keys that lead to a value, from the outermost inwards."""


def expand(name: str, entry: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return name -> entry without lists, in the order of the lists; an entry without a sweep expands to itself.

    In a name, the seed comes last, and before it what belongs to `train`.

    Raises:
        ValueError: a list is empty, holds a value twice, or holds something else than numbers and words.
    """
    sweeps = sorted(_sweeps(entry), key=lambda sweep: (sweep[0][-1] == "seed", sweep[0][0] == TRAIN))
    for path, values in sweeps:
        _check_values(".".join(path), values)
    expanded: dict[str, dict[str, Any]] = {}
    for combination in itertools.product(*(values for _, values in sweeps)):
        full_name, single = name, copy.deepcopy(entry)
        for (path, _), value in zip(sweeps, combination, strict=True):
            full_name += suffix(full_name, path[-1], value)
            _set(single, path, value)
        expanded[full_name] = single
    return expanded


def _check_values(key: str, values: list[Any]) -> None:
    if any(not isinstance(value, int | float | str) for value in values):
        raise ValueError(f"{key}: a sweep is a list of numbers or words")
    if not values:
        raise ValueError(f"{key}: the list is empty; give at least one value")
    if len({_as_number(value) for value in values}) < len(values):
        raise ValueError(f"{key}: the list holds a value twice: {', '.join(map(str, values))}")


def _sweeps(entry: dict[str, Any], above: KeyPath = ()) -> list[tuple[KeyPath, list[Any]]]:
    found: list[tuple[KeyPath, list[Any]]] = []
    for key, value in entry.items():
        if isinstance(value, dict):
            found += _sweeps(value, (*above, key))
        elif isinstance(value, list) and key in SWEPT:
            found.append(((*above, key), value))
    return found


def _set(entry: dict[str, Any], path: KeyPath, value: float | str) -> None:
    for key in path[:-1]:
        entry = entry[key]
    entry[path[-1]] = value


def suffix(name: str, key: str, value: float | str) -> str:
    """Return what a swept value adds to `name`; YAML reads `1e-4`, which has no point, as a word."""
    value = _as_number(value)
    if key == "seed":
        return f"_s{value}" if value else ""
    if key == "quantile" and isinstance(value, int | float):
        percent = _number(Decimal(str(value)) * 100)
        return f"_q{percent}" if name[-1].isdigit() else percent
    return f"_{value}" if isinstance(value, str) else f"_{_SHORT.get(key, key)}{_number(value)}"


def _as_number(value: float | str) -> float | str:
    """Return the number that a word stands for, or the word."""
    if not isinstance(value, str):
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    return number if math.isfinite(number) else value


def _number(value: float | Decimal) -> str:
    """Return the digits of `value`, without trailing zeros: 0.5 is `0p5`, 2.0 is `2`, -1 is `m1`."""
    return f"{Decimal(str(value)).normalize():f}".replace(".", "p").replace("-", "m")
