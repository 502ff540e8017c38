"""Kind `front`: families in distribution against out of distribution, and who is on the Pareto front of every study.

A family is dominated if another one is better both in and out of distribution, each by a paired difference whose
interval does not contain 0. What is left is the front: with few examples or seeds, most families are on it. So the
front of the means, which no interval is asked for, is told too.
"""

from collections.abc import Sequence

from tokenuq_ml.config.comparison import FrontComparison
from tokenuq_ml.reports.comparisons.front_plot import draw_planes
from tokenuq_ml.reports.comparisons.front_points import Point, study_points
from tokenuq_ml.reports.comparisons.inputs import ComparisonInputs
from tokenuq_ml.reports.comparisons.parts import Findings, Fold, Picture, Section, Table, Text
from tokenuq_ml.reports.comparisons.study_families import StudyFamilies

PLOT, BENCHMARK_PLOT = "front.png", "front_benchmarks.png"
WORDS = {"better": "better", "worse": "worse", "same": "~"}
NAMES_IN_VERDICT = 6


def compare(inputs: ComparisonInputs[FrontComparison]) -> Findings:
    """Return the planes of all studies, their fronts, and which families are on every front."""
    points = [point for study in inputs.studies for point in study_points(StudyFamilies(inputs, study))]
    main = [point for point in points if not point.plane.is_benchmark]
    benchmarks = [point for point in points if point.plane.is_benchmark]
    verdict = front_verdict(main, inputs.spec.baseline)
    sections = [Section("The front of every study", _overview(main, inputs))]
    plots = {}
    for some, file, heading in (
        (main, PLOT, "In distribution against out of distribution"),
        (benchmarks, BENCHMARK_PLOT, "Benchmarks in distribution against benchmarks out of distribution"),
    ):
        if some:
            draw_planes(some, inputs.folder / file)
            plots[heading] = file
            sections.append(Section(heading, _planes(some, file, heading, inputs.spec)))
    sections.append(Section("How to read it", [Text(_note(inputs.spec), "dim")]))
    return Findings(
        verdict,
        sections,
        {"front": [point.row() for point in points]},
        {"points": len(points), "on_every_front": " ".join(on_every_front(main)) or "none"},
        plots,
    )


def on_every_front(points: Sequence[Point], of_means: bool = False) -> list[str]:
    """Return the families that are on every front, in the order of the points.

    Args:
        points: of all planes.
        of_means: on the fronts of the means.
    """
    planes = {(point.study, point.plane) for point in points}
    found: dict[str, set] = {}
    for point in points:
        if point.is_on_front_of_means if of_means else point.is_on_front:
            found.setdefault(point.family, set()).add((point.study, point.plane))
    return [family for family, own in found.items() if own == planes]


def front_verdict(points: Sequence[Point], baseline: str) -> str:
    """Return which families are on the front everywhere, and which beat the baseline at no loss out of distribution."""
    if not points:
        return "No study has a metric both in and out of distribution: give the studies a dataset in 'ood'."
    count = len({(point.study, point.plane) for point in points})
    everywhere = on_every_front(points)
    fronts = f"all {count} fronts" if count > 1 else "the front"
    if everywhere:
        also = "" if baseline in everywhere else f"; {baseline} is not"
        sentence = f"On {fronts}: {_named(everywhere)}{also}."
    else:
        sentence = f"No family is on {fronts}."
    means = f"By means alone: {_named(on_every_front(points, of_means=True)) or 'none'}."
    return f"{sentence} {means} {_gains(points, baseline)}"


def _gains(points: Sequence[Point], baseline: str) -> str:
    """Return who is better in one direction at no loss in the other."""
    parts = []
    for first, second, where, elsewhere in (
        ("inside", "outside", "in distribution", "out of distribution"),
        ("outside", "inside", "out of distribution", "in distribution"),
    ):
        counts: dict[str, int] = {}
        for point in points:
            is_better = getattr(point, first).verdict == "better"
            if point.family != baseline and is_better and getattr(point, second).verdict != "worse":
                counts[point.family] = counts.get(point.family, 0) + 1
        listed = [f"{family} ({count})" for family, count in sorted(counts.items(), key=lambda item: -item[1])]
        parts.append(f"Better than {baseline} {where} at no loss {elsewhere}: {_named(listed) or 'none'}.")
    return " ".join(parts)


