"""The points of a front: a family's differences to the baseline on one plane, and who dominates it."""

from typing import NamedTuple

from tokenuq_ml.reports.comparisons.study_families import Change, Plane, StudyFamilies


class Point(NamedTuple):
    """A family on one plane of a study: its differences to the baseline, and what dominates it."""

    study: str
    plane: Plane
    family: str
    setting: str
    seeds: int
    inside: Change
    outside: Change
    dominated_by: tuple[str, ...]
    is_on_front_of_means: bool
    """No other family has a better mean in both directions."""

    @property
    def is_on_front(self) -> bool:
        """Return whether no family dominates it."""
        return not self.dominated_by

    def row(self) -> dict:
        """Return the point as a row of the table `front`."""
        return {
            "study": self.study,
            "family": self.family,
            "setting": self.setting,
            "seeds": self.seeds,
            "dataset": self.plane.inside.dataset,
            "metric": self.plane.inside.metric,
            "ood_dataset": self.plane.outside.dataset,
            "ood_metric": self.plane.outside.metric,
            **_change_fields("", self.inside),
            **_change_fields("ood_", self.outside),
            "on_front": self.is_on_front,
            "on_front_of_means": self.is_on_front_of_means,
            "dominated_by": " ".join(self.dominated_by),
        }


def _change_fields(prefix: str, change: Change) -> dict[str, float | str]:
    return {
        f"{prefix}change": change.value,
        f"{prefix}low": change.low,
        f"{prefix}high": change.high,
        f"{prefix}verdict": change.verdict,
    }


def study_points(families: StudyFamilies) -> list[Point]:
    """Return the points of a study, plane by plane."""
    points = []
    for plane in families.planes:
        inside, outside = families.differences(plane.inside), families.differences(plane.outside)
        members = [family for family in inside.families if family in outside.families]
        for family in members:
            rivals = {
                other: (inside.of(other, family), outside.of(other, family)) for other in members if other != family
            }
            dominated_by = tuple(
                other for other, (x, y) in rivals.items() if x.verdict == "better" and y.verdict == "better"
            )
            beaten = any(plane.inside.improves(x.value) and plane.outside.improves(y.value) for x, y in rivals.values())
            own = inside.of(family, families.baseline), outside.of(family, families.baseline)
            points.append(
                Point(
                    families.study,
                    plane,
                    family,
                    families.setting(family),
                    families.seeds(family),
                    *own,
                    dominated_by,
                    not beaten,
                )
            )
    return points
