"""One entry of `ablations.yaml` with lists in it becomes one ablation for every combination, each with a name.

A list is a sweep: `quantile: [0.1, 0.25]` of `paper_top` gives `paper_top10` and `paper_top25`; `seed: [0, 1]`
gives the bare name and `_s1`; any other key gives `_<key><value>`, or `_<value>` where the value is a word.
A number's point is written `p`. Does not know what the keys mean.
"""

import copy
import itertools
from decimal import Decimal

SWEPT = ("quantile", "threshold", "keep", "scope", "teacher", "divergence", "temperature", "weight", "rank")
SWEPT += ("alpha", "dropout", "seed")
"""Keys, at any depth, whose lists are sweeps. `seed` comes last in a name."""

Place = tuple[str, ...]


def expand(name: str, entry: dict) -> dict[str, dict]:
    """Name -> entry without lists, in the order of the lists; an entry without a sweep gives itself.

    Raises:
        ValueError: a list is empty or holds a value twice, so that a name would not be its own.
    """
    sweeps = sorted(_sweeps(entry), key=lambda sweep: sweep[0][-1] == "seed")
    for place, values in sweeps:
        key = ".".join(place)
        if any(not isinstance(value, int | float | str) for value in values):
            raise ValueError(f"{key}: a sweep is a list of numbers or words")
        if not values:
            raise ValueError(f"{key}: the list is empty; give a value, or some")
        if len({str(value) for value in values}) < len(values):
            raise ValueError(f"{key}: the list holds a value twice: {', '.join(map(str, values))}")
    made: dict[str, dict] = {}
    for combination in itertools.product(*(values for _, values in sweeps)):
        full, one = name, copy.deepcopy(entry)
        for (place, _), value in zip(sweeps, combination, strict=True):
            full += _suffix(full, place[-1], value)
            _set(one, place, value)
        made[full] = one
    return made


def _sweeps(entry: dict, above: Place = ()) -> list[tuple[Place, list]]:
    found: list[tuple[Place, list]] = []
    for key, value in entry.items():
        if isinstance(value, dict):
            found += _sweeps(value, (*above, key))
        elif isinstance(value, list) and key in SWEPT:
            found.append(((*above, key), value))
    return found


def _set(entry: dict, place: Place, value) -> None:
    for key in place[:-1]:
        entry = entry[key]
    entry[place[-1]] = value


def _suffix(name: str, key: str, value) -> str:
    if key == "seed":
        return f"_s{value}" if value else ""
    if key == "quantile" and isinstance(value, int | float):
        percent = _number(Decimal(str(value)) * 100)
        return f"_q{percent}" if name[-1].isdigit() else percent
    return f"_{value}" if isinstance(value, str) else f"_{key}{_number(value)}"


def _number(value) -> str:
    """Digits with `p` for the point, and no zeros that say nothing: 0.5 is `0p5`, 2.0 is `2`."""
    return f"{Decimal(str(value)).normalize():f}".replace(".", "p").replace("-", "m")
