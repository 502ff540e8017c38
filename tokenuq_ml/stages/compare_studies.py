"""Child process of `comparisons/<name>`: builds the page that compares several studies.

Finds the inputs and writes the outputs; the kind of comparison decides what is computed.
"""

import hashlib
import json
from pathlib import Path

import polars as pl

from tokenuq_ml.config import AblationSpec, StudySpec
from tokenuq_ml.config.comparison import FURTHER, KINDS
from tokenuq_ml.reports import html
from tokenuq_ml.reports.comparisons.inputs import REPORT, ComparisonInputs
from tokenuq_ml.reports.comparisons.kinds import COMPARE
from tokenuq_ml.reports.comparisons.parts import Findings, Section, Text, as_html, as_markdown
from tokenuq_ml.reports.comparisons.study_families import FAMILY_TABLE
from tokenuq_ml.stages import runner
from tokenuq_ml.stages.request import AssetRequest, AssetResult, StageReporter, StageRequest
from tokenuq_ml.tables.parquet import content_of
from tokenuq_ml.tensor_digest import joined_digest

STAGE, OUTPUT = "comparisons", "comparison"
PAGE, MARKDOWN = "comparison.html", "comparison.md"


def run(request: StageRequest, reporter: StageReporter) -> None:
    """Fill the output `comparison` with the page as HTML and Markdown, the result tables, and the plots."""
    asset = request.assets[STAGE]
    inputs = _inputs(request, asset)
    findings = COMPARE[inputs.spec.kind](inputs)
    _write(inputs, findings)
    reporter.info(f"{inputs.spec.name}: {findings.verdict}")
    reporter.done(
        AssetResult(
            stage=STAGE,
            data_version=joined_digest(asset.spec_hash, *_contents(request)),
            metrics={
                "studies": len(inputs.studies),
                "verdict": findings.verdict,
                **findings.metrics,
                "page_kilobytes": round((inputs.folder / PAGE).stat().st_size / 1e3),
            },
            plots={title: f"{OUTPUT}/{file}" for title, file in findings.plots.items()},
        )
    )


def _inputs(request: StageRequest, asset: AssetRequest) -> ComparisonInputs:
    """Return what the comparison reads. Ablations whose optional tables were never made are left out."""
    spec = KINDS[asset.fields["comparison"]["kind"]](**asset.fields["comparison"])
    studies = {name: StudySpec(**fields) for name, fields in asset.fields["studies"].items()}
    every = {
        study: {name: AblationSpec(**fields) for name, fields in own.items()}
        for study, own in asset.fields["ablations"].items()
    }
    made = {
        study: {
            name: ablation
            for name, ablation in own.items()
            if all(f"{study}/{table}/{name}" in request.inputs for table in spec.ABLATION_TABLES)
        }
        for study, own in every.items()
    }
    folder, knobs = Path(asset.outputs[OUTPUT]), asset.fields.get("knobs", {})
    return ComparisonInputs(spec, studies, made, every, request.inputs, folder, knobs)


def _contents(request: StageRequest) -> list[str]:
    """Return a hash of each input: of tables their content, of a report its table of families.

    The other files of a report are made from the same tables, and hold timings.
    """
    return [
        f"{name}={_report_hash(path) if name.endswith(f'/{REPORT}') else content_of(path)}"
        for name, path in sorted(request.inputs.items())
    ]


def _report_hash(folder: str) -> str:
    return hashlib.sha256(Path(folder, f"{FAMILY_TABLE}.json").read_bytes()).hexdigest()


def _write(inputs: ComparisonInputs, findings: Findings) -> None:
    folder, title = inputs.folder, f"Comparison: {inputs.spec.name}"
    subtitle = f"{inputs.spec.kind} over {_listed(list(inputs.studies))}"
    first, *rest = [*findings.sections] or [Section("Result", ())]
    sections = [Section(first.heading, (Text(findings.verdict, "verdict"), *first.parts)), *rest]
    rendered = [(section.heading, as_html(section.parts, folder)) for section in sections]
    (folder / PAGE).write_text(html.page(title, subtitle, rendered), encoding="utf-8")
    blocks = [f"# {title}", subtitle, *(f"## {one.heading}\n\n{as_markdown(one.parts)}" for one in sections)]
    (folder / MARKDOWN).write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    if findings.further:
        (folder / FURTHER).write_text(json.dumps(dict(findings.further), indent=1), encoding="utf-8")
    for name, rows in findings.tables.items():
        (folder / f"{name}.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
        frame = pl.DataFrame(rows, infer_schema_length=None)
        frame.write_csv(folder / f"{name}.csv")
        frame.write_parquet(folder / f"{name}.parquet")


def _listed(studies: list[str], most: int = 6) -> str:
    more = f" and {len(studies) - most} more studies" if len(studies) > most else ""
    return ", ".join(studies[:most]) + more


if __name__ == "__main__":
    runner.main(run)