def _named(names: Sequence[str]) -> str:
    more = len(names) - NAMES_IN_VERDICT
    return ", ".join(names[:NAMES_IN_VERDICT]) + (f" and {more} more" if more > 0 else "")


def _overview(points: Sequence[Point], inputs: ComparisonInputs[FrontComparison]) -> list[Table | Text]:
    """Return one row per family: in each plane, what it is in and out of distribution, and whether on the front."""
    planes = list(dict.fromkeys((point.study, point.plane) for point in points))
    by_family: dict[str, dict] = {}
    for point in points:
        by_family.setdefault(point.family, {})[point.study, point.plane] = point
    rows = []
    for family, own in by_family.items():
        cells = [_overview_cell(own.get(plane), inputs.spec.baseline) for plane in planes]
        fronts = sum(point.is_on_front for point in own.values())
        means = sum(point.is_on_front_of_means for point in own.values())
        rows.append([family, f"{fronts} of {len(own)}", f"{means} of {len(own)}", *cells])
    rows.sort(key=lambda row: [-int(row[column].split()[0]) for column in (1, 2)])
    header = [
        "family",
        "on the front",
        "of the means",
        *(f"{study}: {plane.outside.dataset}" for study, plane in planes),
    ]
    note = "Per study and out-of-distribution dataset: in distribution / out of distribution, against "
    return [
        Table(header, rows),
        Text(f"{note}{inputs.spec.baseline}; ● on the front, ◆ of the means too; ~ no difference shown.", "dim"),
    ]


def _overview_cell(point: Point | None, baseline: str) -> str:
    if point is None:
        return "—"
    mark = "◆ " if point.is_on_front_of_means else "● " if point.is_on_front else ""
    if point.family == baseline:
        return f"{mark}baseline"
    return f"{mark}{WORDS[point.inside.verdict]} / {WORDS[point.outside.verdict]}"


def _planes(points: Sequence[Point], file: str, caption: str, spec: FrontComparison) -> list[Picture | Fold]:
    """Return the picture, and a table per plane in a fold."""
    meaning = (
        f"Differences to {spec.baseline}, drawn so that up and right is better; bars are {spec.confidence:.0%} "
        "intervals over examples and seeds. Rings are families on the front, the dotted line is the front of the "
        f"means; in the shaded quarter a family is no worse than {spec.baseline} in either direction."
    )
    parts: list[Picture | Fold] = [Picture(file, caption, meaning)]
    for study, plane in dict.fromkeys((point.study, point.plane) for point in points):
        own = [point for point in points if (point.study, point.plane) == (study, plane)]
        header = ["family", "seeds", f"{plane.inside.label} (test)", f"{plane.outside.label} (ood)", "dominated by"]
        rows = [
            [
                f"{point.family} ({point.setting})" if point.setting else point.family,
                str(point.seeds),
                "" if point.family == spec.baseline else point.inside.text,
                "" if point.family == spec.baseline else point.outside.text,
                _named(point.dominated_by) or "— (front)",
            ]
            for point in own
        ]
        parts.append(Fold(f"{study}: {plane.inside.label} against {plane.outside.label}", [Table(header, rows)]))
    return parts


def _note(spec: FrontComparison) -> str:
    return (
        f"Each family is taken at the setting that its study's report has chosen on the validation split. Differences "
        f"to {spec.baseline} are paired: on the same examples, and by seed where seeds are the same, with "
        f"{spec.confidence:.0%} bootstrap intervals over examples and seeds ({spec.bootstrap:,} resamples). A star "
        "marks an interval without 0. With one seed, an interval does not cover the variance over seeds; with two to "
        "five it is too narrow where seeds differ more than examples do. There is no correction for the number of "
        "comparisons. A family that is not dominated need not be better than others: its intervals may only be wide. "
        "The front of the means leaves intervals out, so that chance decides it where families differ little."
    )
