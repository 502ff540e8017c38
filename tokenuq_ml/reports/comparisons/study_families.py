"""The families of one study, each at the setting that the study's report has chosen, compared on the same examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import polars as pl

from tokenuq_ml.config import REFERENCE_ROWS
from tokenuq_ml.config.comparison import FamilyComparison
from tokenuq_ml.evaluation.paired import PairedBootstrap
from tokenuq_ml.reports.comparisons.inputs import ComparisonInputs
from tokenuq_ml.reports.family_table import metric_parts, paired_family

FAMILY_TABLE = "family_table"
KEY = ("dataset", "split", "metric")
DIVERGENCE, LOSS = "true_kl", "loss"
BENCHMARKS = (
    "exact_match_flexible",
    "prompt_level_strict_acc",
    "win_rate",
    "length_controlled_win_rate",
)
"""One metric of each benchmark: GSM8K, IF-Eval, AlpacaEval."""


class Change(NamedTuple):
    """The difference of a family to another one, with its interval and what it means."""

    value: float
    low: float
    high: float
    verdict: str
    """`better`, `worse` or `same`: the interval contains 0, or one example was evaluated."""

    @property
    def text(self) -> str:
        """Return the difference with its interval; a star marks an interval without 0."""
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]{'' if self.verdict == 'same' else ' *'}"


class Panel(NamedTuple):
    """A metric on one split of one dataset."""

    dataset: str
    split: str
    metric: str
    higher_is_better: bool

    def improves(self, change: float) -> bool:
        """Return whether a change of the metric is for the better."""
        return change > 0 if self.higher_is_better else change < 0

    def improvement(self, change: Change) -> tuple[float, float, float]:
        """Return a difference, its sign turned so that more is better, and how far its interval reaches down and up."""
        # At least 0: rounding may give -1e-17, which matplotlib refuses.
        below, above = max(change.value - change.low, 0.0), max(change.high - change.value, 0.0)
        return (change.value, below, above) if self.higher_is_better else (-change.value, above, below)

    @property
    def label(self) -> str:
        """Return the metric with its dataset."""
        return f"{self.metric} on {self.dataset}"


class Plane(NamedTuple):
    """A metric in distribution, and one out of distribution."""

    inside: Panel
    outside: Panel
    is_benchmark: bool


@dataclass(frozen=True)
class StudyFamilies:
    """The families of one study of a comparison.

    Attributes:
        inputs: of the comparison.
        study: name of the study.
    """

    inputs: ComparisonInputs[FamilyComparison]
    study: str

    @cached_property
    def rows(self) -> dict[str, dict]:
        """Family -> what the study's report says of it: `models`, `n_seeds`, `setting`."""
        table = self.inputs.report_rows(self.study, FAMILY_TABLE)
        own = self.inputs.ablations[self.study]
        found = {row["family"]: row for row in table if row["family"] not in REFERENCE_ROWS}
        return {family: row for family, row in found.items() if set(row["models"].split()) <= own.keys()}

    @property
    def baseline(self) -> str:
        """The family that the others are compared with."""
        return self.inputs.spec.baseline

    @property
    def others(self) -> list[str]:
        """The families but the baseline."""
        return [family for family in self.rows if family != self.baseline]

    def seeds(self, family: str) -> int:
        """Return with how many seeds a family was trained."""
        return int(self.rows[family]["n_seeds"])

    def setting(self, family: str) -> str:
        """Return what a family was trained with if it differs from the study's budget; else nothing."""
        return self.rows[family].get("setting") or ""

    @cached_property
    def _examples(self) -> dict[str, pl.DataFrame]:
        """Ablation -> what each example adds to each metric."""
        names = [name for row in self.rows.values() for name in row["models"].split()]
        return {name: self.inputs.read(self.study, "evaluation_examples", name) for name in names}

    @cached_property
    def panels(self) -> list[Panel]:
        """The metrics with a direction that the baseline has, in the order of the report."""
        table = self.inputs.report_rows(self.study, FAMILY_TABLE)
        families: dict[Panel, set[str]] = {}
        for row in table:
            if row["higher_is_better"] is not None:
                panel = Panel(*(row[key] for key in KEY), row["higher_is_better"])
                families.setdefault(panel, set()).add(row["family"])
        return [panel for panel, found in families.items() if self.baseline in found]

    @property
    def planes(self) -> list[Plane]:
        """What is in distribution against what is out of distribution.

        Per dataset of `ood`: the divergence from the truth where it is known of both, else the loss. Then each
        benchmark in distribution against each one out of distribution.
        """
        spec = self.inputs.studies[self.study]
        found = {panel[:3]: panel for panel in self.panels}
        planes = []
        for dataset in spec.ood:
            for metric in (DIVERGENCE, LOSS):
                pair = found.get((spec.dataset, "test", metric)), found.get((dataset, "ood", metric))
                if pair[0] is not None and pair[1] is not None:
                    planes.append(Plane(pair[0], pair[1], is_benchmark=False))
                    break
        benchmarks = [panel for panel in self.panels if panel.metric in BENCHMARKS]
        planes += [
            Plane(inside, outside, is_benchmark=True)
            for inside in benchmarks
            for outside in benchmarks
            if inside.split == "test" and outside.split == "ood"
        ]
        return planes

    def differences(self, panel: Panel) -> "Differences":
        """Return the differences between the families that have a metric for all seeds, over examples and seeds.

        Raises:
            InputError: models were evaluated on different examples.
        """
        parts = metric_parts(panel[:3], self._examples)
        ablations, spec = self.inputs.ablations[self.study], self.inputs.spec
        members = {family: row["models"].split() for family, row in self.rows.items()}
        families = {
            family: paired_family(names, parts, ablations)
            for family, names in members.items()
            if parts.keys() >= set(names)
        }
        bootstrap = PairedBootstrap(families, resamples=spec.bootstrap, confidence=spec.confidence, seed=spec.seed)
        return Differences(panel, tuple(families), bootstrap, len(next(iter(parts.values()))[0]))


@dataclass(frozen=True)
class Differences:
    """Paired differences between the families of a study on one metric.

    Attributes:
        panel: the metric.
        families: those that have it.
        bootstrap: of the families.
        n: examples that it was measured on.
    """

    panel: Panel
    families: tuple[str, ...]
    bootstrap: PairedBootstrap
    n: int

    def of(self, family: str, other: str) -> Change:
        """Return the mean of a family minus that of another one."""
        value, low, high = self.bootstrap.difference(family, other)
        if self.n < 2 or low <= 0 <= high:
            return Change(value, low, high, "same")
        return Change(value, low, high, "better" if self.panel.improves(value) else "worse")

    def best(self, families: Sequence[str]) -> str:
        """Return the family with the best mean; the first of equals."""
        sign = -1 if self.panel.higher_is_better else 1
        return min(families, key=lambda family: sign * self.bootstrap.mean(family).value)
