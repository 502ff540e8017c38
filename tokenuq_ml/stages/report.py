"""Child process of `<study>/ablation_report`: builds the report page from the tables.

Decides which sections the page has and which tables each of them reads; `reports/` renders them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import polars as pl

from tokenuq_ml.config import REFERENCE_ROWS, TEACHER_ROW, AblationSpec, StudySpec
from tokenuq_ml.config.families import settings_of
from tokenuq_ml.costs.flops import Architecture
from tokenuq_ml.costs.record import FILE as COSTS_FILE
from tokenuq_ml.costs.record import CostRecord
from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation.metrics import IS_OF_SLOT
from tokenuq_ml.reports import family_sections, html, sections, truth_section
from tokenuq_ml.reports.ablation_table import table_rows
from tokenuq_ml.reports.costs_table import costs_section
from tokenuq_ml.reports.explorer_data import ExplorerTables, Students
from tokenuq_ml.reports.explorer_examples import prompts_of
from tokenuq_ml.reports.family_table import Comparison, comparisons, families_of, family_rows, rows_of, verdict
from tokenuq_ml.reports.findings import markdown_summary, sentences
from tokenuq_ml.reports.pairs import picker
from tokenuq_ml.reports.settings import compared, setting_rows
from tokenuq_ml.stages import runner
from tokenuq_ml.stages.correlate import HEADLINES
from tokenuq_ml.stages.rank_against_truth import RANKING
from tokenuq_ml.stages.request import AssetRequest, AssetResult, StageReporter, StageRequest
from tokenuq_ml.tables.parquet import content_of, read_table
from tokenuq_ml.tables.schemas import TOKEN_KEY
from tokenuq_ml.tensor_digest import joined_digest

PAGE = "report.html"
PLOTS = {
    "In distribution against OOD": "id_vs_ood.png",
    "Training curves": "training_curves.png",
    "Loss against BALD": "loss_vs_bald.png",
    "Held-out loss over the quantile": "quantile_curves.png",
    "Overlap of selections": "selection_overlap.png",
    "Divergence from the truth": truth_section.DIVERGENCE_PLOT,
    "Scores against the truth over the teacher's training": truth_section.RANKING_PLOT,
}
"""Plots that the UI shows next to the page, if the study has them."""


def run(request: StageRequest, reporter: StageReporter) -> None:
    """Fill the output `report` with the page, the result tables as CSV and JSON, and the plots."""
    report = _Report(request)
    _, cost_rows = report.costs
    _write_page(report)
    _write_rows(report, cost_rows)
    reporter.info(f"{report.study.name}: {verdict(report.family_rows)}")
    reporter.done(
        AssetResult(
            stage="ablation_report",
            data_version=_data_version(report),
            metrics=_metrics(report),
            plots={title: f"report/{file}" for title, file in PLOTS.items() if (report.folder / file).is_file()},
        )
    )


@dataclass(frozen=True)
class _Report:
    """The inputs of one report, and the rows that several of its parts share."""

    request: StageRequest

    @property
    def asset(self) -> AssetRequest:
        return self.request.assets["ablation_report"]

    @property
    def folder(self) -> Path:
        return Path(self.asset.outputs["report"])

    @cached_property
    def study(self) -> StudySpec:
        return StudySpec(**self.asset.fields["study"])

    @cached_property
    def ablations(self) -> dict[str, AblationSpec]:
        return {name: AblationSpec(**fields) for name, fields in self.asset.fields["ablations"].items()}

    @property
    def models(self) -> tuple[str, ...]:
        """The reference models and the students."""
        return (*REFERENCE_ROWS, *self.ablations)

    @cached_property
    def first_members(self) -> dict[str, str]:
        """Family -> its first ablation."""
        return {family: names[0] for family, names in families_of(self.compared).items()}

    @cached_property
    def setting_rows(self) -> list[dict]:
        """One row per setting of the families that were trained at several."""
        names = [
            name
            for settings in settings_of(self.ablations).values()
            if len(settings) > 1
            for name in chain(*settings.values())
        ]
        losses = {name: self.read(f"validation_losses/{name}") for name in names}
        return setting_rows(self.ablations, losses, self.model_rows, self.study.train)

    @cached_property
    def compared(self) -> dict[str, AblationSpec]:
        """The ablations that the report compares: each family at its best setting."""
        return compared(self.ablations, self.setting_rows)

    def read(self, table: str) -> pl.DataFrame:
        return read_table(self.request.inputs[table])

    def scan(self, table: str) -> pl.LazyFrame:
        return pl.scan_parquet(Path(self.request.inputs[table], "*.parquet"))

    @cached_property
    def tokens(self) -> pl.LazyFrame:
        """The two token tables joined. Lazy, since a page shows a few hundred examples of a large study."""
        return self.scan("token_losses").join(self.scan("token_uncertainty"), on=TOKEN_KEY)

    @cached_property
    def selections(self) -> dict[str, pl.LazyFrame]:
        return {name: self.scan(f"selections/{name}") for name in self.compared}

    @cached_property
    def datasets(self) -> dict[str, pl.DataFrame]:
        return {name: self.read(f"examples/{name}") for name in (self.study.dataset, *self.study.ood)}

    @cached_property
    def evaluations(self) -> dict[str, pl.DataFrame]:
        return {name: self.read(f"evaluations/{name}") for name in self.models}

    @cached_property
    def examples(self) -> dict[str, pl.DataFrame]:
        return {name: self.read(f"evaluation_examples/{name}") for name in self.models}

    @cached_property
    def model_rows(self) -> list[dict]:
        return table_rows({name: rows.filter(~IS_OF_SLOT) for name, rows in self.evaluations.items()})

    @cached_property
    def comparisons(self) -> list[Comparison]:
        return list(comparisons(self.model_rows, self.examples, self.compared, self.study.evaluation))

    @cached_property
    def family_rows(self) -> list[dict]:
        return rows_of(self.comparisons, self.compared)

    @cached_property
    def slot_rows(self) -> list[dict]:
        """One row per family and metric of a slot; none without a known truth."""
        of_models = table_rows({name: rows.filter(IS_OF_SLOT) for name, rows in self.evaluations.items()})
        return family_rows(of_models, self.examples, self.compared, self.study.evaluation)

    @property
    def candidates(self) -> pl.DataFrame | None:
        """The teachers that were tried; None if one was trained."""
        return self.read("teacher_candidates") if self.study.teacher_sweep else None

    @cached_property
    def costs(self) -> tuple[str, dict[str, list[dict]]]:
        """The costs section, and its rows."""
        return _costs(self.request, self.compared)


def _write_page(report: _Report) -> None:
    """Write `report.html`; sections that have nothing to show are left out."""
    study, ablations = report.study, report.ablations
    text = html.page(
        f"Ablation report: {study.name}",
        f"{study.model} on {study.dataset}, {len(ablations)} ablations in {len(report.first_members)} families; "
        "losses in nats",
        [(heading, content) for heading, content in _sections(report).items() if content is not None],
    )
    (report.folder / PAGE).write_text(text, encoding="utf-8")


def _sections(report: _Report) -> dict[str, str | None]:
    """Return heading -> content, in the order of the page; plots are written to the folder."""
    study, ablations, families, folder = report.study, report.compared, report.family_rows, report.folder
    tried = report.setting_rows
    results = family_sections.results(families, report.model_rows, report.ablations, study.evaluation, tried)
    logs = {TEACHER_ROW: TEACHER_ROW} | report.first_members
    compared = {name: report.selections[name] for name in family_sections.compared_selections(ablations)}
    costs, _ = report.costs
    title = f"{study.name}: {study.model} on {study.dataset}"
    return {
        "What was found": html.verdict(sentences(families)) + html.summary_to_paste(markdown_summary(title, families)),
        "Ablations": results + sections.shared_questions(report.datasets[study.dataset]),
        "Two families": picker(report.comparisons) if len(families) > 1 else None,
        "In distribution against out of distribution" if study.ood else "Training": sections.planes(
            families, {family: report.read(f"training_log/{name}") for family, name in logs.items()}, folder
        ),
        "How many tokens to select": family_sections.quantiles(families, ablations, folder),
        "Do selections take the same tokens?": family_sections.overlap(ablations, compared, folder),
        "Is the loss a proxy of epistemic uncertainty?": sections.correlations(
            report.read("uncertainty_analysis"),
            HEADLINES.values(),
            report.tokens,
            _bald_reference(report.request),
            folder,
        ),
        "What is left to learn?": (
            truth_section.truth(families, report.slot_rows, report.read(RANKING), folder)
            if RANKING in report.request.inputs
            else None
        ),
        "The curriculum that selection makes": sections.curricula(ablations, report.read, folder),
        "Tokens": sections.token_explorer(_explorer_tables(report)),
        "What it costs": costs,
        "What was run": sections.settings(study, ablations, report.candidates),
    }


def _explorer_tables(report: _Report) -> ExplorerTables:
    losses = {name: report.scan(f"evaluation_tokens/{name}") for name in report.compared}
    return ExplorerTables(
        report.tokens,
        report.scan("token_alternatives"),
        prompts_of(report.datasets.values()),
        Students(losses, report.selections),
    )


def _bald_reference(request: StageRequest) -> pl.DataFrame:
    folder = Path(request.inputs["bald_reference"])
    if not folder.is_dir():
        raise InputError(
            f"{folder}: missing; {request.study}/token_uncertainty was made by an earlier version: materialise it again"
        )
    return read_table(folder)


def _costs(request: StageRequest, ablations: Mapping[str, AblationSpec]) -> tuple[str, dict[str, list[dict]]]:
    records = {}
    for name in ablations:
        path = Path(request.inputs[f"costs/{name}"], COSTS_FILE)
        # A process that resumed after the last step measured no costs.
        if path.exists():
            records[name] = CostRecord.read(path)
    try:
        architecture = Architecture.from_config(request.inputs["model"])
    except InputError as error:
        return html.paragraph(f"No costs are shown: {error}."), {}
    content, rows = costs_section(records, architecture, {name: spec.family for name, spec in ablations.items()})
    growing = [name for name, spec in ablations.items() if spec.rank_growth]
    if growing:
        content += html.paragraph(
            f"The growing LoRA rank of {', '.join(growing)} saves no operations: all ranks are computed from the "
            "start, and those above the active rank are masked. FLOPs are those of the final rank."
        )
    return content, rows


def _write_rows(report: _Report, cost_rows: dict[str, list[dict]]) -> None:
    """Write the result tables as JSON and CSV, and the costs as JSON."""
    tables = {"ablation_table": report.model_rows, "family_table": report.family_rows}
    optional = {"setting_table": report.setting_rows, "slot_table": report.slot_rows}
    tables |= {name: rows for name, rows in optional.items() if rows}
    for name, rows in tables.items():
        (report.folder / f"{name}.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
        plain = [
            {key: "; ".join(value) if isinstance(value, list) else value for key, value in row.items()} for row in rows
        ]
        pl.DataFrame(plain, infer_schema_length=None).write_csv(report.folder / f"{name}.csv")
    (report.folder / "costs.json").write_text(json.dumps(cost_rows, indent=1), encoding="utf-8")


def _data_version(report: _Report) -> str:
    """Hash the fields and the content of the tables, without costs, which are timings.

    The model is left out too: it decides the content of the tables.
    """
    excluded = {"model", *(f"costs/{name}" for name in report.ablations)}
    inputs = sorted(report.request.inputs.items())
    return joined_digest(report.asset.spec_hash, *(content_of(path) for name, path in inputs if name not in excluded))


def _metrics(report: _Report) -> dict[str, float | int | str]:
    families = report.family_rows
    return {
        "models": len(report.models),
        "families": len(report.first_members),
        "metrics": len({(row["dataset"], row["metric"]) for row in report.model_rows}),
        "verdict": verdict(families),
        "page_kilobytes": round((report.folder / PAGE).stat().st_size / 1e3),
        **{f"setting_{row['family']}": row["trained_with"] for row in report.setting_rows if row["chosen"]},
        **{f"loss_{row['dataset']}_{row['family']}": row["value"] for row in families if row["metric"] == "loss"},
    }


if __name__ == "__main__":
    runner.main(run)
