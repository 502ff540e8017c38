"""Correlations over several teachers of one study: intervals over examples say nothing of another training's result."""

import statistics
from collections.abc import Mapping, Sequence

from tokenuq_ml.config import StudySpec
from tokenuq_ml.reports.comparisons.found_correlation import Found
from tokenuq_ml.reports.comparisons.parts import Section, Table, Text

OF_ITS_OWN = {"name", "teacher_seed"}


def teachers_of(studies: Mapping[str, StudySpec]) -> list[list[str]]:
    """Return the studies that differ in the seed of their teacher only, as groups of two or more, in their order."""
    groups: dict[str, list[str]] = {}
    for name, study in studies.items():
        groups.setdefault(study.model_dump_json(exclude=OF_ITS_OWN), []).append(name)
    return [group for group in groups.values() if len({studies[name].teacher_seed for name in group}) > 1]


def teachers_section(studies: Mapping[str, StudySpec], found: Sequence[Found], names: Sequence[str]) -> Section | None:
    """Return mean and spread over teachers of each correlation; None if no study has several.

    Args:
        studies: the studies of the comparison.
        found: the correlations of each.
        names: of the correlations that are shown.
    """
    rows = []
    for group in teachers_of(studies):
        own = [[one for one in found if one.study in group and one.name == name] for name in names]
        rows.append([group[0], studies[group[0]].model, str(len(group)), *map(_text, own)])
    if not rows:
        return None
    note = (
        "Studies that differ in `teacher_seed` only. Mean ± standard deviation over their teachers; in brackets, for "
        "how many of them the interval over examples is above 0, and for how many below."
    )
    return Section("Over teachers", [Table(["first study", "model", "teachers", *names], rows), Text(note, "dim")])


def _text(found: Sequence[Found]) -> str:
    values = [one.value for one in found if one.value is not None]
    if len(values) < 2:
        return "undefined"
    above, below = sum(one.sign > 0 for one in found), sum(one.sign < 0 for one in found)
    return f"{statistics.mean(values):+.3f} ± {statistics.stdev(values):.3f} ({above}, {below})"
