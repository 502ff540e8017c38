"""Measured studies: how families of ablations differ from `mle`, with the quantities of each study's own tables.

Two files ship with the package: the cells of the phase diagram, on which rules are fitted, and studies of real data,
which are quoted as cases. `collected` makes them from the tables of a comparison, and never a person. Does not import
torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import polars as pl

from tokenuq_ml.advice.quantities import QUANTITIES, study_quantities
from tokenuq_ml.advice.rule import Cell
from tokenuq_ml.advice.verdicts import BEATS, verdict_of
from tokenuq_ml.atomic_files import atomic_write
from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation.paired import Estimate

BASELINE = "mle"
KNOBS, MARGINS = ("noise", "zipf"), ("margin", "ood_margin")
SHIPPED = Path(__file__).parent / "measured"
CELLS_FILE, CASES_FILE = "phase_cells.csv", "study_cases.csv"
DIGITS = 6
"""Significant digits that are kept."""

OUTCOMES = pl.Schema(
    {
        "study": pl.String,
        "noise": pl.Float64,
        "zipf": pl.Float64,
        "family": pl.String,
        "seeds": pl.Int64,
        "metric": pl.String,
        "change": pl.Float64,
        "change_low": pl.Float64,
        "change_high": pl.Float64,
        "ood_change": pl.Float64,
        "ood_change_low": pl.Float64,
        "ood_change_high": pl.Float64,
        "margin": pl.Float64,
        "ood_margin": pl.Float64,
    }
)
"""What a comparison says of a family of a study. `change` is its metric minus that of `mle`, in distribution; `metric`
is `true_kl` where the truth is known, else `loss`. Margins count as no difference. Knobs and margins are null for
studies that are no cell of a grid."""
MEASURED = pl.Schema({**OUTCOMES, **dict.fromkeys(QUANTITIES, pl.Float64())})
"""The columns of a file of measured studies: one row per study and family."""


class Goal(NamedTuple):
    """What is wanted of an objective: a lower metric on one side, and no loss on the other."""

    name: str
    wanted: str
    kept: str
    """Prefixes of columns: nothing for in distribution, `ood_` for out of it."""

    def verdict(self, row: Mapping[str, float]) -> str:
        """Return what a row of measured studies says of its family."""
        wanted, kept = (self._change(row, prefix) for prefix in (self.wanted, self.kept))
        return verdict_of(wanted, kept, row[f"{self.wanted}margin"] or 0.0, row[f"{self.kept}margin"])

    def change(self, row: Mapping[str, float]) -> float:
        """Return the change that is wanted to be below 0."""
        return self._change(row, self.wanted).value

    def _change(self, row: Mapping[str, float], prefix: str) -> Estimate:
        return Estimate(*(row[f"{prefix}change{end}"] for end in ("", "_low", "_high")))


GOALS = {
    goal.name: goal
    for goal in (
        Goal("in_distribution", "", "ood_"),
        Goal("out_of_distribution", "ood_", ""),
    )
}


def read_measured(file: Path) -> pl.DataFrame:
    """Return a file that `write_measured` wrote; no rows if there is none.

    Raises:
        InputError: it has other columns, or something that is no number.
    """
    if not file.exists():
        return pl.DataFrame(schema=MEASURED)
    try:
        table = pl.read_csv(file, schema_overrides=MEASURED)
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read: {str(error).splitlines()[0]}; make it again") from None
    if table.columns != list(MEASURED):
        other = set(table.columns) ^ set(MEASURED)
        raise InputError(f"{file}: has other columns than this version ({', '.join(sorted(other))}); make it again")
    return table


def write_measured(table: pl.DataFrame, file: Path) -> None:
    """Write measured studies, sorted by study and family, with DIGITS significant digits."""
    floats = [name for name, kind in MEASURED.items() if kind == pl.Float64]
    rounded = table.select(*MEASURED).cast(MEASURED).with_columns(pl.col(floats).round_sig_figs(DIGITS))
    with atomic_write(file, durable=False) as writing:
        rounded.sort("study", "family").write_csv(writing)


def collected(outcomes: pl.DataFrame, home: str | Path | None) -> pl.DataFrame:
    """Return measured studies: the outcomes that a comparison found, with each study's quantities from the store.

    Args:
        outcomes: columns `OUTCOMES`.
        home: the store that has the token tables of the studies.

    Raises:
        InputError: a study's token tables are missing.
    """
    studies = sorted(outcomes["study"].unique())
    found = [{"study": study, **_values(study, home)} for study in studies]
    quantities = pl.DataFrame(found, schema={"study": pl.String, **dict.fromkeys(QUANTITIES, pl.Float64)})
    return outcomes.select(*OUTCOMES).cast(OUTCOMES).join(quantities, on="study").select(*MEASURED)


def _values(study: str, home: str | Path | None) -> dict[str, float | None]:
    return {name: found.value for name, found in study_quantities(home, study, intervals=None).items()}


def families_of(table: pl.DataFrame) -> list[str]:
    """Return the families of measured studies, without the baseline."""
    return [family for family in sorted(table["family"].unique()) if family != BASELINE]


def cells_of(table: pl.DataFrame, goal: Goal) -> list[Cell]:
    """Return each study as a cell whose choices are its families and `mle`.

    A family is right if it beats `mle`. `mle` is right where no family does. The gain of a right family is the fall of
    the metric that is wanted; a wrong one is credited with no fall.
    """
    groups = table.sort("study", "family").partition_by("study", maintain_order=True)
    return [_cell(rows, goal) for rows in groups]


def family_cells(table: pl.DataFrame, family: str, goal: Goal) -> list[Cell]:
    """Return the studies that have one family, as cells whose choices are that family and `mle`."""
    return cells_of(table.filter(pl.col("family") == family), goal)


def _cell(rows: pl.DataFrame, goal: Goal) -> Cell:
    first = rows.row(0, named=True)
    right, gains = set(), {BASELINE: 0.0}
    for row in rows.iter_rows(named=True):
        if row["family"] == BASELINE:
            continue
        beats = goal.verdict(row) == BEATS
        if beats:
            right.add(row["family"])
        gains[row["family"]] = -goal.change(row) if beats else min(0.0, -goal.change(row))
    return Cell(
        first["study"],
        {knob: first[knob] for knob in KNOBS if first[knob] is not None},
        {name: first[name] for name in QUANTITIES},
        frozenset(right or {BASELINE}),
        gains,
    )
