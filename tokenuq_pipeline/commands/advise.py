"""`tokenuq advise`: which objective a study should try, by the quantities of its own tables."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenuq_ml.control_characters import escaped
from tokenuq_ml.errors import InputError
from tokenuq_ml.redaction import redacted
from tokenuq_pipeline.commands.common import configuration, known_comparison, known_study
from tokenuq_pipeline.commands.json_output import add_json, print_json
from tokenuq_pipeline.commands.query import require_writable
from tokenuq_pipeline.runtime.paths import store_home

if TYPE_CHECKING:
    import polars as pl

    from tokenuq_ml.advice.advice import Advice
    from tokenuq_ml.advice.measured import Goal
    from tokenuq_ml.advice.quantities import Measured

GOAL_NAMES = ("in_distribution", "out_of_distribution")
"""The names of `advice.measured.GOALS`, which is not imported for the parser."""


def add_parser(commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "advise",
        help="advise which objective to try, by a study's own tables, with the evidence",
        description="Measures quantities of a study's token tables, none of which needs the truth, and applies a rule "
        "of thumb that is fitted on the cells of the phase diagram. Prints the rule, how often it is right in cells "
        "that it was not fitted on, the nearest cells, and studies of real data. The study needs its token tables "
        "only, no ablation.",
    )
    parser.add_argument(
        "--study", metavar="STUDY", help="a study whose token tables exist; without it, the rule and its evidence"
    )
    parser.add_argument(
        "--comparison",
        metavar="NAME",
        help="a comparison in the store, of kind phase_diagram or front, whose studies are the measured ones; default: "
        "the cells that ship with tokenuq",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="with --comparison and without --study: write its measured studies to a .csv file",
    )
    parser.add_argument(
        "--goal",
        choices=GOAL_NAMES,
        default=GOAL_NAMES[0],
        help="what shall fall below mle's, at no loss on the other side: the metric in distribution (default), or out "
        "of it",
    )
    add_json(parser, "print the advice as JSON", has_format=True)
    parser.set_defaults(function=advise_command)


def advise_command(options: argparse.Namespace) -> int:
    """Run `tokenuq advise`."""
    _check(options, store_home())
    from tokenuq_ml.advice.measured import CASES_FILE, CELLS_FILE, GOALS, SHIPPED, read_measured, write_measured

    home = store_home()
    measured = _of_comparison(options.comparison) if options.comparison else read_measured(SHIPPED / CELLS_FILE)
    if options.output:
        write_measured(measured, options.output)
        studies, rows = measured["study"].n_unique(), len(measured)
        counts = f"{studies} {'study' if studies == 1 else 'studies'}, {rows} row{'' if rows == 1 else 's'}"
        print(escaped(f"{options.output}: {counts}"))
        return 0
    quantities = _quantities(home, options.study) if options.study else {}
    cases = read_measured(SHIPPED / CASES_FILE)
    found = _advices(measured, cases, GOALS[options.goal], options.study, quantities)
    if options.format == "json":
        print_json(_as_json(options.study, quantities, found[0]))
    else:
        print(escaped(redacted(_as_text(options.study, quantities, found, measured))))
    return 0


def _check(options: argparse.Namespace, home: Path) -> None:
    """Reject options that do not go together.

    Raises:
        InputError: in one sentence.
    """
    if options.output and (options.study or not options.comparison):
        raise InputError("--output goes with --comparison, and not with --study")
    if not options.output:
        return
    if options.output.suffix != ".csv":
        raise InputError(f"--output {options.output}: name a file that ends in .csv")
    if not options.output.absolute().parent.is_dir():
        raise InputError(f"--output {options.output}: there is no folder {options.output.absolute().parent}")
    require_writable(options.output, home)


def _quantities(home: Path, study: str) -> "dict[str, Measured]":
    """Return the quantities of a study, which need not be configured.

    Raises:
        InputError: its tables are missing or damaged, or it is no study but a grid of studies.
    """
    from tokenuq_ml.advice.quantities import study_quantities

    try:
        return study_quantities(home, study)
    except InputError:
        known_study(configuration(), study)
        raise


def _of_comparison(name: str) -> "pl.DataFrame":
    """Return the measured studies of a comparison in the store, with their quantities.

    Raises:
        InputError: there is no such comparison, it is not made or damaged, or of a kind that advice does not read.
    """
    from tokenuq_ml.advice.measured import collected
    from tokenuq_ml.advice.outcomes import outcomes_in
    from tokenuq_pipeline.runtime.bucket_store import fetch, open_store
    from tokenuq_pipeline.runtime.repair import require_undamaged
    from tokenuq_pipeline.runtime.store_layout import COMPARISONS, comparison_path

    known_comparison(configuration(), name)
    store, asset = open_store(), f"{COMPARISONS}/{name}"
    require_undamaged(store, asset)
    if not store.is_complete(asset):
        raise InputError(f"{asset}: was never made; run `tokenuq run --comparison {name}`")
    fetch(store, asset, lambda path: path.endswith(".parquet"))
    return collected(outcomes_in(store.path(comparison_path(name))), store.home)


def rule_text(measured: "pl.DataFrame", cases: "pl.DataFrame", goal: "Goal") -> str:
    """Return what is printed without a study: the rule for a goal, and its evidence."""
    return _as_text(None, {}, _advices(measured, cases, goal), measured)


def _advices(
    measured: "pl.DataFrame",
    cases: "pl.DataFrame",
    goal: "Goal",
    study: str | None = None,
    quantities: "dict[str, Measured] | None" = None,
) -> "list[Advice | None]":
    """Return the advice for a goal, then that for the others."""
    from tokenuq_ml.advice.advice import advice
    from tokenuq_ml.advice.measured import GOALS

    goals = [goal, *(other for other in GOALS.values() if other != goal)]
    return [advice(measured, cases, one, study, quantities) for one in goals]


def _as_text(
    study: str | None, quantities: "dict[str, Measured]", found: "list[Advice | None]", measured: "pl.DataFrame"
) -> str:
    import polars as pl

    from tokenuq_ml.advice.advice import FEWEST_CELLS
    from tokenuq_pipeline.commands.advise_text import advice_text, quantities_table

    first, *others = [one for one in found if one is not None] or [None]
    if first is not None:
        return advice_text(first, others)
    count = measured.filter(pl.col("study") != study)["study"].n_unique() if study else measured["study"].n_unique()
    lines = [
        f"{study or 'advise'}: no advice, because a rule needs {FEWEST_CELLS} measured studies and there are {count}; "
        "name a phase diagram in the store with --comparison"
    ]
    if quantities:
        lines += [f"Quantities of {study}:", *(f"  {line}" for line in quantities_table(quantities))]
    return "\n".join(lines)


def _as_json(study: str | None, quantities: "dict[str, Measured]", found: "Advice | None") -> dict[str, Any]:
    """Return the advice as plain JSON values; `advice` is null if there is none."""
    measured = {name: one._asdict() for name, one in quantities.items()}
    if found is None:
        return {"study": study, "advice": None, "quantities": measured}
    return {
        "study": study,
        "goal": found.goal.name,
        "advice": found.choice,
        "quantities": measured,
        "evidence": _evidence(found),
    }


def _evidence(found: "Advice") -> dict[str, Any]:
    return {
        **_fitted(found.fitted),
        "ranges": found.ranges,
        "outside": found.outside,
        "uncertain": found.is_uncertain,
        "study_left_out": found.left_out,
        "nearest": [asdict(near) for near in found.nearest],
        "objectives": [
            {
                "family": one.family,
                "verdicts": one.verdicts,
                "mean_change": one.mean_change,
                "mean_ood_change": one.mean_ood_change,
                "choice": one.choice,
                **_fitted(one.fitted),
            }
            for one in found.families
        ],
        "cases": [{**asdict(case), "right": sorted(case.right), "is_right": case.is_right} for case in found.cases],
    }


def _fitted(fitted: Any) -> dict[str, Any]:
    return {
        "rule": asdict(fitted.rule),
        "majority": fitted.majority.above,
        "rule_is_better": fitted.is_better,
        "held_out": [{**one._asdict(), "p_value": one.p_value} for one in fitted.held_out],
    }
