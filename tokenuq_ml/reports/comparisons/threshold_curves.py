"""The quantiles of each curve of a study, against the baseline and against the best of them."""

from typing import NamedTuple

from tokenuq_ml.config.comparison import ThresholdsComparison
from tokenuq_ml.reports.comparisons.study_families import Change, Differences, Panel, StudyFamilies

ALL_TOKENS = 1.0
"""The quantile of the baseline."""


class Threshold(NamedTuple):
    """One quantile of one curve on one metric of a study, against the baseline and against the best quantile."""

    study: str
    panel: Panel
    curve: str
    quantile: float
    """The share of tokens that is selected; of the baseline, 1."""
    family: str
    setting: str
    seeds: int
    to_baseline: Change
    to_best: Change
    is_best: bool

    @property
    def is_as_good_as_best(self) -> bool:
        """Return whether it is the best one, or not distinguishable from it."""
        return self.is_best or self.to_best.verdict == "same"

    def row(self) -> dict:
        """Return it as a row of the table `thresholds`."""
        own, best = self.to_baseline, self.to_best
        return {
            "study": self.study,
            "dataset": self.panel.dataset,
            "split": self.panel.split,
            "metric": self.panel.metric,
            "curve": self.curve,
            "quantile": self.quantile,
            "family": self.family,
            "setting": self.setting,
            "seeds": self.seeds,
            "change": own.value,
            "low": own.low,
            "high": own.high,
            "verdict": own.verdict,
            "to_best": best.value,
            "to_best_low": best.low,
            "to_best_high": best.high,
            "best": self.is_best,
            "as_good_as_best": self.is_as_good_as_best,
        }


def study_thresholds(families: StudyFamilies, spec: ThresholdsComparison) -> list[Threshold]:
    """Return every quantile of every curve of a study, metric by metric."""
    panels = [panel for plane in families.planes if not plane.is_benchmark for panel in (plane.inside, plane.outside)]
    found = []
    for panel in dict.fromkeys(panels):
        differences = families.differences(panel)
        for curve in spec.families:
            found += _curve(families, differences, curve, spec)
    return found


def _curve(
    families: StudyFamilies, differences: Differences, curve: str, spec: ThresholdsComparison
) -> list[Threshold]:
    members = {spec.family_at(curve, quantile): quantile for quantile in spec.quantiles}
    quantiles = {family: members[family] for family in members if family in differences.families}
    if not quantiles:
        return []
    quantiles[spec.baseline] = ALL_TOKENS
    best = differences.best(list(quantiles))
    return [
        Threshold(
            families.study,
            differences.panel,
            curve,
            quantile,
            family,
            families.setting(family),
            families.seeds(family),
            differences.of(family, spec.baseline),
            differences.of(family, best),
            family == best,
        )
        for family, quantile in sorted(quantiles.items(), key=lambda item: item[1])
    ]
