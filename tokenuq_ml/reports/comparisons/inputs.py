"""What a comparison reads: the tables of its studies, by the names that the request gives them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import polars as pl

from tokenuq_ml.config import AblationSpec, StudySpec
from tokenuq_ml.config.comparison import ComparisonSpec
from tokenuq_ml.errors import InputError
from tokenuq_ml.tables.parquet import read_table

AnyComparison = TypeVar("AnyComparison", bound=ComparisonSpec)
REPORT = "ablation_report"


@dataclass(frozen=True)
class ComparisonInputs(Generic[AnyComparison]):
    """The inputs of one comparison.

    Attributes:
        spec: the comparison, with the options of its kind.
        studies: its studies by name, in its order.
        ablations: study -> the ablations that it reads, by name, in the study's order. With `OPTIONAL_ABLATIONS`, only
            those that were made.
        every_ablation: the same, also those that were never made.
        paths: name of an input -> its folder: `<study>/<table>`, `<study>/<table>/<row>`, `<study>/ablation_report`.
        folder: of the page, for plots.
        knobs: study -> the knobs of its language that its dataset changes; empty for kinds that do not read them.
    """

    spec: AnyComparison
    studies: Mapping[str, StudySpec]
    ablations: Mapping[str, Mapping[str, AblationSpec]]
    every_ablation: Mapping[str, Mapping[str, AblationSpec]]
    paths: Mapping[str, str]
    folder: Path
    knobs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def has(self, study: str, table: str, row: str = "") -> bool:
        """Return whether the comparison reads a table of a study, or of one of its rows."""
        return _name(study, table, row) in self.paths

    def read(self, study: str, table: str, row: str = "") -> pl.DataFrame:
        """Return a table of a study, or of one row of its report: an ablation, `base` or `teacher`."""
        return read_table(self.paths[_name(study, table, row)])

    def scan(self, study: str, table: str, row: str = "") -> pl.LazyFrame:
        """Return the same table lazily: for the token tables, which may be larger than the memory."""
        return pl.scan_parquet(Path(self.paths[_name(study, table, row)], "*.parquet"), hive_partitioning=False)

    def report_rows(self, study: str, table: str) -> list[dict]:
        """Return a result table of the study's report, such as `family_table`.

        Raises:
            InputError: the report has no such table.
        """
        path = Path(self.paths[_name(study, REPORT)], f"{table}.json")
        if not path.is_file():
            raise InputError(f"{path}: missing; run the study {study} again, whose report holds it")
        rows: list[dict] = json.loads(path.read_text(encoding="utf-8"))
        return rows


def _name(study: str, table: str, row: str = "") -> str:
    return "/".join(filter(None, (study, table, row)))
