"""The cells of a phase diagram: each family against the baseline, after as many rounds of seeds as were needed.

In a cell, a family beats the baseline if it is better in distribution and shown to lose nothing out of it. It trades if
it is better in distribution and worse out of it, loses if it is worse in distribution, and has no gain if it is shown
to be better by less than the margin. Anything else is undecided (`advice/verdicts.py`). Intervals allow for the looks
(`evaluation/group_sequential.py`), so that a family that is decided gets no further seeds.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import polars as pl

from tokenuq_ml.advice.verdicts import UNDECIDED, verdict_of
from tokenuq_ml.config import StudySpec
from tokenuq_ml.config.comparison import PhaseDiagramComparison
from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation.group_sequential import paired_effects, repeated_interval
from tokenuq_ml.evaluation.paired import Estimate, Family
from tokenuq_ml.reports.comparisons.inputs import ComparisonInputs
from tokenuq_ml.reports.family_table import Metric, Parts, metric_parts, paired_family

DIVERGENCE = "true_kl"


class PhaseCell(NamedTuple):
    """A family in a cell: the change of its divergence from the truth against the baseline, nats per token."""

    study: str
    noise: float
    zipf: float
    family: str
    seeds: int
    """Seeds that the interval is over: those of the last look."""
    inside: Estimate
    outside: Estimate
    baseline: float
    """The baseline's divergence in distribution, over the same seeds."""
    ood_baseline: float
    margin: float
    """Nats in distribution that count as no difference."""
    ood_margin: float
    verdict: str

    @property
    def row(self) -> dict:
        """Return the cell as a row of the table `phase_cells`."""
        return {
            "study": self.study,
            "noise": self.noise,
            "zipf": self.zipf,
            "family": self.family,
            "seeds": self.seeds,
            **_change_fields(DIVERGENCE, self.inside),
            **_change_fields(f"ood_{DIVERGENCE}", self.outside),
            f"baseline_{DIVERGENCE}": self.baseline,
            f"ood_baseline_{DIVERGENCE}": self.ood_baseline,
            "margin": self.margin,
            "ood_margin": self.ood_margin,
            "verdict": self.verdict,
        }


def _change_fields(metric: str, change: Estimate) -> dict[str, float]:
    return {f"{metric}_change": change.value, f"{metric}_change_low": change.low, f"{metric}_change_high": change.high}


def phase_cells(inputs: ComparisonInputs[PhaseDiagramComparison]) -> list[PhaseCell]:
    """Return the cell of every study and family but the baseline; studies and families in their order.

    Raises:
        InputError: models were evaluated on different examples, or have no divergence from the truth.
    """
    return [cell for study in inputs.studies for cell in _cells_of(inputs, study)]


def further_seeds(inputs: ComparisonInputs[PhaseDiagramComparison], cells: Sequence[PhaseCell]) -> dict[str, list[str]]:
    """Return study -> the ablations of the next round: of families that are undecided, and of their baseline.

    Empty if every family is decided, or had its last look.
    """
    spec, found = inputs.spec, dict[str, dict[str, None]]()
    for cell in cells:
        following = [seeds for seeds in spec.rounds if seeds > cell.seeds]
        if cell.verdict != UNDECIDED or not following:
            continue
        seeds = spec.seeds_of(inputs.studies[cell.study], inputs.every_ablation[cell.study])
        wanted = [name for family in (spec.baseline, cell.family) for name in seeds[family][: following[0]]]
        missing = [name for name in wanted if name not in inputs.ablations[cell.study]]
        found.setdefault(cell.study, {}).update(dict.fromkeys(missing))
    return {study: list(names) for study, names in found.items() if names}


def divergences(inputs: ComparisonInputs[PhaseDiagramComparison], study: str, row: str) -> list[float]:
    """Return the divergence from the truth of the base model or the teacher: in distribution, and out of it.

    Raises:
        InputError: the truth is not known.
    """
    examples = {row: inputs.read(study, "evaluation_examples", row)}
    parts = [_parts(metric, examples, study)[row] for metric in _metrics(inputs.studies[study])]
    return [float(above.sum() / below.sum()) for above, below in parts]


def _metrics(study: StudySpec) -> tuple[Metric, Metric]:
    """Return what is compared: in distribution, and out of it."""
    return (study.dataset, "test", DIVERGENCE), (study.ood[0], "ood", DIVERGENCE)


def _cells_of(inputs: ComparisonInputs[PhaseDiagramComparison], study: str) -> list[PhaseCell]:
    spec, own = inputs.spec, inputs.ablations[study]
    by_family: dict[str, dict[int, str]] = {}
    for name, ablation in own.items():
        by_family.setdefault(ablation.family, {})[ablation.seed] = name
    examples = {name: inputs.read(study, "evaluation_examples", name) for name in own}
    inside, outside = (_parts(metric, examples, study) for metric in _metrics(inputs.studies[study]))
    cells = []
    for family, names in by_family.items():
        if family == spec.baseline:
            continue
        seeds = _seeds_of_last_look(names, by_family[spec.baseline], spec.rounds)

        def pair(parts: Mapping[str, Parts], seeds: list[int] = seeds, family: str = family) -> tuple[Family, Family]:
            one, other = ([by_family[of][seed] for seed in seeds] for of in (family, spec.baseline))
            return paired_family(one, parts, own), paired_family(other, parts, own)

        (one, base), (ood_one, ood_base) = pair(inside), pair(outside)
        changes = (
            repeated_interval(paired_effects(one, base), spec.rounds, spec.confidence),
            repeated_interval(paired_effects(ood_one, ood_base), spec.rounds, spec.confidence),
        )
        level, ood_level = _value(base), _value(ood_base)
        margins = spec.margin * level, spec.margin * ood_level
        knobs = inputs.knobs[study]
        cells.append(
            PhaseCell(
                study,
                knobs["noise"],
                knobs["zipf"],
                family,
                len(seeds),
                *changes,
                level,
                ood_level,
                *margins,
                verdict_of(*changes, *margins),
            )
        )
    return cells


def _seeds_of_last_look(family: Mapping[int, str], baseline: Mapping[int, str], rounds: Sequence[int]) -> list[int]:
    """Return the seeds of the last look that family and baseline have: a round that was stopped does not count."""
    common = sorted(family.keys() & baseline.keys())
    return common[: max(seeds for seeds in rounds if seeds <= len(common))]


def _parts(metric: Metric, examples: Mapping[str, pl.DataFrame], study: str) -> dict[str, Parts]:
    parts = metric_parts(metric, examples)
    if missing := [name for name in examples if name not in parts]:
        raise InputError(
            f"study {study}: {missing[0]} has no {DIVERGENCE} on {metric[0]} ({metric[1]}); a phase diagram needs data "
            "of a synthetic language in and out of distribution"
        )
    return parts


def _value(family: Family) -> float:
    return float((family.numerators_SE.sum(axis=1) / family.denominators_SE.sum(axis=1)).mean())
