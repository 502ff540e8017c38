"""What `tokenuq advise` prints: the advice first, then its evidence."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenuq_ml.advice.advice import Advice, Case, FamilyEvidence, FittedRule, NearCell
from tokenuq_ml.advice.held_out import HeldOut
from tokenuq_ml.advice.measured import BASELINE
from tokenuq_ml.advice.quantities import QUANTITIES, Measured
from tokenuq_ml.advice.verdicts import VERDICTS

NO_VALUE = "-"
PURPOSE = {
    "in_distribution": "lower the loss in distribution and not raise it out of distribution",
    "out_of_distribution": "lower the loss out of distribution and not raise it in distribution",
}
"""Goal -> in words."""


def advice_text(advice: Advice, others: Sequence[Advice] = ()) -> str:
    """Return advice with its evidence, in paragraphs; of advice for other goals, the answer."""
    paragraphs = [
        "\n".join((*_headline(advice), *map(_other_goal, others))),
        _titled(
            "The rule on measured studies that it was not fitted on", _held_out_table(advice.fitted, advice.goal.name)
        ),
    ]
    if advice.study:
        nearest = "Nearest measured studies, with the change against mle (less is better)"
        paragraphs += [
            _titled(f"Quantities of {advice.study}", quantities_table(advice.quantities, advice.ranges)),
            _titled(nearest, _nearest_lines(advice)),
        ]
    alone = "Each objective alone: verdicts in the measured studies, and its own rule"
    paragraphs.append(_titled(alone, _families_table(advice)))
    if advice.cases:
        paragraphs.append(_titled("Other studies, on which nothing was fitted", _case_lines(advice.cases)))
    return "\n\n".join(paragraphs)


def _titled(title: str, lines: Iterable[str]) -> str:
    return "\n".join((f"{title}:", *(f"  {line}" for line in lines)))


def _other_goal(advice: Advice) -> str:
    return f"to {PURPOSE[advice.goal.name]} (--goal {advice.goal.name}): {_answer(advice)}"


def _answer(advice: Advice) -> str:
    if advice.choice is None:
        return str(advice.fitted.applied)
    return "train with mle" if advice.choice == BASELINE else f"try {advice.choice}"


def _headline(advice: Advice) -> list[str]:
    fitted, rule = advice.fitted, advice.fitted.rule
    wanted = f"to {PURPOSE[advice.goal.name]}"
    found = [f"{advice.study}: {_answer(advice)}, {wanted}" if advice.study else f"{wanted}:"]
    if not fitted.is_better:
        found.append(
            f"no rule is better than the same answer for all data: {fitted.majority.above} is right in "
            f"{fitted.majority_right} of {fitted.cells} measured studies, and {_why_not(fitted)}"
        )
    else:
        assert rule.quantity is not None
        found.append(f"rule, from {fitted.cells} measured studies: {rule}")
        if advice.quantities:
            found.append(f"  {rule.quantity} of {advice.study} is {_with_interval(advice.quantities[rule.quantity])}")
    if advice.is_uncertain:
        found.append("  the interval contains the threshold: the rule does not decide between the two here")
    if fitted.applied.quantity in advice.outside:
        found.append("  no measured study has as small or as large a value: the rule is extrapolated")
    elif advice.outside:
        found.append(f"  {advice.study} is outside of the range of the measured studies in {', '.join(advice.outside)}")
    return found


def _why_not(fitted: FittedRule) -> str:
    if fitted.rule.quantity is None:
        return "no threshold on any quantity is right in more"
    by_cell, *by_knob = fitted.held_out
    failing = next((one for one in by_knob if one.right < one.majority_right), by_cell)
    if by_cell.right <= by_cell.majority_right:
        failing = by_cell
    return (
        f"the best rule ({fitted.rule}) is right in {failing.right} when each {failing.left_out} is left out of its fit"
    )


def _held_out_table(fitted: FittedRule, goal: str) -> list[str]:
    header = ("left out", "folds", "rule right", "majority right", "p", "gain of rule", "of majority", "best possible")
    rows = [
        (
            f"each {one.left_out}",
            str(one.folds),
            f"{one.right} of {one.cells}",
            f"{one.majority_right} of {one.cells}",
            f"{one.p_value:.2g}",
            *(f"{gain:.4f}" for gain in (one.gain, one.majority_gain, one.best_gain)),
        )
        for one in fitted.held_out
    ]
    return [
        *aligned([header, *rows]),
        f"right: objectives that {PURPOSE[goal]}, against mle and by their intervals; mle where there is none.",
        "p: sign test of the studies in which rule or majority alone is right. gain: mean fall of the metric, in nats.",
    ]


def quantities_table(
    quantities: Mapping[str, Measured], ranges: Mapping[str, tuple[float, float]] | None = None
) -> list[str]:
    """Return the quantities of a study, with their range in the measured studies if there are any."""
    header = ("quantity", "value", "interval", "measured studies", "meaning")
    rows = []
    for name, found in quantities.items():
        value, _, interval = _with_interval(found).partition(" ")
        ends = (ranges or {}).get(name)
        known = f"{ends[0]:.3g} to {ends[1]:.3g}" if ends else NO_VALUE
        unit = QUANTITIES[name].unit
        rows.append((name, value, interval, known, QUANTITIES[name].meaning + (f" ({unit})" if unit else "")))
    return aligned([header, *rows])


def _with_interval(found: Measured) -> str:
    if found.value is None:
        return NO_VALUE
    if found.low is None or found.high is None:
        return f"{found.value:.3g}"
    return f"{found.value:.3g} [{found.low:.3g}, {found.high:.3g}]"


def _nearest_lines(advice: Advice) -> list[str]:
    lines = []
    for near in advice.nearest:
        knobs = ", ".join(f"{knob} {value:g}" for knob, value in near.knobs.items())
        lines.append(f"{near.study}{f' ({knobs})' if knobs else ''}, distance {near.distance:.2f}")
        lines += (f"  {line}" for line in _change_lines(near))
    return lines


def _change_lines(measured: NearCell | Case) -> list[str]:
    header = ("objective", "verdict", "in distribution", "out of distribution", "metric", "seeds")
    rows = [
        (
            str(row["family"]),
            str(row["verdict"]),
            _change(row, "change"),
            _change(row, "ood_change"),
            str(row["metric"]),
            str(row["seeds"]),
        )
        for row in measured.rows
    ]
    return aligned([header, *rows])


def _change(row: Mapping[str, Any], name: str) -> str:
    return f"{row[name]:+.4f} [{row[f'{name}_low']:+.4f}, {row[f'{name}_high']:+.4f}]"


def _families_table(advice: Advice) -> list[str]:
    changes = ("mean change", "mean change out")
    header = ("objective", *VERDICTS, *changes, "best rule", "rule right", "majority right", "followed")
    last = (f"for {advice.study}",) if advice.study else ()
    rows = [(*_family_row(one), *((one.choice,) if one.choice else ())) for one in advice.families]
    return aligned([(*header, *last), *rows])


def _family_row(one: FamilyEvidence) -> tuple[str, ...]:
    fitted = one.fitted
    by_cell: HeldOut | None = fitted.held_out[0] if fitted.held_out else None
    right = (
        [f"{count} of {by_cell.cells}" for count in (by_cell.right, by_cell.majority_right)] if by_cell else ["", ""]
    )
    counts = (str(one.verdicts.get(name, 0)) for name in VERDICTS)
    changes = (f"{change:+.4f}" for change in (one.mean_change, one.mean_ood_change))
    followed = NO_VALUE if fitted.rule.quantity is None else "yes" if fitted.is_better else f"no, {fitted.majority}"
    return (one.family, *counts, *changes, str(fitted.rule), *right, followed)


def _case_lines(cases: Sequence[Case]) -> list[str]:
    judged = [case for case in cases if case.is_right is not None]
    lines = [f"the advice is right in {sum(case.is_right is True for case in judged)} of {len(judged)}"]
    for case in cases:
        said = (
            "no advice: a quantity or the objective is not measured" if case.choice is None else f"advice {case.choice}"
        )
        lines.append(f"{case.study}: {said}; right {', '.join(sorted(case.right))}")
        lines += (f"  {line}" for line in _change_lines(case))
    return lines


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
