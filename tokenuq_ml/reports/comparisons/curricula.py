"""Kind `curricula`: curricula that a user sets, against the one that follows from the student's own losses.

Each explicit curriculum is compared with the automatic one on the same examples and seeds, in and out of distribution.
What the automatic one selects over time is shown by token category, from quarter to quarter of the training.
"""

from collections.abc import Sequence
from typing import NamedTuple

from tokenuq_ml.config.comparison import CurriculaComparison
from tokenuq_ml.reports.comparisons.curricula_plot import draw_selections
from tokenuq_ml.reports.comparisons.inputs import ComparisonInputs
from tokenuq_ml.reports.comparisons.parts import Findings, Picture, Section, Table, Text
from tokenuq_ml.reports.comparisons.selected_over_time import QUARTERS, Selected, selected_over_time
from tokenuq_ml.reports.comparisons.study_families import Change, Panel, StudyFamilies

PLOT = "curricula.png"
SIDES = {"test": "in distribution", "ood": "out of distribution"}


class Against(NamedTuple):
    """A family against the automatic curriculum, on one metric of a study."""

    study: str
    panel: Panel
    family: str
    is_explicit: bool
    setting: str
    seeds: int
    change: Change

    def row(self) -> dict:
        """Return it as a row of the table `curricula`."""
        return {
            "study": self.study,
            "dataset": self.panel.dataset,
            "split": self.panel.split,
            "metric": self.panel.metric,
            "family": self.family,
            "explicit": self.is_explicit,
            "setting": self.setting,
            "seeds": self.seeds,
            "change": self.change.value,
            "low": self.change.low,
            "high": self.change.high,
            "verdict": self.change.verdict,
        }


def compare(inputs: ComparisonInputs[CurriculaComparison]) -> Findings:
    """Return the curricula against the automatic one, and what that one selects."""
    spec = inputs.spec
    studies = [StudyFamilies(inputs, study) for study in inputs.studies]
    found = [one for study in studies for one in _study_curricula(study, spec)]
    selected = [one for study in studies for one in selected_over_time(study, spec.baseline)]
    sections = []
    if found:
        sections.append(
            Section(f"Differences to {spec.baseline}", [_table(found), Text(_note(spec), "dim")]),
        )
    plots = {}
    heading = f"What {spec.baseline} selects over time"
    if selected:
        draw_selections(selected, inputs.folder / PLOT)
        plots[heading] = PLOT
        meaning = (
            "Share of a category's tokens that is selected, from the first to the last quarter of the steps; mean over "
            "seeds. The dashed line is the share of all tokens. Studies are rows."
        )
        sections.append(
            Section(heading, [Picture(PLOT, heading, meaning), _selected_table(selected), Text(SELECTED_NOTE, "dim")])
        )
    tables = {"curricula": [one.row() for one in found], "selected": [one.row() for one in selected]}
    verdict = " ".join(filter(None, (_verdict(found, spec), _selected_verdict(selected, spec))))
    return Findings(
        verdict,
        sections,
        {name: rows for name, rows in tables.items() if rows},
        {"comparisons": sum(one.is_explicit for one in found)},
        plots,
    )


def _study_curricula(families: StudyFamilies, spec: CurriculaComparison) -> list[Against]:
    """Return every family of a study against the automatic one, metric by metric."""
    panels = [panel for plane in families.planes if not plane.is_benchmark for panel in (plane.inside, plane.outside)]
    found = []
    for panel in dict.fromkeys(panels):
        differences = families.differences(panel)
        found += [
            Against(
                families.study,
                panel,
                family,
                family in spec.curricula,
                families.setting(family),
                families.seeds(family),
                differences.of(family, spec.baseline),
            )
            for family in (*spec.curricula, *spec.without)
            if family in families.rows
        ]
    return found


def _table(found: Sequence[Against]) -> Table:
    """Return one row per study and family, one column per side and dataset."""
    rows = []
    for study in dict.fromkeys(one.study for one in found):
        own = [one for one in found if one.study == study]
        for family in dict.fromkeys(one.family for one in own):
            of_family = [one for one in own if one.family == family]
            cells = {split: [one for one in of_family if one.panel.split == split] for split in SIDES}
            texts = ["; ".join(f"{one.panel.label}: {one.change.text}" for one in side) for side in cells.values()]
            kind = "explicit" if of_family[0].is_explicit else "none"
            rows.append([study, family, kind, str(of_family[0].seeds), *(text or "—" for text in texts)])
    return Table(["study", "family", "curriculum", "seeds", *SIDES.values()], rows)


def _verdict(found: Sequence[Against], spec: CurriculaComparison) -> str:
    """Return per side, which curricula are better or worse than the automatic one, and in how many comparisons."""
    if not found:
        return "No study has a metric both in and out of distribution: give the studies a dataset in 'ood'."
    sentences = []
    for split, side in SIDES.items():
        parts = []
        for family in (*spec.curricula, *spec.without):
            own = [one for one in found if one.family == family and one.panel.split == split]
            counts = {word: sum(one.change.verdict == word for one in own) for word in ("better", "worse")}
            if own:
                told = " and ".join(f"{word} in {count} of {len(own)}" for word, count in counts.items() if count)
                parts.append(f"{family} {told or f'not distinguishable in {len(own)} of {len(own)}'}")
        sentences.append(f"Against {spec.baseline} {side}: {', '.join(parts)}.")
    return " ".join(sentences)


def _selected_verdict(selected: Sequence[Selected], spec: CurriculaComparison) -> str:
    """Return per study, the category whose share of the selection moves most."""
    sentences = []
    for study in dict.fromkeys(one.study for one in selected):
        own = [one for one in selected if one.study == study]
        most = max(own, key=lambda one: abs(one.shares[-1] - one.shares[0]))
        sentences.append(
            f"In {study}, {spec.baseline} selects {most.shares[0]:.0%} of the tokens of category {most.category} in "
            f"the first quarter of training and {most.shares[-1]:.0%} in the last one, the largest change of a "
            "category."
        )
    return " ".join(sentences)


def _selected_table(selected: Sequence[Selected]) -> Table:
    rows = [
        [
            one.study,
            one.category,
            f"{one.tokens:,}",
            *(f"{share:.1%}" for share in one.shares),
            f"{one.change:+.1%}" + (f" [{one.lowest:+.1%}, {one.highest:+.1%}]" if one.seeds > 1 else ""),
        ]
        for one in selected
    ]
    quarters = [f"quarter {number + 1}" for number in range(QUARTERS)]
    return Table(["study", "category", "tokens", *quarters, "last - first"], rows)


SELECTED_NOTE = (
    "Shares of a category's tokens, mean over seeds; in brackets, the smallest and largest change over seeds. Tokens "
    "are those of one seed, each counted once per epoch. A category that is selected more than the share of all tokens "
    "has larger losses than others at that time."
)


def _note(spec: CurriculaComparison) -> str:
    return (
        "Paired differences of means per token, below 0 is better for losses and divergences; a star marks "
        f"an interval without 0. {spec.confidence:.0%} bootstrap intervals over examples and seeds "
        f"({spec.bootstrap:,} resamples), without a correction for the number of comparisons. Each family is taken at "
        "the setting that its study's report has chosen on the validation split."
    )
