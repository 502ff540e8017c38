"""Kind `thresholds`: the quantile of the selection against the data set.

A curve is an objective at several quantiles; 100% of the tokens is the baseline. For each study and metric, the best
quantile is the one with the best mean; others are as good if the paired difference to it has an interval with 0.
"""

from collections.abc import Sequence

from tokenuq_ml.config.comparison import ThresholdsComparison
from tokenuq_ml.reports.comparisons.inputs import ComparisonInputs
from tokenuq_ml.reports.comparisons.parts import Findings, Fold, Picture, Section, Table, Text
from tokenuq_ml.reports.comparisons.study_families import Panel, StudyFamilies
from tokenuq_ml.reports.comparisons.threshold_curves import ALL_TOKENS, Threshold, study_thresholds
from tokenuq_ml.reports.comparisons.thresholds_plot import draw_curves

PLOT = "thresholds.png"
SIDES = {"test": "in distribution", "ood": "out of distribution"}


def compare(inputs: ComparisonInputs[ThresholdsComparison]) -> Findings:
    """Return the curves of all studies, and which quantile is best where."""
    found = [one for study in inputs.studies for one in study_thresholds(StudyFamilies(inputs, study), inputs.spec)]
    if not found:
        return Findings(
            "No study has a metric that the quantiles can be compared on: give the studies a dataset in 'ood'.", []
        )
    draw_curves(found, inputs.folder / PLOT)
    caption = "Difference to the baseline over the quantile"
    meaning = (
        f"Above 0 is better than {inputs.spec.baseline}. Bars are {inputs.spec.confidence:.0%} intervals over examples "
        "and seeds. Studies are rows; the left column is in distribution."
    )
    sections = [
        Section("Which quantile is best", [_best_table(found), Text(_note(inputs.spec), "dim")]),
        Section(caption, [Picture(PLOT, caption, meaning), *_folds(found, inputs.spec)]),
    ]
    return Findings(
        _verdict(found, inputs.spec),
        sections,
        {"thresholds": [one.row() for one in found]},
        {"curves": len({(one.study, one.curve) for one in found})},
        {caption: PLOT},
    )


def _groups(found: Sequence[Threshold]) -> dict[tuple[str, Panel, str], list[Threshold]]:
    """Return study, metric and curve -> its quantiles."""
    groups: dict[tuple[str, Panel, str], list[Threshold]] = {}
    for one in found:
        groups.setdefault((one.study, one.panel, one.curve), []).append(one)
    return groups


def _percent(quantile: float) -> str:
    return f"{100 * quantile:.4g}%"


def _best_table(found: Sequence[Threshold]) -> Table:
    """Return one row per study, metric and curve: the best quantile, and those that are as good."""
    rows = []
    for (study, panel, curve), own in _groups(found).items():
        best = next(one for one in own if one.is_best)
        also = [_percent(one.quantile) for one in own if one.is_as_good_as_best and not one.is_best]
        rows.append(
            [
                study,
                f"{panel.label} ({SIDES[panel.split]})",
                curve,
                _percent(best.quantile),
                "baseline" if best.quantile == ALL_TOKENS else best.to_baseline.text,
                ", ".join(also) or "none",
            ]
        )
    header = ["study", "metric", "objective", "best quantile", "its difference to the baseline", "as good as it"]
    return Table(header, rows)


def _folds(found: Sequence[Threshold], spec: ThresholdsComparison) -> list[Fold]:
    """Return a table per study: each quantile's difference to the baseline."""
    folds = []
    for study in dict.fromkeys(one.study for one in found):
        groups = {key: own for key, own in _groups(found).items() if key[0] == study}
        quantiles = sorted({one.quantile for own in groups.values() for one in own} - {ALL_TOKENS})
        header = ["metric", "objective", "seeds", *map(_percent, quantiles)]
        rows = []
        for (_, panel, curve), own in groups.items():
            cells = {one.quantile: one.to_baseline.text for one in own}
            seeds = min(one.seeds for one in own)
            rows.append(
                [f"{panel.label} ({panel.split})", curve, str(seeds), *(cells.get(one, "—") for one in quantiles)]
            )
        folds.append(Fold(f"{study}: differences to {spec.baseline}", [Table(header, rows)]))
    return folds


def _verdict(found: Sequence[Threshold], spec: ThresholdsComparison) -> str:
    """Return per side and objective, which quantiles are the best ones, or as good, in how many studies."""
    sentences = []
    groups = _groups(found)
    for split, side in SIDES.items():
        for curve in spec.families:
            own = [group for (_, panel, name), group in groups.items() if name == curve and panel.split == split]
            if not own:
                continue
            counts: dict[float, int] = {}
            for one in (one for group in own for one in group if one.is_as_good_as_best):
                counts[one.quantile] = counts.get(one.quantile, 0) + 1
            everywhere = [_percent(quantile) for quantile, count in sorted(counts.items()) if count == len(own)]
            share = f"in all {len(own)} comparisons" if len(own) > 1 else "in the only comparison"
            listed = f"{', '.join(everywhere)} {share}" if everywhere else "no quantile everywhere"
            sentences.append(f"{curve} {side}, best or not distinguishable from the best: {listed}.")
    return " ".join(sentences)


def _note(spec: ThresholdsComparison) -> str:
    return (
        f"100% is {spec.baseline}, which trains all tokens. Each quantile is taken at the setting that its study's "
        "report has chosen on the validation split: the learning rate may differ between quantiles. Differences are "
        f"paired, with {spec.confidence:.0%} bootstrap intervals over examples and seeds ({spec.bootstrap:,} "
        "resamples); a star marks an interval without 0. There is no correction for the number of comparisons: of "
        "several quantiles that are equally good, the best one by chance looks better than it is."
    )
