"""Child process of `<study>/ablation_report`: puts the page together from the tables.

Knows which sections there are and which tables each reads; what they say is in `reports/`.
"""

import json
from pathlib import Path

import polars as pl

from tokenuq_ml.config import REFERENCE_ROWS, TEACHER_ROW, AblationSpec, StudySpec
from tokenuq_ml.costs.flops import Architecture
from tokenuq_ml.costs.record import FILE as COSTS_FILE
from tokenuq_ml.costs.record import CostRecord
from tokenuq_ml.errors import InputError
from tokenuq_ml.reports import comparison, html, sections
from tokenuq_ml.reports.ablation_table import table_rows
from tokenuq_ml.reports.costs_table import costs_section
from tokenuq_ml.reports.explorer import Students
from tokenuq_ml.reports.family_table import families_of, family_rows, verdict
from tokenuq_ml.stages import runner
from tokenuq_ml.stages.correlate import HEADLINES
from tokenuq_ml.stages.request import AssetResult, StageReporter, StageRequest
from tokenuq_ml.tables.parquet import content_of, read_table
from tokenuq_ml.tables.schemas import TOKEN_KEY
from tokenuq_ml.tensor_digest import joined_digest

PLOTS = {
    "In distribution against OOD": "id_vs_ood.png",
    "Training curves": "training_curves.png",
    "Loss against BALD": "loss_vs_bald.png",
    "Held-out loss over the quantile": "quantile_curves.png",
    "Overlap of selections": "selection_overlap.png",
}
"""What the UI shows beside the page, where the study has it."""


def run(request: StageRequest, reporter: StageReporter) -> None:
    """Fills the output `report` with the page, the tables of models and families as CSV and JSON, and the plots."""
    asset = request.assets["ablation_report"]
    study = StudySpec(**asset.fields["study"])
    ablations = {name: AblationSpec(**fields) for name, fields in asset.fields["ablations"].items()}
    folder = Path(asset.outputs["report"])

    def read(table: str) -> pl.DataFrame:
        return read_table(request.inputs[table])

    def scan(table: str) -> pl.LazyFrame:
        return pl.scan_parquet(Path(request.inputs[table], "*.parquet"))

    everyone = (*REFERENCE_ROWS, *ablations)
    models = table_rows({name: read(f"evaluations/{name}") for name in everyone})
    examples = {name: read(f"evaluation_examples/{name}") for name in everyone}
    families = family_rows(models, examples, ablations, study.evaluation)
    # Lazily: of a large study the page shows a few hundred examples and one picture of all tokens.
    tokens = scan("token_losses").join(scan("token_uncertainty"), on=TOKEN_KEY)
    firsts = {family: names[0] for family, names in families_of(ablations).items()}
    logs = {TEACHER_ROW: TEACHER_ROW} | firsts
    selecting = comparison.compared_selections(ablations)
    selections = {name: scan(f"selections/{name}") for name in ablations}
    scored = {name: scan(f"evaluation_tokens/{name}") for name in ablations}
    datasets = {name: read(f"examples/{name}") for name in (study.dataset, *study.ood)}
    costs, cost_rows = _costs(request, ablations)
    page = [
        (
            "Ablations",
            comparison.results(families, models, ablations, study.evaluation)
            + sections.shared_questions(datasets[study.dataset]),
        ),
        (
            "In distribution against out of distribution",
            sections.planes(families, {family: read(f"training_log/{name}") for family, name in logs.items()}, folder),
        ),
        ("How many tokens to select", comparison.quantiles(families, ablations, folder)),
        (
            "Do selections take the same tokens?",
            comparison.overlap(ablations, {name: selections[name] for name in selecting}, folder),
        ),
        (
            "Is the loss a proxy of epistemic uncertainty?",
            sections.correlations(
                read("uncertainty_analysis"), HEADLINES.values(), tokens, _reference(request), folder
            ),
        ),
        ("The curriculum that selection makes", sections.curricula(ablations, read, folder)),
        (
            "Tokens",
            sections.token_explorer(
                tokens, scan("token_alternatives"), datasets.values(), Students(scored, selections)
            ),
        ),
        ("What it costs", costs),
        ("What was run", sections.settings(study, ablations)),
    ]
    (folder / "report.html").write_text(
        html.page(
            f"Ablation report: {study.name}",
            f"{study.model} on {study.dataset}, {len(ablations)} ablations in {len(firsts)} families; losses in nats",
            # A section that has nothing to show (no quantiles, no two selections) is left out.
            [(heading, content) for heading, content in page if content is not None],
        ),
        encoding="utf-8",
    )
    for name, rows in (("ablation_table", models), ("family_table", families)):
        (folder / f"{name}.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
        pl.DataFrame(rows, infer_schema_length=None).write_csv(folder / f"{name}.csv")
    (folder / "costs.json").write_text(json.dumps(cost_rows, indent=1), encoding="utf-8")
    # Costs are timings, and the model is told by the tables that were made with it.
    timed = {"model", *(f"costs/{name}" for name in ablations)}
    content = [content_of(path) for name, path in sorted(request.inputs.items()) if name not in timed]
    reporter.info(f"{study.name}: {verdict(families)}")
    reporter.done(
        AssetResult(
            stage="ablation_report",
            data_version=joined_digest(asset.spec_hash, *content),
            metrics={
                "models": len(everyone),
                "families": len(firsts),
                "metrics": len({(row["dataset"], row["metric"]) for row in models}),
                "verdict": verdict(families),
                "page_kilobytes": round((folder / "report.html").stat().st_size / 1e3),
                **{
                    f"loss_{row['dataset']}_{row['family']}": row["value"]
                    for row in families
                    if row["metric"] == "loss"
                },
            },
            plots={title: f"report/{file}" for title, file in PLOTS.items() if (folder / file).is_file()},
        )
    )


def _reference(request: StageRequest) -> pl.DataFrame:
    folder = Path(request.inputs["bald_reference"])
    if not folder.is_dir():
        raise InputError(
            f"{folder}: missing; {request.study}/token_uncertainty was made by an earlier version: materialise it again"
        )
    return read_table(folder)


def _costs(request: StageRequest, ablations: dict[str, AblationSpec]) -> tuple[str, dict[str, list[dict]]]:
    records = {}
    for name in ablations:
        path = Path(request.inputs[f"costs/{name}"], COSTS_FILE)
        # None where the process that ended the training had no step left to make.
        if path.exists():
            records[name] = CostRecord.read(path)
    architecture = Architecture.from_config(request.inputs["model"])
    content, rows = costs_section(records, architecture, {name: spec.family for name, spec in ablations.items()})
    growing = [name for name, spec in ablations.items() if spec.rank_growth]
    if growing:
        content += html.paragraph(
            f"The growing LoRA rank of {', '.join(growing)} saves no operation: the last rank is there from the "
            "start, and what is above the active one is masked. FLOPs are those of the last rank."
        )
    return content, rows


if __name__ == "__main__":
    runner.main(run)
